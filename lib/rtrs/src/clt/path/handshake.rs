//! The handshake of a path, one step after another.

use std::sync::Arc;

use rnbd_base::Nanos;
use rnbd_wire::Imm;
use rnbd_wire::extension::Features;
use rnbd_wire::rtrs::{ConReq, InfoRsp};

use super::{Intent, Path, Stage};
use crate::Heartbeat;
use crate::clt::config::SessionConfig;
use crate::clt::context::{Context, Reference};
use crate::clt::error::{PathError, Violation};
use crate::clt::messages::{Attempt, FromChannel, ToChannel};
use crate::clt::outputs::{QueueSizes, SessionAction};
use crate::clt::params::{ChunkTable, PathParams};
use crate::clt::path_state::PathState;
use crate::clt::permits::PermitPlan;

impl Path {
    /// Starts an attempt; nothing of an earlier one is left.
    ///
    /// While another path is up, the server is not to create the session: if it does not know it
    /// any more, that other path is dead too, and no device is open.
    pub(in crate::clt) fn start(&mut self, cx: &mut Context<'_>) {
        self.set_state(PathState::Connecting, cx);
        *cx.last_attempt = cx.last_attempt.next();
        self.attempt = *cx.last_attempt;
        self.recon_cnt = self.recon_cnt.wrapping_add(1);
        self.intent = Intent::Retry;
        self.params = None;
        self.unanswered = 0;
        self.first_conn = !cx.others_up;
        self.stage = Stage::Connecting(0);
        self.open[0] = true;
        let timeout = self.patience(cx.config);
        self.deadline = Some(cx.now + timeout);
        cx.out.act(SessionAction::Connect {
            path: self.index,
            request: self.con_req(0, cx.config),
            sizes: QueueSizes::SERVICE,
            timeout,
        });
    }

    /// How long the first connection of an attempt may take. A lost path is often tried again
    /// before its server is back, and a question that is lost then is repeated late by the fabric:
    /// over RDMA after 4.3 s. Asking anew is faster; a server that only is slow gets twice the time
    /// with each attempt.
    fn patience(&self, config: &SessionConfig) -> Nanos {
        const FIRST: Nanos = Nanos::from_secs(1);
        const DOUBLINGS_MAX: u32 = 16;
        if !self.was_up {
            return config.connect_timeout;
        }
        let doublings = self.reconnect.attempts().saturating_sub(1);
        Nanos(FIRST.0 << doublings.min(DOUBLINGS_MAX)).min(config.connect_timeout)
    }

    fn con_req(&self, cid: u16, config: &SessionConfig) -> ConReq {
        #[expect(clippy::cast_possible_truncation, reason = "made of a u16 and one")]
        let cid_num = self.open.len() as u16;
        ConReq {
            cid,
            cid_num,
            recon_cnt: self.recon_cnt,
            sess_uuid: self.uuid,
            paths_uuid: self.session_uuid,
            first_conn: self.first_conn || cid > 0,
            extension: config.offer_fence.then_some(Features::FENCE),
        }
    }

    /// Connection 0 is up. `reference` is what the session's requests are made for, and whether
    /// they can still be made for something else.
    pub(in crate::clt) fn on_connected(
        &mut self,
        private_data: &[u8],
        reference: Option<&Reference>,
        cx: &mut Context<'_>,
    ) {
        if self.stage != Stage::Connecting(0) {
            return;
        }
        let accepted = PathParams::from_accept(private_data);
        if let Ok(params) = &accepted {
            self.on_accepted(params, cx);
        }
        let checked = accepted.and_then(|params| Self::check(params, reference, cx.config));
        match checked {
            Ok(params) => {
                self.params = Some(params);
                self.connect_channel(0, params, cx);
            }
            Err(error) => self.fail(error, cx),
        }
    }

    /// The server has made a new path of it, so nothing of the life before this one is left there.
    fn on_accepted(&mut self, params: &PathParams, cx: &mut Context<'_>) {
        let instance = params.agreement.map(|agreement| agreement.instance);
        cx.fences.on_accepted(self.index, self.server, instance);
        self.instance = instance;
    }

    fn check(
        params: PathParams,
        reference: Option<&Reference>,
        config: &SessionConfig,
    ) -> Result<PathParams, PathError> {
        if let Some(reference) = reference {
            reference.check(&params)?;
        }
        PermitPlan::new(config.usable_depth(params.queue_depth), config.channels)?;
        Ok(params)
    }

    fn connect_channel(&mut self, channel: u16, params: PathParams, cx: &mut Context<'_>) {
        self.stage = Stage::Connecting(channel + 1);
        self.open[usize::from(channel) + 1] = true;
        self.deadline = Some(cx.now + cx.config.connect_timeout);
        let message = ToChannel::Connect {
            path: self.index,
            attempt: self.attempt,
            request: self.con_req(channel + 1, cx.config),
            params,
        };
        cx.out.act(SessionAction::ToChannel { channel, message });
    }

    /// A channel reports on its connection.
    pub(in crate::clt) fn on_channel(
        &mut self,
        channel: u16,
        message: FromChannel,
        cx: &mut Context<'_>,
    ) {
        match message {
            FromChannel::Connected {
                attempt, params, ..
            } if attempt == self.attempt => {
                self.on_channel_connected(channel, &params, cx);
            }
            FromChannel::Closed {
                attempt,
                error,
                unanswered,
                ..
            } if attempt == self.attempt => {
                self.on_end_of_connection(channel + 1, error, unanswered.into(), cx);
            }
            FromChannel::Heard { attempt, .. } if attempt == self.attempt => self.on_heard(),
            _ => {}
        }
    }

    fn on_channel_connected(&mut self, channel: u16, said: &PathParams, cx: &mut Context<'_>) {
        let (Stage::Connecting(cid), Some(params)) = (self.stage, self.params) else {
            return;
        };
        if cid != channel + 1 {
            return;
        }
        if *said != params {
            let what = "other parameters than on the first connection";
            self.fail(Violation::ConnectionResponse(what).into(), cx);
        } else if cid < cx.config.channels {
            self.connect_channel(cid, params, cx);
        } else {
            self.ask_for_info(&params, cx);
        }
    }

    fn ask_for_info(&mut self, params: &PathParams, cx: &mut Context<'_>) {
        self.stage = Stage::AwaitingInfo;
        self.deadline = Some(cx.now + cx.config.connect_timeout);
        let path = self.index;
        let bytes = InfoRsp::bytes(params.queue_depth);
        cx.out.act(SessionAction::PostInfoReceive { path, bytes });
        cx.out.act(SessionAction::SendInfo { path });
    }

    /// The receive of `INFO_RSP` completed.
    pub(in crate::clt) fn on_info_rsp(&mut self, message: &[u8], cx: &mut Context<'_>) {
        let (Stage::AwaitingInfo, Some(params)) = (self.stage, self.params) else {
            return;
        };
        match ChunkTable::from_info_rsp(message, &params) {
            Ok(chunks) => {
                let said = InfoRsp::decode(message).ok().and_then(InfoRsp::service);
                self.service = params.agreement.and(said);
                self.join(&params, chunks, cx);
            }
            Err(violation) => self.fail(violation.into(), cx),
        }
    }

    /// The handshake is done. What the first path of a session finds at the server is what its
    /// devices are opened in; another one has to belong to the same.
    fn join(&mut self, params: &PathParams, chunks: ChunkTable, cx: &mut Context<'_>) {
        let path = self.index;
        self.stage = Stage::Joining;
        self.deadline = None;
        self.chunks = Some(Arc::new(chunks));
        self.witnesses.clear();
        let heartbeat = cx.config.heartbeat_of(Some(params));
        self.heartbeat = Some(Heartbeat::start(heartbeat, cx.now));
        cx.out.act(SessionAction::PostReceives {
            path,
            count: QueueSizes::SERVICE.recv,
            bytes: QueueSizes::SERVICE.recv_bytes(params),
        });
        if !cx.others_up {
            self.admit(cx);
        }
    }

    /// No other path is up any more. Whoever has to know that is told before this one is used.
    pub(in crate::clt) fn hurry(&mut self, now: Nanos) {
        self.deadline.get_or_insert(now + Nanos(1));
    }

    pub(in crate::clt) fn is_hurried(&self) -> bool {
        self.deadline.is_some()
    }

    /// See [`Path::hurry`]; another path may have been faster.
    pub(in crate::clt) fn on_alone(&mut self, cx: &mut Context<'_>) {
        if !cx.others_up {
            self.admit(cx);
        }
    }

    /// The server has this path and the others, or only this one: it can be used.
    pub(in crate::clt) fn admit(&mut self, cx: &mut Context<'_>) {
        let (Some(params), Some(chunks)) = (self.params, self.chunks.take()) else {
            return;
        };
        let path = self.index;
        self.stage = Stage::Idle;
        self.deadline = None;
        self.reconnect.reset();
        self.reconnects_ok += u64::from(self.was_up);
        self.was_up = true;
        cx.lane.path_up(path, &params, &chunks);
        for channel in 0..cx.config.channels {
            let message = ToChannel::Up {
                path,
                attempt: self.attempt,
                chunks: Arc::clone(&chunks),
            };
            cx.out.act(SessionAction::ToChannel { channel, message });
        }
        self.set_state(PathState::Connected, cx);
    }

    // Another path joins, and this one is up.

    /// The heartbeat whose answer shows that the server had this path after now. It is sent at
    /// once if none is outstanding, otherwise by [`Path::ask`].
    pub(in crate::clt) fn next_witness(&self) -> Option<(Attempt, u64)> {
        let asked = self.heartbeat.as_ref().map(Heartbeat::asked)?;
        Some((self.attempt, asked + 1))
    }

    /// Whether that heartbeat was answered.
    pub(in crate::clt) fn has_answered(&self, nth: u64) -> bool {
        let heartbeat = self.heartbeat.as_ref();
        heartbeat.is_some_and(|heartbeat| heartbeat.answered() >= nth)
    }

    /// Whether that heartbeat was not sent, and now is the time for it: there is never more than
    /// one beside those of the timer.
    pub(in crate::clt) fn is_to_ask(&self, nth: u64) -> bool {
        let heartbeat = self.heartbeat.as_ref();
        heartbeat.is_some_and(|beat| beat.asked() < nth && beat.answered() == beat.asked())
    }

    /// Sends a heartbeat.
    pub(in crate::clt) fn ask(&mut self, cx: &mut Context<'_>) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.ask(cx.now);
            self.send_immediate(Imm::HEARTBEAT, cx);
        }
    }

    /// Its witness in that life of another path, if it has one there.
    pub(in crate::clt) fn witness_in(&self, attempt: Attempt) -> Option<u64> {
        let mut all = self.witnesses.iter();
        all.find(|(of, _)| *of == attempt).map(|(_, nth)| *nth)
    }

    pub(in crate::clt) fn add_witness(&mut self, witness: (Attempt, u64)) {
        self.witnesses.push(witness);
    }
}
