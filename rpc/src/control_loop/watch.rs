use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};

use rustix::event::epoll;

use super::Handle;

/// The token of the ready queue's event; those of watches count from 1.
pub(crate) const READY_QUEUE: u64 = 0;

/// What to wait for. Errors and hang-ups end every wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Data to read, or the end of them.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self {
        readable: true,
        writable: false,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::ONESHOT;
        flags.set(epoll::EventFlags::IN, self.readable);
        flags.set(epoll::EventFlags::OUT, self.writable);
        flags
    }
}

#[derive(Default)]
pub(crate) struct Watches {
    last_token: Cell<u64>,
    states: RefCell<HashMap<u64, State>>,
}

#[derive(Default)]
struct State {
    fired: bool,
    waker: Option<Waker>,
}

impl Watches {
    /// An event came for `token`; it may come for one that is watched no longer.
    pub(crate) fn note(&self, token: u64) {
        if let Some(state) = self.states.borrow_mut().get_mut(&token) {
            state.fired = true;
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}

/// An object whose readiness can be awaited. Readiness may be reported in vain, so the operation
/// that follows must not block.
#[derive(Debug)]
pub struct Watch<T: AsFd> {
    handle: Handle,
    token: u64,
    object: T,
}

impl<T: AsFd> Watch<T> {
    pub(crate) fn new(handle: Handle, object: T) -> io::Result<Self> {
        let watches = &handle.shared.watches;
        let token = watches.last_token.get() + 1;
        watches.last_token.set(token);
        epoll::add(
            &handle.shared.epoll,
            &object,
            epoll::EventData::new_u64(token),
            Interest::default().flags(),
        )?;
        watches.states.borrow_mut().insert(token, State::default());
        Ok(Self {
            handle,
            token,
            object,
        })
    }

    /// What is watched.
    pub fn get(&self) -> &T {
        &self.object
    }

    /// Waits until there is something of `interest`.
    ///
    /// # Errors
    /// If the kernel refuses to watch.
    pub async fn ready(&self, interest: Interest) -> io::Result<()> {
        poll_fn(|context| self.poll_ready(context, interest)).await
    }

    /// [`Watch::ready`] for hand-written futures. The interest of the last call counts.
    pub(crate) fn poll_ready(
        &self,
        context: &mut Context<'_>,
        interest: Interest,
    ) -> Poll<io::Result<()>> {
        let mut states = self.handle.shared.watches.states.borrow_mut();
        let state = states.entry(self.token).or_default();
        if std::mem::take(&mut state.fired) {
            return Poll::Ready(Ok(()));
        }
        state.waker = Some(context.waker().clone());
        if interest == Interest::default() {
            // The kernel reports a hang-up even to those who wait for nothing, and would do so
            // again and again.
            return Poll::Pending;
        }
        let data = epoll::EventData::new_u64(self.token);
        match epoll::modify(
            &self.handle.shared.epoll,
            &self.object,
            data,
            interest.flags(),
        ) {
            Ok(()) => Poll::Pending,
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}

impl<T: AsFd> Drop for Watch<T> {
    fn drop(&mut self) {
        let shared = &self.handle.shared;
        // A descriptor that others still hold open would otherwise stay in the set.
        let _ = epoll::delete(&shared.epoll, &self.object);
        shared.watches.states.borrow_mut().remove(&self.token);
    }
}
