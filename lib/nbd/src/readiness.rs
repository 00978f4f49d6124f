use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::{Timespec, epoll};

const EVENTS_PER_ROUND: usize = 32;
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What a socket became.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// The number that it was added with.
    pub(crate) token: usize,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

/// Says which sockets are worth a system call, with one system call for all of them.
///
/// Each change is reported once (edge-triggered), so that nothing has to be told to it per I/O.
#[derive(Debug)]
pub(crate) struct Readiness {
    epoll: OwnedFd,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Reports on `socket` as `token`, until it is closed.
    pub(crate) fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        use epoll::EventFlags as Flag;
        let flags = Flag::IN | Flag::OUT | Flag::RDHUP | Flag::ET;
        let data = epoll::EventData::new_u64(token as u64);
        Ok(epoll::add(&self.epoll, socket, data, flags)?)
    }

    /// Hands what has changed to `on_ready`, up to a limit; the rest comes next time.
    pub(crate) fn poll(&self, mut on_ready: impl FnMut(Ready)) {
        use epoll::EventFlags as Flag;
        let broken = Flag::ERR | Flag::HUP | Flag::RDHUP;
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_PER_ROUND];
        // It fails only when interrupted by a signal; the next round asks again.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], Some(&NO_WAIT)) else {
            return;
        };
        for event in events {
            // Copied out, because the kernel's structure is packed.
            let (flags, data) = (event.flags, event.data);
            on_ready(Ready {
                token: usize::try_from(data.u64()).unwrap_or(usize::MAX),
                readable: flags.intersects(Flag::IN | broken),
                writable: flags.intersects(Flag::OUT | broken),
            });
        }
    }

    /// Becomes readable when there is something to report.
    pub(crate) fn fd(&self) -> RawFd {
        self.epoll.as_fd().as_raw_fd()
    }
}
