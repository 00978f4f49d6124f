//! The epoll instance of a fabric: listeners, handshakes and connections that are not asked in
//! each poll.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::types::{ConnId, ListenerId};

const EVENTS_MAX: usize = 64;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Listener(ListenerId),
    Connection(ConnId),
}

const LISTENER_BIT: u64 = 1 << 63;

impl Source {
    fn to_data(self) -> EventData {
        let (index, generation, kind) = match self {
            Self::Listener(id) => (id.index, id.generation, LISTENER_BIT),
            Self::Connection(id) => (id.index, id.generation, 0),
        };
        EventData::new_u64(kind | u64::from(index) << 32 | u64::from(generation))
    }

    fn from_data(data: EventData) -> Self {
        let data = data.u64();
        let low = |word: u64| u32::try_from(word & 0xffff_ffff).expect("masked to 32 bits");
        let (index, generation) = (low((data & !LISTENER_BIT) >> 32), low(data));
        if data & LISTENER_BIT == 0 {
            Self::Connection(ConnId { index, generation })
        } else {
            Self::Listener(ListenerId { index, generation })
        }
    }
}

/// An epoll instance and what it last told.
#[derive(Debug)]
pub(super) struct Watcher {
    epoll: OwnedFd,
    ready: Vec<Source>,
}

impl Watcher {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            ready: Vec::with_capacity(EVENTS_MAX),
        })
    }

    pub(super) fn add(
        &self,
        fd: impl AsFd,
        source: Source,
        interest: EventFlags,
    ) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, source.to_data(), interest)
    }

    pub(super) fn modify(
        &self,
        fd: impl AsFd,
        source: Source,
        interest: EventFlags,
    ) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, source.to_data(), interest)
    }

    pub(super) fn remove(&self, fd: impl AsFd) {
        // Fails only for a descriptor that was not added.
        let _outcome = epoll::delete(&self.epoll, fd);
    }

    /// Asks the kernel, without waiting; returns how many things are ready.
    pub(super) fn look(&mut self) -> usize {
        const NOW: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut room = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        self.ready.clear();
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut room, Some(&NOW)) {
            let sources = events.iter().map(|event| Source::from_data(event.data));
            self.ready.extend(sources);
        }
        self.ready.len()
    }

    /// One of the things that the last look found ready.
    pub(super) fn ready(&self, nth: usize) -> Source {
        self.ready[nth]
    }

    /// What [`Watcher::raw_fd`] names.
    #[cfg(test)]
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.epoll
    }

    /// The descriptor that is readable when there is an event.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_the_kernel() {
        let (index, generation) = (0x7fff_fffe, u32::MAX);
        for source in [
            Source::Listener(ListenerId { index, generation }),
            Source::Connection(ConnId { index, generation }),
        ] {
            assert_eq!(Source::from_data(source.to_data()), source);
        }
    }
}
