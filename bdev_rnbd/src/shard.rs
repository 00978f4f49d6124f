//! What one core has of the initiator.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use rnbd_base::{CoreIndex, Full, Nanos, Poll, Progress, Receiver};
use rnbd_bdev::Registry;
use rnbd_fabric::{
    Caps, CloseReason, Completion, CompletionKind, ConnId, Event, Fabric, PrivateData,
};
use rnbd_mem::{Memory, Span};
use rnbd_rtrs::clt::{Arrival, PathError, PathIndex};
use rnbd_wire::rtrs::RkeyRsp;

use crate::channel::CoreChannel;
use crate::control::CoreTransport;
use crate::directory::Directory;
use crate::home::Home;
use crate::message::{Inspect, Message, Peer, SessionKey};
use crate::notification::{Notification, NotificationKind};

/// Receives notifications; called on reactors, so it must not block.
pub(crate) type Notify = Arc<dyn Fn(Notification) + Send + Sync>;

/// The initiator's value of one core: its fabric, the sessions at home there and the channels of
/// all sessions that do I/O there.
pub struct InitiatorShard<F: Fabric> {
    core: Core<F>,
    inbox: Receiver<Message>,
    homes: Vec<Option<Home>>,
    channels: Vec<Option<CoreChannel>>,
    completions: Vec<Completion>,
}

/// What sessions and channels of a core share.
pub(crate) struct Core<F: Fabric> {
    pub(crate) index: CoreIndex,
    pub(crate) fabric: F,
    pub(crate) caps: Caps,
    pub(crate) memory: Memory,
    pub(crate) registry: Registry,
    pub(crate) directory: Directory,
    pub(crate) notify: Notify,
    pub(crate) now: Nanos,
    pub(crate) peers: Vec<Peer>,
    pub(crate) random: fastrand::Rng,
    roles: Roles,
    outbox: VecDeque<(CoreIndex, Message)>,
    local: VecDeque<Message>,
}

/// Whose a connection is, by the index of its handle.
#[derive(Debug, Default)]
struct Roles {
    slots: Vec<Option<(ConnId, Role)>>,
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Home(usize, PathIndex),
    Channel(usize, PathIndex),
}

impl Roles {
    fn set(&mut self, conn: ConnId, role: Role) {
        let index = conn.index as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        self.slots[index] = Some((conn, role));
    }

    fn get(&self, conn: ConnId) -> Option<Role> {
        let slot = self.slots.get(conn.index as usize)?;
        slot.filter(|(known, _)| *known == conn)
            .map(|(_, role)| role)
    }

    fn remove(&mut self, conn: ConnId) -> Option<Role> {
        let role = self.get(conn)?;
        self.slots[conn.index as usize] = None;
        Some(role)
    }
}

impl<F: Fabric> Core<F> {
    /// Sends a message to a core's shard; to this one, without a detour.
    pub(crate) fn send(&mut self, to: CoreIndex, message: Message) {
        if to == self.index {
            self.local.push_back(message);
        } else {
            self.outbox.push_back((to, message));
            self.flush_outbox();
        }
    }

    /// Messages are never lost: what a mailbox has no room for waits here, in order.
    fn flush_outbox(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while let Some((to, message)) = self.outbox.pop_front() {
            let Some(peer) = self.peers.iter().find(|peer| peer.core == to) else {
                continue;
            };
            if let Err(Full(message)) = peer.sender.send(message) {
                self.outbox.push_front((to, message));
                break;
            }
            progress = Progress::Busy;
        }
        progress
    }

    pub(crate) fn notify(&self, kind: NotificationKind, ctx: String) {
        (self.notify)(Notification::new(kind, ctx));
    }

    /// Remembers whose a connection is.
    pub(crate) fn assign(&mut self, conn: ConnId, role: Role) {
        self.roles.set(conn, role);
    }
}

impl<F: Fabric> InitiatorShard<F> {
    pub(crate) fn new(
        index: CoreIndex,
        fabric: F,
        inbox: Receiver<Message>,
        peers: Vec<Peer>,
        shared: (Memory, Registry, Directory, Notify),
        seed: u64,
    ) -> Self {
        const COMPLETIONS: usize = 256;
        let (memory, registry, directory, notify) = shared;
        Self {
            core: Core {
                index,
                caps: fabric.caps(),
                fabric,
                memory,
                registry,
                directory,
                notify,
                now: Nanos::ZERO,
                peers,
                random: fastrand::Rng::with_seed(seed),
                roles: Roles::default(),
                outbox: VecDeque::with_capacity(64),
                local: VecDeque::with_capacity(64),
            },
            inbox,
            homes: Vec::new(),
            channels: Vec::new(),
            completions: Vec::with_capacity(COMPLETIONS),
        }
    }

    /// The fabric, for whoever made it: the simulator injects faults there.
    pub fn fabric_mut(&mut self) -> &mut F {
        &mut self.core.fabric
    }

    // Messages.

    fn take_messages(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(message) = self.core.local.pop_front().or_else(|| self.inbox.take()) {
            self.handle(message);
            progress = Progress::Busy;
        }
        progress
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::AddChannel(setup) => {
                let slot = free_slot(&mut self.channels);
                self.channels[slot] = Some(CoreChannel::new(slot, *setup));
            }
            Message::RemoveChannel(session) => self.remove_channel(session),
            Message::Route(session, path, route) => {
                self.with_channel(session, |channel, _| channel.set_route(path, route));
            }
            Message::ToChannel(session, message) => {
                self.with_channel(session, |channel, core| channel.on_message(&message, core));
            }
            Message::Mode(session, mode) => {
                self.with_channel(session, |channel, _| channel.set_mode(mode));
            }
            Message::Wake => {}
            Message::Device(session, device, view) => {
                self.with_channel(session, |channel, _| channel.set_device(device, view));
            }
            Message::OpenPort(session, port) => {
                self.with_channel(session, |channel, _| channel.open_port(port));
            }
            Message::FromChannel(session, index, message) => {
                self.with_home(session, |home, core| {
                    home.on_channel(index, message, core);
                });
            }
            Message::NotConnected(session, device, opening) => {
                self.with_home(session, |home, core| {
                    home.on_not_connected(device, opening, core);
                });
            }
            Message::WritesFree(session) => {
                self.with_home(session, |home, core| home.on_writes_free(core));
            }
            Message::BdevGone(session, device) => {
                self.with_home(session, |home, core| home.on_bdev_gone(device, core));
            }
            Message::Attach(attach) => {
                let slot = free_slot(&mut self.homes);
                let home = Home::attach(slot, *attach, &mut self.core);
                // One whose first connection could not even be started is over already.
                self.homes[slot] = Some(home).filter(|home| !home.is_over());
            }
            Message::Command(session, command) => {
                self.with_home(session, |home, core| home.on_command(command, core));
            }
            Message::Inspect(inspect) => self.inspect(&inspect),
            Message::ResetStats(session, path) => {
                self.with_channel(session, |channel, _| channel.reset_stats(path));
                self.with_home(session, |home, _| home.reset_stats(path));
            }
        }
    }

    fn with_channel(
        &mut self,
        session: SessionKey,
        then: impl FnOnce(&mut CoreChannel, &mut Core<F>),
    ) {
        let mut all = self.channels.iter_mut().flatten();
        if let Some(channel) = all.find(|channel| channel.session() == session) {
            then(channel, &mut self.core);
        }
    }

    /// A session that is over by that leaves its slot.
    fn with_home(&mut self, session: SessionKey, then: impl FnOnce(&mut Home, &mut Core<F>)) {
        let of_session = |slot: &&mut Option<Home>| {
            let home = slot.as_ref();
            home.is_some_and(|home| home.session() == session)
        };
        if let Some(slot) = self.homes.iter_mut().find(of_session) {
            run_home(slot, &mut self.core, then);
        }
    }

    fn remove_channel(&mut self, session: SessionKey) {
        for slot in &mut self.channels {
            if slot
                .as_ref()
                .is_some_and(|channel| channel.session() == session)
            {
                *slot = None;
            }
        }
    }

    fn inspect(&mut self, inspect: &Inspect) {
        let homes = self.homes.iter().flatten();
        let channels = self.channels.iter().flatten();
        let wanted = |of: SessionKey, wanted: Option<SessionKey>| wanted.is_none_or(|w| w == of);
        match inspect {
            Inspect::Controllers(key, gather) => gather.add(
                homes
                    .filter(|home| wanted(home.session(), *key))
                    .map(|home| home.info(&self.core)),
            ),
            Inspect::PathStats(key, gather) => {
                let of_homes = homes
                    .filter(|home| wanted(home.session(), *key))
                    .flat_map(|home| home.path_stats(&self.core));
                let of_channels = channels
                    .filter(|channel| wanted(channel.session(), *key))
                    .flat_map(CoreChannel::path_stats);
                gather.add(of_homes.chain(of_channels));
            }
            Inspect::Transports(gather) => gather.add([CoreTransport {
                core: self.core.index,
                trtype: self.core.caps.trtype,
                stats: self.core.fabric.stats(),
            }]),
            Inspect::IoPaths(gather) => {
                let directory = self.core.directory.lock();
                for channel in channels {
                    gather.add(channel.io_paths(
                        self.core.index,
                        self.core.caps.trtype,
                        &directory,
                    ));
                }
            }
        }
    }

    // The fabric.

    fn submit(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for channel in self.channels.iter_mut().flatten() {
            progress = progress.or(channel.submit_ready(&mut self.core));
        }
        progress
    }

    fn take_completions(&mut self) -> Progress {
        let mut completions = std::mem::take(&mut self.completions);
        let progress = self.core.fabric.poll(self.core.now, &mut completions);
        for completion in completions.drain(..) {
            match self.core.roles.get(completion.conn) {
                Some(Role::Channel(slot, path)) => {
                    if let Some(channel) = &mut self.channels[slot] {
                        channel.on_completion(path, &completion, &mut self.core);
                    }
                }
                Some(Role::Home(slot, path)) => {
                    run_home(&mut self.homes[slot], &mut self.core, |home, core| {
                        home.on_completion(path, &completion, core);
                    });
                }
                None => {}
            }
        }
        self.completions = completions;
        if progress.is_busy() {
            for channel in self.channels.iter_mut().flatten() {
                channel.run_actions(&mut self.core);
            }
        }
        progress
    }

    fn take_events(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(event) = self.core.fabric.next_event() {
            progress = Progress::Busy;
            self.on_event(event);
        }
        progress
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connected {
                conn,
                domain,
                private_data,
                src,
            } => match self.core.roles.get(conn) {
                Some(Role::Home(slot, path)) => {
                    run_home(&mut self.homes[slot], &mut self.core, |home, core| {
                        home.on_connected(path, domain, &private_data, src, core);
                    });
                }
                Some(Role::Channel(slot, path)) => {
                    if let Some(channel) = &mut self.channels[slot] {
                        channel.on_connected(path, domain, &private_data, &mut self.core);
                    }
                }
                None => self.core.fabric.close_domain(domain),
            },
            Event::Closed { conn, reason } => self.on_closed(conn, path_error(&reason)),
            Event::ConnectRequest { conn, .. } => {
                self.core.fabric.reject(conn, &PrivateData::EMPTY);
            }
        }
    }

    fn on_closed(&mut self, conn: ConnId, error: PathError) {
        match self.core.roles.remove(conn) {
            Some(Role::Home(slot, path)) => {
                run_home(&mut self.homes[slot], &mut self.core, |home, core| {
                    home.on_closed(path, error, core);
                });
            }
            Some(Role::Channel(slot, path)) => {
                if let Some(channel) = &mut self.channels[slot] {
                    channel.on_closed(path, error, &mut self.core);
                }
            }
            None => {}
        }
    }

    fn run_timers(&mut self) {
        let now = self.core.now;
        let is_due = |deadline: Option<Nanos>| deadline.is_some_and(|at| at <= now);
        for channel in self.channels.iter_mut().flatten() {
            if is_due(channel.next_deadline()) {
                channel.on_timeout(&mut self.core);
            }
        }
        for slot in &mut self.homes {
            if is_due(slot.as_ref().and_then(Home::next_deadline)) {
                run_home(slot, &mut self.core, Home::on_timeout);
            }
        }
    }
}

fn run_home<F: Fabric>(
    slot: &mut Option<Home>,
    core: &mut Core<F>,
    then: impl FnOnce(&mut Home, &mut Core<F>),
) {
    if let Some(home) = slot {
        then(home, core);
        if home.is_over() {
            *slot = None;
        }
    }
}

fn free_slot<T>(slots: &mut Vec<Option<T>>) -> usize {
    let free = slots.iter().position(Option::is_none);
    free.unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    })
}

fn path_error(reason: &CloseReason) -> PathError {
    match reason {
        CloseReason::Rejected(private_data) => PathError::from_reject(private_data.as_bytes()),
        CloseReason::Refused => PathError::Refused,
        CloseReason::Unreachable => PathError::Unreachable,
        CloseReason::TimedOut => PathError::TimedOut,
        CloseReason::PeerClosed => PathError::PeerClosed,
        CloseReason::Local => PathError::Requested,
        CloseReason::Violation(what) | CloseReason::Failed(what) => PathError::Fabric(what),
    }
}

/// What a completed receive is to RTRS; `buffer` is the memory of a receive that has some.
pub(crate) fn arrival(kind: CompletionKind, buffer: Option<Span>) -> Option<Arrival> {
    match kind {
        CompletionKind::Sent => None,
        CompletionKind::WriteImm(imm) => Some(Arrival::Immediate(imm)),
        CompletionKind::Recv {
            bytes: len,
            imm,
            invalidated,
        } => {
            let mut bytes = [0; RkeyRsp::BYTES];
            if let Some(buffer) = buffer {
                buffer.read_at(0, &mut bytes);
            }
            Some(Arrival::Message {
                imm,
                invalidated,
                len,
                bytes,
            })
        }
    }
}

impl<F: Fabric> Poll for InitiatorShard<F> {
    fn poll(&mut self, now: Nanos) -> Progress {
        self.core.now = now;
        let progress = self.take_messages().or(self.submit());
        let progress = progress.or(self.take_completions()).or(self.take_events());
        self.run_timers();
        if self.core.outbox.is_empty() {
            progress
        } else {
            progress.or(self.core.flush_outbox())
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let channels = self.channels.iter().flatten();
        let homes = self.homes.iter().flatten();
        channels
            .filter_map(CoreChannel::next_deadline)
            .chain(homes.filter_map(Home::next_deadline))
            .chain(self.core.fabric.next_deadline())
            .min()
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        let has_work = !self.core.local.is_empty()
            || !self.core.outbox.is_empty()
            || !self.inbox.is_empty()
            || self.channels.iter().flatten().any(CoreChannel::has_work);
        self.core.fabric.prepare_sleep(fds) && !has_work
    }
}

impl<F: Fabric> fmt::Debug for InitiatorShard<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitiatorShard")
            .field("core", &self.core.index)
            .field("fabric", &self.core.fabric)
            .finish_non_exhaustive()
    }
}
