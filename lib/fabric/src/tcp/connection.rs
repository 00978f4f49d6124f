use std::os::fd::OwnedFd;

use rnbd_base::Nanos;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::tcp::hello::HelloBytes;
use crate::tcp::inbound::Inbound;
use crate::tcp::outbound::Outbound;
use crate::tcp::receives::Receives;
use crate::types::{Addr, ConnId, DomainId, ListenerId, PrivateData};

/// Where a connection is in its life; the diagram is in `handshake`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The kernel connects.
    Connecting,
    /// Our hello is sent and the answer awaited.
    Asking,
    /// The hello of somebody who came in is awaited.
    Greeting,
    /// The answer of the application is awaited.
    Requested,
    /// Frames flow.
    Up,
}

/// How it is found out that something arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Not at all yet.
    None,
    /// The socket is asked in each poll.
    Hot,
    /// The epoll instance tells.
    Cold(EventFlags),
}

/// A connection in whatever state.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnId,
    pub(super) socket: OwnedFd,
    pub(super) state: State,
    pub(super) watch: Watch,
    /// Polls in a row that found nothing.
    pub(super) idle_polls: u32,
    /// Whether it is in the fabric's list of connections with something to send or to report.
    pub(super) is_dirty: bool,
    /// Set when sending failed: nothing is sent any more, and the connection is closed as soon as
    /// what the peer sent before is read.
    pub(super) send_failure: Option<Errno>,
    pub(super) domain: Option<DomainId>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) handshake: Handshake,
}

/// What matters until a connection is up.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) deadline: Nanos,
    /// The peer's hello, as far as it is there.
    pub(super) hello: HelloBytes,
    /// Ours, on the connecting side.
    pub(super) private_data: PrivateData,
    pub(super) listener: Option<ListenerId>,
    /// The peer's address.
    pub(super) peer: Addr,
}

impl Connection {
    /// A connection that has just begun.
    pub(super) fn new(
        id: ConnId,
        socket: OwnedFd,
        state: State,
        handshake: Handshake,
        receives: Receives,
    ) -> Self {
        Self {
            id,
            socket,
            state,
            watch: Watch::None,
            idle_polls: 0,
            is_dirty: false,
            send_failure: None,
            domain: None,
            inbound: Inbound::new(receives),
            outbound: Outbound::default(),
            handshake,
        }
    }

    /// What the kernel should wake a sleeper for.
    pub(super) fn interest(&self) -> EventFlags {
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN, !self.inbound.is_starved());
        let unsent = self.outbound.has_unsent() && self.send_failure.is_none();
        interest.set(EventFlags::OUT, unsent || self.state == State::Connecting);
        interest
    }
}
