use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::registry::{Params, Registry};

/// Notifications kept; older ones are lost to those who did not ask in time.
const KEPT_MAX: usize = 1024;
/// The longest type and context, in bytes.
const TEXT_BYTES_MAX: usize = 127;
/// What a shortened text ends in.
const ELLIPSIS: &str = "...";

/// What happened, for clients that ask for it (`notify_get_types`, `notify_get_notifications`).
/// Cheap to clone; bound to the control thread.
#[derive(Clone, Default)]
pub struct Notifications {
    shared: Rc<RefCell<Ring>>,
}

#[derive(Default)]
struct Ring {
    types: Vec<String>,
    kept: VecDeque<Notification>,
    next_id: u64,
}

/// One of them, as `notify_get_notifications` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notification {
    /// What kind of event.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it happened to.
    pub ctx: String,
    /// Counts from 0 for as long as the program runs; a gap tells of a loss.
    pub id: u64,
}

#[derive(Deserialize)]
struct GetNotifications {
    id: u64,
    max: Option<u64>,
}

impl Notifications {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a type known; again is harmless.
    pub fn register_type(&self, kind: &str) {
        let mut ring = self.shared.borrow_mut();
        let kind = shortened(kind);
        if !ring.types.contains(&kind) {
            ring.types.push(kind);
        }
    }

    /// Keeps a notification and returns its id. A `ctx` above 127 bytes is cut and ends in `...`.
    pub fn send(&self, kind: &str, ctx: &str) -> u64 {
        let mut ring = self.shared.borrow_mut();
        let id = ring.next_id;
        ring.next_id += 1;
        if ring.kept.len() == KEPT_MAX {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Notification {
            kind: shortened(kind),
            ctx: shortened(ctx),
            id,
        });
        id
    }

    /// At most `max` of those that are kept, from `first` on.
    #[must_use]
    pub fn since(&self, first: u64, max: usize) -> Vec<Notification> {
        let ring = self.shared.borrow();
        let wanted = ring.kept.iter().filter(|kept| kept.id >= first);
        wanted.take(max).cloned().collect()
    }

    /// The types made known, in that order.
    #[must_use]
    pub fn types(&self) -> Vec<String> {
        self.shared.borrow().types.clone()
    }

    /// Serves the two methods.
    pub fn register(&self, registry: &mut Registry) {
        let this = self.clone();
        registry.register("notify_get_types", move |_| {
            let types = this.types();
            async move { Ok(json!(types)) }
        });
        let this = self.clone();
        registry.register("notify_get_notifications", move |params: Params| {
            let this = this.clone();
            async move {
                let wanted: GetNotifications = params.decode()?;
                let max = wanted
                    .max
                    .map_or(KEPT_MAX, |max| usize::try_from(max).unwrap_or(KEPT_MAX));
                Ok(json!(this.since(wanted.id, max)) as Value)
            }
        });
    }
}

fn shortened(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let room = TEXT_BYTES_MAX - ELLIPSIS.len();
    let end = (0..=room)
        .rfind(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    format!("{}{ELLIPSIS}", &text[..end])
}

impl fmt::Debug for Notifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = self.shared.borrow();
        write!(f, "Notifications({} of {})", ring.kept.len(), ring.next_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_and_ids_go_on() {
        let notifications = Notifications::new();
        for number in 0..1030 {
            assert_eq!(notifications.send("bdev_register", "Malloc0"), number);
        }
        let kept = notifications.since(0, usize::MAX);
        assert_eq!((kept.len(), kept[0].id, kept[1023].id), (1024, 6, 1029));
        let two = notifications.since(1000, 2);
        assert_eq!([two[0].id, two[1].id], [1000, 1001]);
        assert!(notifications.since(1030, 1).is_empty());
    }

    #[test]
    fn long_texts_are_visibly_cut_between_characters() {
        let notifications = Notifications::new();
        notifications.send("kind", &"ä".repeat(100));
        let ctx = notifications.since(0, 1).remove(0).ctx;
        assert_eq!(ctx, format!("{}...", "ä".repeat(62)));
    }

    #[test]
    fn types_are_listed_once() {
        let notifications = Notifications::new();
        for kind in ["bdev_register", "bdev_resize", "bdev_register"] {
            notifications.register_type(kind);
        }
        assert_eq!(notifications.types(), ["bdev_register", "bdev_resize"]);
    }
}
