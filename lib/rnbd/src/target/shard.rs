use std::fmt;
use std::os::fd::RawFd;

use rnbd_base::{CoreIndex, Nanos, Poll, Progress, Receiver, Sender, mailbox};
use rnbd_bdev::IoDone;
use rnbd_fabric::{Caps, CloseReason, Completion, CompletionKind, ConnId, Event, Fabric};
use rnbd_rtrs::srv::{CloseCause, Path, PathKey, SessionKey, Sessions};

use super::acceptor::{Handover, Listener};
use super::build::{Services, TargetConfig};
use super::command::Command;
use super::device_io::Service;
use super::devices::Found;
use super::directory::TransportId;
use super::late_opens::LateOpen;
use super::path_io::PathIo;
use super::teardown::Wait;
use super::wr_id::WrId;

/// Completions taken from the fabric at a time.
const COMPLETIONS_MAX: usize = 512;
/// I/Os taken from one device at a time.
const DONE_MAX: usize = 512;
/// Opened files that may wait to be taken.
pub(super) const FOUND_MAX: usize = 64;
/// How often devices are asked whether they were removed, while there is other work.
const LOOK_INTERVAL: Nanos = Nanos::from_millis(1);
/// And while there is none.
const IDLE_LOOK_INTERVAL: Nanos = Nanos::from_millis(100);

/// What one core serves of a transport.
///
/// One round takes commands, then what the fabric delivers, then what the devices completed, and
/// sends all answers with one doorbell. A device that completes at once is answered in the round
/// that its request arrived in.
pub struct TargetShard<F: Fabric> {
    pub(super) config: TargetConfig,
    pub(super) services: Services,
    pub(super) core: CoreIndex,
    pub(super) fabric: F,
    pub(super) caps: Caps,
    pub(super) peers: Peers<F>,
    pub(super) listeners: Vec<Listener>,
    pub(super) sessions: Sessions,
    /// By [`PathKey::index`].
    pub(super) paths: Vec<Option<PathIo>>,
    /// By [`SessionKey::index`].
    pub(super) clients: Vec<Option<Service>>,
    /// By [`ConnId::index`].
    pub(super) cons: Vec<Option<ConEntry>>,
    /// Devices with I/O outstanding: session index and place.
    pub(super) active: Vec<(usize, usize)>,
    pub(super) waits: Vec<Wait>,
    pub(super) late_opens: Vec<LateOpen>,
    pub(super) found_sender: Sender<Found>,
    pub(super) pending_opens: usize,
    pub(super) timer_at: Nanos,
    pub(super) counters: ShardCounters,
    commands: Receiver<Command>,
    handovers: Receiver<Handover<F>>,
    found: Receiver<Found>,
    look_at: Nanos,
    completions: Vec<Completion>,
    done: Vec<IoDone>,
}

/// What a connection of the fabric is to us.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConEntry {
    pub(super) conn: ConnId,
    pub(super) path: PathKey,
    pub(super) cid: u16,
}

/// The other shards of the transport.
pub(super) struct Peers<F: Fabric> {
    pub(super) transport: TransportId,
    /// Which of them this one is.
    pub(super) shard: usize,
    pub(super) handovers: Vec<Sender<Handover<F>>>,
}

/// What a shard counts for itself.
#[derive(Clone, Debug, Default)]
pub(super) struct ShardCounters {
    pub(super) completed_io: u64,
    pub(super) violations: u64,
}

/// What a shard is made from.
pub(super) struct ShardParts<F: Fabric> {
    pub(super) config: TargetConfig,
    pub(super) services: Services,
    pub(super) core: super::build::CoreParts<F>,
    pub(super) peers: Peers<F>,
    pub(super) commands: Receiver<Command>,
    pub(super) handovers: Receiver<Handover<F>>,
}

impl<F: Fabric> TargetShard<F> {
    pub(super) fn new(parts: ShardParts<F>) -> Self {
        let (found_sender, found) = mailbox(FOUND_MAX, parts.core.wake);
        let tokens = parts.services.directory.tokens();
        let sessions = Sessions::new(parts.config.rtrs, tokens)
            .expect("build() has validated the configuration of all shards");
        Self {
            config: parts.config,
            services: parts.services,
            core: parts.core.core,
            caps: parts.core.fabric.caps(),
            fabric: parts.core.fabric,
            peers: parts.peers,
            listeners: Vec::new(),
            sessions,
            paths: Vec::new(),
            clients: Vec::new(),
            cons: Vec::new(),
            active: Vec::new(),
            waits: Vec::new(),
            late_opens: Vec::new(),
            found_sender,
            pending_opens: 0,
            timer_at: Nanos::MAX,
            counters: ShardCounters::default(),
            commands: parts.commands,
            handovers: parts.handovers,
            found,
            look_at: Nanos::ZERO,
            completions: Vec::with_capacity(COMPLETIONS_MAX),
            done: Vec::with_capacity(DONE_MAX),
        }
    }

    // One round.

    fn take_messages(&mut self, now: Nanos) -> Progress {
        let mut worked = false;
        while let Some(command) = self.commands.take() {
            self.handle_command(command, now);
            worked = true;
        }
        while let Some(handover) = self.handovers.take() {
            self.handle_handover(handover, now);
            worked = true;
        }
        while let Some(found) = self.found.take() {
            self.handle_found(found, now);
            worked = true;
        }
        Progress::from_work(worked)
    }

    fn poll_fabric(&mut self, now: Nanos) -> Progress {
        let mut completions = std::mem::take(&mut self.completions);
        let mut progress = self.fabric.poll(now, &mut completions);
        for completion in completions.drain(..) {
            self.handle_completion(&completion, now);
            progress = Progress::Busy;
        }
        self.completions = completions;
        while let Some(event) = self.fabric.next_event() {
            self.handle_event(event, now);
            progress = Progress::Busy;
        }
        progress
    }

    fn handle_completion(&mut self, completion: &Completion, now: Nanos) {
        let Some(con) = self.con_entry(completion.conn) else {
            return;
        };
        let wr_id = WrId::decode(completion.wr_id);
        match (completion.kind, wr_id) {
            (CompletionKind::WriteImm(imm), _) => self.handle_imm(con, imm, now),
            (CompletionKind::Sent, WrId::Executed { count, device }) => {
                self.handle_executed(con, count, device, now);
            }
            (CompletionKind::Sent, WrId::Revoked { msg_id }) => {
                self.handle_revoked(con, msg_id, now);
            }
            (CompletionKind::Recv { bytes, .. }, WrId::InfoReq) => {
                self.handle_info_req(con, bytes, now);
            }
            (CompletionKind::Recv { .. }, _) => self.handle_unexpected(con, now),
            (CompletionKind::Sent, _) => (),
        }
    }

    fn handle_event(&mut self, event: Event, now: Nanos) {
        match event {
            Event::ConnectRequest {
                listener,
                conn,
                private_data,
                src,
                dst,
            } => self.handle_connect_request(listener, conn, private_data, (src, dst), now),
            Event::Closed { conn, reason } => self.handle_closed(conn, reason, now),
            Event::Connected { conn, .. } => self.fabric.disconnect(conn),
        }
    }

    fn handle_closed(&mut self, conn: ConnId, reason: CloseReason, now: Nanos) {
        let Some(con) = self.con_entry(conn) else {
            return;
        };
        self.cons[index_of(conn)] = None;
        if let Some(path) = self.sessions.path_mut(con.path) {
            path.handle_con_closed(con.cid);
        }
        self.close_path(con.path, cause_of(&reason));
        if let Some(io) = self.path_io(con.path)
            && io.remove_con(con.cid)
        {
            let session = io.session;
            self.end_drained_devices(session, now);
        }
        self.remove_if_drained(con.path, now);
    }

    /// Takes what the devices completed and answers it.
    fn poll_devices(&mut self, now: Nanos) -> Progress {
        let mut progress = Progress::Idle;
        let mut done = std::mem::take(&mut self.done);
        let mut at = 0;
        while let Some(&(client, place)) = self.active.get(at) {
            let outstanding = match self.device_io(client, place) {
                Some(device) => {
                    progress = progress.or(device.channel.poll(now, &mut done));
                    device.listed = device.channel.outstanding() > 0;
                    device.listed
                }
                None => false,
            };
            if outstanding {
                at += 1;
            } else {
                self.active.swap_remove(at);
            }
            for ended in done.drain(..) {
                self.handle_io_done(ended, now);
                progress = Progress::Busy;
            }
        }
        self.done = done;
        progress
    }

    // Lookups.

    /// A path and what is needed to serve it.
    pub(super) fn path_parts(&mut self, key: PathKey) -> Option<(&mut Path, &mut PathIo, &mut F)> {
        let path = self.sessions.path_mut(key)?;
        let io = self.paths.get_mut(key.index as usize)?.as_mut()?;
        (io.key == key).then_some((path, io, &mut self.fabric))
    }

    pub(super) fn con_entry(&self, conn: ConnId) -> Option<ConEntry> {
        let entry = (*self.cons.get(index_of(conn))?)?;
        (entry.conn == conn).then_some(entry)
    }

    pub(super) fn path_io(&mut self, key: PathKey) -> Option<&mut PathIo> {
        let io = self.paths.get_mut(key.index as usize)?.as_mut()?;
        (io.key == key).then_some(io)
    }

    pub(super) fn client(&mut self, key: SessionKey) -> Option<&mut Service> {
        let client = self.clients.get_mut(key.index as usize)?.as_mut()?;
        (client.key == key).then_some(client)
    }

    fn device_io(
        &mut self,
        client: usize,
        place: usize,
    ) -> Option<&mut super::device_io::DeviceIo> {
        self.clients.get_mut(client)?.as_mut()?.device_mut(place)
    }

    fn has_devices(&self) -> bool {
        let mut clients = self.clients.iter().flatten();
        clients.any(|client| client.devices.iter().any(Option::is_some))
    }
}

impl<F: Fabric> Poll for TargetShard<F> {
    fn poll(&mut self, now: Nanos) -> Progress {
        let mut progress = self.take_messages(now);
        progress = progress.or(self.poll_fabric(now));
        progress = progress.or(self.poll_devices(now));
        if now >= self.timer_at {
            self.handle_timers(now);
        }
        if now >= self.look_at {
            self.look_at_devices(now);
            self.look_at = now + LOOK_INTERVAL;
        }
        self.fabric.flush(now);
        progress
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let look_at = self
            .has_devices()
            .then_some(self.look_at + IDLE_LOOK_INTERVAL);
        let devices = self.active.iter().filter_map(|&(client, place)| {
            let client = self.clients.get(client)?.as_ref()?;
            client.devices.get(place)?.as_ref()?.channel.next_deadline()
        });
        let timer = (self.timer_at < Nanos::MAX).then_some(self.timer_at);
        devices
            .chain(self.fabric.next_deadline())
            .chain(timer)
            .chain(look_at)
            .min()
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        let mut may_sleep = self.fabric.prepare_sleep(fds);
        for at in 0..self.active.len() {
            let (client, place) = self.active[at];
            if let Some(device) = self.device_io(client, place) {
                may_sleep &= device.channel.prepare_sleep(fds);
            }
        }
        may_sleep
    }
}

pub(super) fn index_of(conn: ConnId) -> usize {
    conn.index as usize
}

fn cause_of(reason: &CloseReason) -> CloseCause {
    CloseCause::ConnectionLost(match reason {
        CloseReason::PeerClosed => return CloseCause::ClientClosed,
        CloseReason::Rejected(_) => "rejected",
        CloseReason::Refused => "refused",
        CloseReason::Unreachable => "unreachable",
        CloseReason::TimedOut => "timed out",
        CloseReason::Local => "closed here",
        CloseReason::Violation(what) | CloseReason::Failed(what) => what,
    })
}

impl<F: Fabric> fmt::Debug for TargetShard<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetShard")
            .field("core", &self.core)
            .field("fabric", &self.fabric)
            .field("sessions", &self.sessions.iter().count())
            .finish_non_exhaustive()
    }
}
