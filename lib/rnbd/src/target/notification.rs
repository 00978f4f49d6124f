use std::any::Any;

/// What happened on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A session's first path is up.
    SessionConnected {
        /// The session.
        sessname: String,
    },
    /// A session's last path is gone, and all its devices are closed.
    SessionDisconnected {
        /// The session.
        sessname: String,
    },
    /// A path is up.
    PathUp {
        /// The session.
        sessname: String,
        /// `client@server`.
        path: String,
    },
    /// A path that was up is closing.
    PathDown {
        /// The session.
        sessname: String,
        /// `client@server`.
        path: String,
        /// Why.
        cause: String,
    },
    /// A client was silent at a look.
    HeartbeatMissed {
        /// The session.
        sessname: String,
        /// `client@server`.
        path: String,
    },
    /// A device was opened.
    DeviceOpened {
        /// The session.
        sessname: String,
        /// The name asked for.
        device: String,
    },
    /// A device was closed.
    DeviceClosed {
        /// The session.
        sessname: String,
        /// The name asked for.
        device: String,
    },
}

impl Notification {
    /// The types of all that a target sends.
    pub const TYPES: [&str; 7] = [
        "rtrs_session_connected",
        "rtrs_session_disconnected",
        "rtrs_path_up",
        "rtrs_path_down",
        "rtrs_heartbeat_missed",
        "rnbd_device_opened",
        "rnbd_device_closed",
    ];

    /// Its type in `notify_get_types`.
    #[must_use]
    pub fn notification_type(&self) -> &'static str {
        match self {
            Self::SessionConnected { .. } => "rtrs_session_connected",
            Self::SessionDisconnected { .. } => "rtrs_session_disconnected",
            Self::PathUp { .. } => "rtrs_path_up",
            Self::PathDown { .. } => "rtrs_path_down",
            Self::HeartbeatMissed { .. } => "rtrs_heartbeat_missed",
            Self::DeviceOpened { .. } => "rnbd_device_opened",
            Self::DeviceClosed { .. } => "rnbd_device_closed",
        }
    }

    /// Its context: `name`, `name:path` or `name:path:cause`.
    #[must_use]
    pub fn ctx(&self) -> String {
        match self {
            Self::SessionConnected { sessname } | Self::SessionDisconnected { sessname } => {
                sessname.clone()
            }
            Self::PathUp { sessname, path } | Self::HeartbeatMissed { sessname, path } => {
                format!("{sessname}:{path}")
            }
            Self::PathDown {
                sessname,
                path,
                cause,
            } => format!("{sessname}:{path}:{cause}"),
            Self::DeviceOpened { sessname, device } | Self::DeviceClosed { sessname, device } => {
                format!("{sessname}:{device}")
            }
        }
    }
}

/// Hears what happens on a target. Called on reactors, so it must not block.
pub trait Sink: Send + Sync {
    /// Something happened.
    fn notify(&self, notification: Notification);

    /// Memory or a device is no longer needed. Freeing it may take long: an implementation hands
    /// it to a thread that may block.
    fn dispose(&self, garbage: Box<dyn Any + Send>) {
        drop(garbage);
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct IgnoreNotifications;

impl Sink for IgnoreNotifications {
    fn notify(&self, _notification: Notification) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_every_notification_is_listed() {
        let [sessname, path, device, cause] = ["s", "p", "d", "c"].map(str::to_owned);
        let all = [
            Notification::SessionConnected {
                sessname: sessname.clone(),
            },
            Notification::SessionDisconnected {
                sessname: sessname.clone(),
            },
            Notification::PathUp {
                sessname: sessname.clone(),
                path: path.clone(),
            },
            Notification::PathDown {
                sessname: sessname.clone(),
                path: path.clone(),
                cause,
            },
            Notification::HeartbeatMissed {
                sessname: sessname.clone(),
                path,
            },
            Notification::DeviceOpened {
                sessname: sessname.clone(),
                device: device.clone(),
            },
            Notification::DeviceClosed { sessname, device },
        ];
        assert_eq!(all.map(|one| one.notification_type()), Notification::TYPES);
    }
}
