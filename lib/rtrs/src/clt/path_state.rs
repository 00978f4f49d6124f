//! The states of a path; what leads from one to the next is in `path.rs`.

/// The states of protocol.md 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathState {
    /// A handshake is under way.
    Connecting,
    /// Requests may use it.
    Connected,
    /// The handshake failed and is being undone.
    ConnectingErr,
    /// It was lost: waits for its connections to end, then for the next attempt.
    Reconnecting,
    /// It is being closed and will not come back by itself.
    Closing,
    /// It is closed and stays so until an administrator reconnects it.
    Closed,
    /// It was removed.
    Dead,
}

impl PathState {
    /// As in RPC answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::ConnectingErr | Self::Reconnecting => "reconnecting",
            Self::Closing => "closing",
            Self::Closed => "disconnected",
            Self::Dead => "removed",
        }
    }

    /// Whether the table of protocol.md 7.1 has this transition.
    #[must_use]
    pub fn may_become(self, new: Self) -> bool {
        use PathState::{
            Closed, Closing, Connected, Connecting, ConnectingErr, Dead, Reconnecting,
        };
        match new {
            Connecting => self == Reconnecting,
            Connected | ConnectingErr => self == Connecting,
            Reconnecting => matches!(self, Connected | ConnectingErr | Closed),
            Closing => matches!(self, Connecting | ConnectingErr | Reconnecting | Connected),
            Closed => self == Closing,
            Dead => self == Closed,
        }
    }
}
