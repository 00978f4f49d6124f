//! The handshake of a path, one step after another.

use std::sync::Arc;

use rnbd_wire::extension::Features;
use rnbd_wire::rtrs::{ConReq, InfoRsp};

use super::{Intent, Path, Stage};
use crate::Heartbeat;
use crate::clt::config::SessionConfig;
use crate::clt::context::{Context, Reference};
use crate::clt::error::{PathError, Violation};
use crate::clt::messages::{FromChannel, ToChannel};
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
        self.deadline = Some(cx.now + cx.config.connect_timeout);
        cx.out.act(SessionAction::Connect {
            path: self.index,
            request: self.con_req(0, cx.config),
            sizes: QueueSizes::SERVICE,
            timeout: cx.config.connect_timeout,
        });
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
            Ok(chunks) => self.on_up(&params, Arc::new(chunks), cx),
            Err(violation) => self.fail(violation.into(), cx),
        }
    }

    fn on_up(&mut self, params: &PathParams, chunks: Arc<ChunkTable>, cx: &mut Context<'_>) {
        let path = self.index;
        self.stage = Stage::Idle;
        self.deadline = None;
        let heartbeat = cx.config.heartbeat_of(Some(params));
        self.heartbeat = Some(Heartbeat::start(heartbeat, cx.now));
        self.reconnect.reset();
        self.reconnects_ok += u64::from(self.was_up);
        self.was_up = true;
        cx.lane.path_up(path, params, &chunks);
        cx.out.act(SessionAction::PostReceives {
            path,
            count: QueueSizes::SERVICE.recv,
            bytes: QueueSizes::SERVICE.recv_bytes(params),
        });
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
}
