//! Where reactors are polled: that of the application's core on the application's thread, every
//! other one on a light thread of its own.
//!
//! The former is no matter of taste: fio's plugin has one core, takes no threads but its own, and
//! polls the application's alone while the configuration is applied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::{Errno, Nanos, Poll};
use rnbd_reactor::HostedReactor;
use rnbd_spdk::{Poller, Thread};

/// A reactor's place.
#[derive(Debug)]
pub(crate) struct Seat {
    thread: Thread,
    poller: Mutex<Option<Poller>>,
    is_own: bool,
}

impl Seat {
    /// Polls the reactor on the current thread.
    pub(crate) fn here(reactor: HostedReactor) -> Result<Arc<Self>, Errno> {
        let thread = Thread::current().ok_or(Errno::PERM)?;
        let seat = Self::new(thread, false);
        seat.poll(reactor)?;
        Ok(seat)
    }

    /// Polls it on a new thread that prefers `core`.
    pub(crate) fn on(core: u32, name: &str, reactor: HostedReactor) -> Result<Arc<Self>, Errno> {
        let thread = Thread::create(name, core).ok_or(Errno::NOMEM)?;
        let seat = Self::new(thread, true);
        let arriving = Arc::clone(&seat);
        thread.send(move || {
            if let Err(errno) = arriving.poll(reactor) {
                log::error!("a reactor is not polled: {errno}");
            }
        });
        Ok(seat)
    }

    fn new(thread: Thread, is_own: bool) -> Arc<Self> {
        Arc::new(Self {
            thread,
            poller: Mutex::default(),
            is_own,
        })
    }

    fn poll(&self, mut reactor: HostedReactor) -> Result<(), Errno> {
        let polled = move || reactor.poll(Nanos::ZERO);
        *self.lock() = Some(Poller::register("rnbd_reactor", 0, polled)?);
        Ok(())
    }

    /// Drops the reactor with all that it polls, and ends its thread; then `gone` is called there.
    pub(crate) fn leave(self: &Arc<Self>, gone: impl FnOnce() + Send + 'static) {
        let seat = Arc::clone(self);
        self.thread.send(move || {
            let poller = seat.lock().take();
            drop(poller);
            // The poller's function, which has the reactor, is freed by a message before this one.
            let is_own = seat.is_own;
            seat.thread.send(move || {
                if is_own {
                    Thread::exit_current();
                }
                gone();
            });
        });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Poller>> {
        self.poller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
