//! What only the application's thread works with.

use std::fmt;

use rnbd_spdk::Thread;

/// A value that is not `Send` and belongs to SPDK's application thread, which different OS threads
/// may run one after the other.
pub(crate) struct AppOnly<T>(T);

// SAFETY: it is only reached on the application's light thread (`get` checks that), which SPDK runs
// on one OS thread at a time, and everything that the value shares without atomics is inside of it.
unsafe impl<T> Send for AppOnly<T> {}

impl<T> AppOnly<T> {
    /// To be made on the application's thread.
    pub(crate) fn new(value: T) -> Self {
        check();
        Self(value)
    }

    /// # Panics
    /// On any other thread.
    pub(crate) fn get(&self) -> &T {
        check();
        &self.0
    }

    /// # Panics
    /// On any other thread.
    pub(crate) fn into_inner(self) -> T {
        check();
        self.0
    }
}

fn check() {
    assert!(
        Thread::current().is_some() && Thread::current() == Thread::app(),
        "only the application's thread comes here"
    );
}

impl<T: fmt::Debug> fmt::Debug for AppOnly<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppOnly({:?})", self.0)
    }
}
