use std::any::Any;
use std::sync::Arc;

use futures_channel::mpsc;
use futures_util::StreamExt;
use rnbd_proto::target::{Notification, Sink};
use rnbd_rpc::{Handle, Notifications};

/// Passes on what happens on reactors to the control thread, and frees there what takes long.
pub(super) struct ControlSink {
    events: mpsc::UnboundedSender<Event>,
}

enum Event {
    Notify(Notification),
    Dispose(Box<dyn Any + Send>),
}

impl ControlSink {
    pub(super) fn start(handle: &Handle, notifications: &Notifications) -> Arc<Self> {
        for kind in Notification::TYPES {
            notifications.register_type(kind);
        }
        let (events, mut arriving) = mpsc::unbounded();
        let notifications = notifications.clone();
        handle.spawn(async move {
            while let Some(event) = arriving.next().await {
                match event {
                    Event::Notify(event) => {
                        notifications.send(event.notification_type(), &event.ctx());
                    }
                    Event::Dispose(garbage) => drop(garbage),
                }
            }
        });
        Arc::new(Self { events })
    }
}

impl Sink for ControlSink {
    fn notify(&self, notification: Notification) {
        // When the control thread has ended, nobody is left to be notified.
        let _ = self.events.unbounded_send(Event::Notify(notification));
    }

    fn dispose(&self, garbage: Box<dyn Any + Send>) {
        // When the control thread has ended, the caller frees it.
        let _ = self.events.unbounded_send(Event::Dispose(garbage));
    }
}
