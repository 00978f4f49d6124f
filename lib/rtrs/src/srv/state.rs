/// Where a server path is in its life (protocol.md 7.7).
///
/// ```text
///  first accept            INFO_REQ              any loss, violation, timeout, command
/// ──────────────> Connecting ────────> Connected ──────────────> Closing ───────> Closed
///                     │                                             ^  connections gone,
///                     └─────────────────────────────────────────────┘  I/O drained
/// ```
///
/// Nothing leads back: a client that reconnects gets a new path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathState {
    /// Connections are coming in; no request is valid yet.
    Connecting,
    /// Serving.
    Connected,
    /// Connections are going down, I/O in flight is awaited, its answers are dropped.
    Closing,
    /// Nothing of it is left but the value.
    Closed,
}

impl PathState {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 4] = [
        Self::Connecting,
        Self::Connected,
        Self::Closing,
        Self::Closed,
    ];

    /// Whether a path in this state may go to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Connecting, Self::Connected | Self::Closing)
                | (Self::Connected, Self::Closing)
                | (Self::Closing, Self::Closed)
        )
    }

    /// As RPC spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_table_is_the_diagram() {
        let mut table = String::new();
        for from in PathState::ALL {
            let next: Vec<_> = PathState::ALL
                .into_iter()
                .filter(|&to| from.may_become(to))
                .map(PathState::as_str)
                .collect();
            table.push_str(&format!("{} -> {}\n", from.as_str(), next.join(" ")));
        }
        assert_eq!(
            table,
            "connecting -> connected closing\n\
             connected -> closing\n\
             closing -> closed\n\
             closed -> \n"
        );
    }
}
