//! What watchers of the initiator are told.

/// Something that watchers may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What happened.
    pub kind: NotificationKind,
    /// What about, at most 127 bytes.
    pub ctx: String,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotificationKind {
    /// A path changed its state; the context is `controller:path:state`.
    PathState,
    /// An attempt to reconnect failed; the context is `controller:path`.
    ReconnectFailed,
    /// A device was mapped; the context is its bdev.
    DeviceOpened,
    /// A device was lost or unmapped; the context is its bdev.
    DeviceClosed,
}

impl NotificationKind {
    /// All that an initiator sends.
    pub const ALL: [Self; 4] = [
        Self::PathState,
        Self::ReconnectFailed,
        Self::DeviceOpened,
        Self::DeviceClosed,
    ];

    /// Its type in `notify_get_types`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PathState => "bdev_rnbd_path_state",
            Self::ReconnectFailed => "bdev_rnbd_reconnect_failed",
            Self::DeviceOpened => "rnbd_device_opened",
            Self::DeviceClosed => "rnbd_device_closed",
        }
    }
}

impl Notification {
    const CTX_BYTES: usize = 127;

    pub(crate) fn new(kind: NotificationKind, ctx: String) -> Self {
        Self {
            kind,
            ctx: shorten(ctx),
        }
    }
}

/// Ends in `…` if it had to be cut.
fn shorten(mut text: String) -> String {
    if text.len() > Notification::CTX_BYTES {
        let mut end = Notification::CTX_BYTES - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_context_is_cut_visibly() {
        let kind = NotificationKind::PathState;
        let long = Notification::new(kind, "ä".repeat(100));
        assert!(long.ctx.len() <= 127 && long.ctx.ends_with('…'));
        assert_eq!(Notification::new(kind, "short".into()).ctx, "short");
    }

    #[test]
    fn all_kinds_are_listed_once() {
        // A kind that is new has to be counted here.
        let place = |kind: NotificationKind| match kind {
            NotificationKind::PathState => 0,
            NotificationKind::ReconnectFailed => 1,
            NotificationKind::DeviceOpened => 2,
            NotificationKind::DeviceClosed => 3,
        };
        assert_eq!(NotificationKind::ALL.map(place), [0, 1, 2, 3]);
    }
}
