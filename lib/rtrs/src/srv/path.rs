//! One path of a session; its states are in [`PathState`].

use rnbd_base::{Errno, Nanos};
use rnbd_wire::extension::{Agreement, Features, PathToken};
use rnbd_wire::rtrs::{ConReq, InfoReq, PathParameters};
use rnbd_wire::{Imm, ImmLayout, Name};

use super::answer::Answer;
use super::config::Config;
use super::counters::PathCounters;
use super::fence::Confirmation;
use super::sessions::{PathKey, Route, SessionKey};
use super::slot::{Direction, Request, Slot, SlotState};
use super::state::PathState;
use super::violation::{CloseCause, Violation};
use crate::heartbeat::{Beat, Heartbeat, HeartbeatConfig};

/// Shortest RTRS message; an offset must leave room for it.
const MESSAGE_BYTES_MIN: u32 = 4;

/// A path: its connections, and the request in each of its chunks.
#[derive(Debug)]
pub struct Path {
    session: SessionKey,
    uuid: [u8; 16],
    recon_cnt: u16,
    route: Route,
    state: PathState,
    cause: Option<CloseCause>,
    config: Config,
    layout: ImmLayout,
    cons: Box<[ConState]>,
    /// Made when the path comes up: before that no request is valid.
    slots: Box<[Slot]>,
    busy: u32,
    handshake_deadline: Nanos,
    heartbeat: Option<Heartbeat>,
    agreement: Option<Agreement>,
    fence_askers: Vec<PathKey>,
    counters: PathCounters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConState {
    Absent,
    Up,
    Gone,
}

/// What an immediate asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Nothing to do.
    Nothing,
    /// Send [`Imm::HEARTBEAT_ACK`] on connection 0.
    AckHeartbeat,
    /// Copy the header at `offset` out of the chunk and pass it to [`Path::handle_header`].
    Request {
        /// The chunk.
        msg_id: u16,
        /// Where in it.
        offset: u32,
    },
    /// Pass the token to [`Sessions::handle_fence`](super::Sessions::handle_fence).
    Fence(PathToken),
    /// Nothing that is known or due here.
    Ignored {
        /// It is the path's first: worth a line in the log.
        first: bool,
    },
    /// Close the chunk to the client first, on the connection of the immediate; then call
    /// [`Path::handle_revoked`]. Where that takes a while, [`Path::handle_open_header`] may do.
    Revoke {
        /// The chunk.
        msg_id: u16,
        /// Where in it the header is.
        offset: u32,
    },
}

/// What a timer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerAction {
    /// Nothing.
    Nothing,
    /// Send [`Imm::HEARTBEAT`] on connection 0.
    SendHeartbeat,
    /// Close the path.
    Close(CloseCause),
}

impl Path {
    pub(super) fn new(
        session: SessionKey,
        request: &ConReq,
        route: Route,
        config: Config,
        agreement: Option<Agreement>,
        now: Nanos,
    ) -> Self {
        let layout = ImmLayout::new(config.queue_depth)
            .expect("a configuration with queue depth 0 is never validated");
        Self {
            session,
            uuid: request.sess_uuid,
            recon_cnt: request.recon_cnt,
            route,
            state: PathState::Connecting,
            cause: None,
            config,
            layout,
            cons: vec![ConState::Absent; usize::from(request.cid_num)].into(),
            slots: Box::default(),
            busy: 0,
            handshake_deadline: now + config.handshake_timeout,
            heartbeat: None,
            agreement,
            fence_askers: Vec::new(),
            counters: PathCounters::default(),
        }
    }

    // Requests.

    /// An immediate arrived on connection `cid`.
    ///
    /// # Errors
    /// The violation; the caller closes the path.
    pub fn handle_imm(&mut self, cid: u16, imm: u32, now: Nanos) -> Result<Inbound, Violation> {
        match self.state {
            PathState::Connected => (),
            PathState::Connecting => return Err(Violation::OutOfTurn),
            PathState::Closing | PathState::Closed => return Ok(Inbound::Nothing),
        }
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.on_receive();
        }
        match self.layout.decode(imm) {
            Imm::Request { msg_id, offset } => self.on_request(cid, msg_id, offset),
            Imm::Heartbeat if cid == 0 => Ok(Inbound::AckHeartbeat),
            Imm::HeartbeatAck if cid == 0 => Ok(self.on_heartbeat_ack(now)),
            Imm::Heartbeat | Imm::HeartbeatAck => Ok(Inbound::Nothing),
            Imm::Fence(token) if cid == 0 && self.has_agreed(Features::FENCE) => {
                self.counters.fences += 1;
                Ok(Inbound::Fence(token))
            }
            Imm::Response { .. } | Imm::Fence(_) | Imm::Fenced(_) | Imm::Unknown { .. } => {
                Ok(self.on_unknown())
            }
        }
    }

    /// The chunk is closed to the client now; returns where its header is. `None` if the path is
    /// closing and the request is dropped.
    pub fn handle_revoked(&mut self, msg_id: u16) -> Option<u32> {
        let connected = self.state == PathState::Connected;
        let slot = self.slots.get_mut(usize::from(msg_id))?;
        if !connected || slot.state != SlotState::Revoking {
            return None;
        }
        slot.state = SlotState::Arrived;
        Some(slot.offset)
    }

    /// The header at the request's offset, copied out of the chunk: as many bytes as a header can
    /// have, or fewer where the chunk ends. The request is in flight afterwards, until
    /// [`Path::answer`]; an errno is to be answered at once.
    ///
    /// # Errors
    /// The violation; the caller closes the path.
    pub fn handle_header(
        &mut self,
        msg_id: u16,
        header: &[u8],
    ) -> Result<Result<Request, Errno>, Violation> {
        let slot = self
            .slots
            .get_mut(usize::from(msg_id))
            .filter(|slot| slot.state == SlotState::Arrived)
            .ok_or(Violation::OutOfTurn)?;
        let outcome = slot.handle_header(msg_id, header)?;
        let bytes = u64::from(slot.offset);
        self.busy += 1;
        self.count_request(&outcome, bytes);
        Ok(outcome)
    }

    /// As [`Path::handle_header`], for a chunk that is not closed to the client yet. `None` if it has
    /// to be, before anything else is done: for all but READs and WRITEs of at most `copied_max` bytes.
    ///
    /// A READ can be served at once: what its client still writes into the chunk it does to its own
    /// data. So can a WRITE whose data the caller copies out of the chunk and takes from there. The bind
    /// that opens the chunk again with the answer ends the old key.
    ///
    /// # Errors
    /// As for [`Path::handle_header`].
    pub fn handle_open_header(
        &mut self,
        msg_id: u16,
        header: &[u8],
        copied_max: u32,
    ) -> Result<Option<Result<Request, Errno>>, Violation> {
        let slot = self.slots.get(usize::from(msg_id));
        let may_stay_open = slot.is_some_and(|slot| slot.may_stay_open(header, copied_max));
        if !may_stay_open || self.handle_revoked(msg_id).is_none() {
            return Ok(None);
        }
        self.handle_header(msg_id, header).map(Some)
    }

    /// Ends a request. `None` if the path is closing: the answer is dropped.
    ///
    /// # Panics
    /// If no such request is in flight: the caller answered twice, which would complete some other
    /// request of the client (protocol.md 12.2).
    pub fn answer(&mut self, msg_id: u16, status: Result<(), Errno>) -> Option<Answer> {
        let slot = &mut self.slots[usize::from(msg_id)];
        assert_eq!(slot.state, SlotState::Busy, "chunk {msg_id} answered twice");
        let answer = Answer::new(msg_id, slot, status);
        *slot = Slot::FREE;
        self.busy -= 1;
        if self.state != PathState::Connected {
            return None;
        }
        if self.config.new_rkey {
            self.counters.rkey_refreshes += 1;
        }
        Some(answer)
    }

    /// The connection that an answer to this request goes out on.
    #[must_use]
    pub fn cid_of(&self, msg_id: u16) -> u16 {
        self.slots[usize::from(msg_id)].cid
    }

    fn on_request(&mut self, cid: u16, msg_id: u16, offset: u32) -> Result<Inbound, Violation> {
        let slot = self
            .slots
            .get_mut(usize::from(msg_id))
            .ok_or(Violation::ChunkIndex)?;
        if offset > self.config.chunk_bytes - MESSAGE_BYTES_MIN {
            return Err(Violation::ChunkOffset);
        }
        if slot.state != SlotState::Free {
            return Err(Violation::ChunkBusy);
        }
        let revoke = self.config.new_rkey;
        *slot = Slot {
            state: if revoke {
                SlotState::Revoking
            } else {
                SlotState::Arrived
            },
            cid,
            offset,
            ..Slot::FREE
        };
        Ok(if revoke {
            Inbound::Revoke { msg_id, offset }
        } else {
            Inbound::Request { msg_id, offset }
        })
    }

    fn on_heartbeat_ack(&mut self, now: Nanos) -> Inbound {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.on_ack(now);
        }
        Inbound::Nothing
    }

    fn on_unknown(&mut self) -> Inbound {
        self.counters.ignored += 1;
        Inbound::Ignored {
            first: self.counters.ignored == 1,
        }
    }

    fn count_request(&mut self, outcome: &Result<Request, Errno>, bytes: u64) {
        let counters = &mut self.counters;
        match outcome.map(|request| request.direction) {
            Ok(Direction::Read) => {
                counters.reads += 1;
                counters.read_bytes += bytes;
            }
            Ok(Direction::Write) => {
                counters.writes += 1;
                counters.write_bytes += bytes;
            }
            Err(_) => counters.refused += 1,
        }
    }

    // Handshake.

    /// Whether connection `cid` of this request can join.
    pub(super) fn may_join(&self, request: &ConReq) -> bool {
        self.state == PathState::Connecting
            && usize::from(request.cid_num) == self.cons.len()
            && self.cons[usize::from(request.cid)] == ConState::Absent
    }

    pub(super) fn join(&mut self, cid: u16, now: Nanos) {
        self.cons[usize::from(cid)] = ConState::Up;
        self.handshake_deadline = now + self.config.handshake_timeout;
    }

    /// Takes INFO_REQ as far as one path can judge it.
    pub(super) fn check_info_req(&self, message: &[u8]) -> Result<Name, Violation> {
        if self.state != PathState::Connecting {
            return Err(Violation::OutOfTurn);
        }
        if self.cons.iter().any(|&con| con != ConState::Up) {
            return Err(Violation::ConnectionsMissing);
        }
        InfoReq::decode(message)
            .map(|info| info.pathname)
            .map_err(|_| Violation::InfoReq)
    }

    pub(super) fn on_connected(&mut self, now: Nanos) {
        self.set_state(PathState::Connected);
        self.slots = vec![Slot::FREE; usize::from(self.config.queue_depth)].into();
        self.heartbeat = Some(Heartbeat::start(self.heartbeat_config(), now));
    }

    // Time.

    /// To be called at [`Path::next_deadline`] or later.
    pub fn handle_timer(&mut self, now: Nanos) -> TimerAction {
        match self.state {
            PathState::Connecting if now >= self.handshake_deadline => {
                TimerAction::Close(CloseCause::HandshakeTimeout)
            }
            PathState::Connected => self.on_heartbeat_timer(now),
            _ => TimerAction::Nothing,
        }
    }

    /// When [`Path::handle_timer`] is due; `None` if only outside events matter.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        match self.state {
            PathState::Connecting => Some(self.handshake_deadline),
            PathState::Connected => self.heartbeat.as_ref().map(Heartbeat::deadline),
            PathState::Closing | PathState::Closed => None,
        }
    }

    fn on_heartbeat_timer(&mut self, now: Nanos) -> TimerAction {
        let Some(heartbeat) = &mut self.heartbeat else {
            return TimerAction::Nothing;
        };
        let missed = heartbeat.missed();
        let beat = heartbeat.on_timer(now);
        if missed > 0 && heartbeat.missed() > missed {
            self.counters.hb_missed += 1;
        }
        match beat {
            Beat::Rest => TimerAction::Nothing,
            Beat::Send => {
                self.counters.hb_sent += 1;
                TimerAction::SendHeartbeat
            }
            Beat::Dead => TimerAction::Close(CloseCause::HeartbeatTimeout),
        }
    }

    // End.

    /// Starts to close. Returns whether it was open; if so, the caller disconnects all its
    /// connections. The first cause is kept.
    pub fn close(&mut self, cause: CloseCause) -> bool {
        if !self.state.may_become(PathState::Closing) {
            return false;
        }
        self.cause = Some(cause);
        self.set_state(PathState::Closing);
        self.drop_unread();
        true
    }

    /// Connection `cid` is gone.
    pub fn handle_con_closed(&mut self, cid: u16) {
        if let Some(con) = self.cons.get_mut(usize::from(cid)) {
            *con = ConState::Gone;
        }
    }

    /// Whether a closing path has no connection and no I/O left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.state == PathState::Closing && self.busy == 0 && self.cons_up() == 0
    }

    pub(super) fn on_drained(&mut self) {
        self.set_state(PathState::Closed);
    }

    /// Requests that were not looked at yet die with their connections.
    fn drop_unread(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.state, SlotState::Revoking | SlotState::Arrived) {
                *slot = Slot::FREE;
            }
        }
    }

    fn set_state(&mut self, next: PathState) {
        assert!(
            self.state.may_become(next),
            "a path cannot become {next:?} when {:?}",
            self.state
        );
        self.state = next;
    }

    // The fence.

    pub(super) fn add_fence_asker(&mut self, asker: PathKey) {
        if !self.fence_askers.contains(&asker) {
            self.fence_askers.push(asker);
        }
    }

    pub(super) fn take_confirmation(&mut self) -> Option<Confirmation> {
        let askers = std::mem::take(&mut self.fence_askers);
        let token = self.token().filter(|_| !askers.is_empty())?;
        Some(Confirmation { token, askers })
    }

    // Looks.

    /// What is told to the client with every accept.
    #[must_use]
    pub fn parameters(&self) -> PathParameters {
        PathParameters {
            extension: self.agreement,
            ..self.config.path_parameters()
        }
    }

    /// Names this life of the path to a client that knows the extension.
    #[must_use]
    pub fn token(&self) -> Option<PathToken> {
        self.agreement.map(|agreement| agreement.token)
    }

    /// Whether this is agreed with the client beside the kernel's protocol.
    #[must_use]
    pub fn has_agreed(&self, feature: Features) -> bool {
        self.agreement
            .is_some_and(|agreement| agreement.features.contains(feature))
    }

    /// How the client's silence is noticed.
    #[must_use]
    pub fn heartbeat_config(&self) -> HeartbeatConfig {
        match (self.agreement, self.config.extension) {
            (Some(_), Some(extension)) => extension.heartbeat,
            _ => self.config.heartbeat,
        }
    }

    /// Paths over which the client waits for the end of this one.
    #[must_use]
    pub fn fence_askers(&self) -> usize {
        self.fence_askers.len()
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> PathState {
        self.state
    }

    /// Why it closes or closed.
    #[must_use]
    pub fn cause(&self) -> Option<CloseCause> {
        self.cause
    }

    /// Its session.
    #[must_use]
    pub fn session(&self) -> SessionKey {
        self.session
    }

    /// Its identity over all reconnects.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Which attempt of the client it came from.
    #[must_use]
    pub fn recon_cnt(&self) -> u16 {
        self.recon_cnt
    }

    /// Its two ends.
    #[must_use]
    pub fn route(&self) -> Route {
        self.route
    }

    /// Connections that the client announced.
    #[must_use]
    pub fn cid_num(&self) -> u16 {
        u16::try_from(self.cons.len()).unwrap_or(u16::MAX)
    }

    /// Connections that are up.
    #[must_use]
    pub fn cons_up(&self) -> usize {
        self.cons.iter().filter(|&&con| con == ConState::Up).count()
    }

    /// Requests in flight.
    #[must_use]
    pub fn inflight(&self) -> u32 {
        self.busy
    }

    /// Chunks that no request is in.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        let is_free = |slot: &&Slot| slot.state == SlotState::Free;
        self.slots.iter().filter(is_free).count()
    }

    /// What it counted.
    #[must_use]
    pub fn counters(&self) -> PathCounters {
        self.counters
    }

    /// Starts counting from zero.
    pub fn reset_counters(&mut self) {
        self.counters = PathCounters::default();
    }

    /// Its heartbeat; `None` before the handshake is complete.
    #[must_use]
    pub fn heartbeat(&self) -> Option<&Heartbeat> {
        self.heartbeat.as_ref()
    }
}
