use std::fmt;

use rnbd_base::{CoreIndex, Nanos, Poll};

use crate::snapshot::ReactorSnapshot;

/// What a reactor calls, on its own thread, with the outcome of a command. It must not block; it
/// typically completes a oneshot channel. If the reactor has stopped, it is dropped uncalled.
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// A light thread, and the reactor that hosts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThreadId {
    pub(crate) id: u64,
    pub(crate) core: CoreIndex,
}

impl ThreadId {
    /// The number that users see; unique in the process, from 1.
    #[must_use]
    pub fn get(self) -> u64 {
        self.id
    }

    /// Its reactor.
    #[must_use]
    pub fn core(self) -> CoreIndex {
        self.core
    }
}

/// A poller, and the light thread that hosts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PollerId {
    pub(crate) id: u64,
    pub(crate) thread: ThreadId,
}

impl PollerId {
    /// The number that users see; unique in the process, from 1.
    #[must_use]
    pub fn get(self) -> u64 {
        self.id
    }

    /// Its light thread.
    #[must_use]
    pub fn thread(self) -> ThreadId {
        self.thread
    }
}

/// A poller on its way to a light thread.
pub(crate) struct NewPoller {
    pub(crate) id: PollerId,
    pub(crate) name: String,
    pub(crate) period: Option<Nanos>,
    pub(crate) poll: Box<dyn Poll>,
}

/// What the control thread asks of a reactor.
pub(crate) enum Command {
    CreateThread(ThreadId, String),
    DestroyThread(ThreadId, Reply<Vec<Box<dyn Poll>>>),
    AddPoller(NewPoller),
    RemovePoller(PollerId, Reply<Option<Box<dyn Poll>>>),
    Run(Box<dyn FnOnce(Nanos) + Send>),
    Snapshot(Reply<ReactorSnapshot>),
    Stop,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateThread(id, name) => write!(f, "CreateThread({id:?}, {name})"),
            Self::DestroyThread(id, _) => write!(f, "DestroyThread({id:?})"),
            Self::AddPoller(poller) => write!(f, "AddPoller({:?}, {})", poller.id, poller.name),
            Self::RemovePoller(id, _) => write!(f, "RemovePoller({id:?})"),
            Self::Run(_) => f.write_str("Run"),
            Self::Snapshot(_) => f.write_str("Snapshot"),
            Self::Stop => f.write_str("Stop"),
        }
    }
}
