//! One life of a device: from when it was found usable until nobody uses it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sysfs::Seen;

/// A life of a device. What is opened of it counts as a user.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) seen: Seen,
    users: AtomicU32,
}

impl Instance {
    pub(crate) fn new(seen: Seen) -> Arc<Self> {
        let users = AtomicU32::new(0);
        Arc::new(Self { seen, users })
    }

    pub(crate) fn name(&self) -> &str {
        &self.seen.name
    }

    /// How many have it open.
    pub(crate) fn users(&self) -> u32 {
        self.users.load(Ordering::Acquire)
    }
}

/// Counts as a user for as long as it lives.
#[derive(Debug)]
pub(crate) struct User(Arc<Instance>);

impl User {
    pub(crate) fn new(instance: &Arc<Instance>) -> Self {
        instance.users.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(instance))
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.0
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}
