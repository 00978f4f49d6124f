//! The channel's connections: one for each path.

use rnbd_base::Nanos;
use rnbd_fabric::{ConnectParams, DomainId, Fabric, FabricError, PrivateData, QpLimits};
use rnbd_rtrs::clt::{ChannelAction, FromChannel, PathError, PathIndex, QueueSizes};
use rnbd_wire::rtrs::ConReq;

use super::link::Link;
use super::{ChannelPath, CoreChannel};
use crate::message::Message;
use crate::shard::{Core, Role};

impl CoreChannel {
    pub(super) fn link(&self, path: PathIndex) -> Option<&Link> {
        self.paths.get(path.index())?.link.as_ref()
    }

    pub(super) fn link_mut(&mut self, path: PathIndex) -> Option<&mut Link> {
        self.paths.get_mut(path.index())?.link.as_mut()
    }

    /// Does what the machine asks for.
    pub(crate) fn run_actions<F: Fabric>(&mut self, core: &mut Core<F>) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                ChannelAction::Connect {
                    path,
                    request,
                    sizes,
                    timeout,
                } => self.connect(path, &request, sizes, timeout, core),
                ChannelAction::PostReceives { path, count, bytes } => {
                    self.post_receives(path, count, bytes, core);
                }
                ChannelAction::Up(_) => self.make_room(),
                ChannelAction::Disconnect(path) => {
                    if let Some(link) = self.link(path) {
                        core.fabric.disconnect(link.conn());
                    }
                }
                ChannelAction::Send(message) => self.tell(message, core),
            }
        }
    }

    fn post_receives<F: Fabric>(
        &mut self,
        path: PathIndex,
        count: u32,
        bytes: u32,
        core: &mut Core<F>,
    ) {
        let link = self.link_mut(path);
        if !link.is_some_and(|link| link.post_receives(count, bytes, core)) {
            let error = PathError::Fabric("receives cannot be posted");
            self.machine.fail(path, error);
        }
    }

    fn tell<F: Fabric>(&self, message: FromChannel, core: &mut Core<F>) {
        let message = Message::FromChannel(self.setup.session, self.setup.index, message);
        core.send(self.setup.home, message);
    }

    /// There is room for all that can be in flight or wait before the first request begins.
    fn make_room(&mut self) {
        let permits = usize::from(self.machine.permits().count);
        self.requests.resize(permits, None);
        self.ended.reserve(permits);
        let missing = self.most_taken().saturating_sub(self.waiting.capacity());
        self.waiting.reserve(missing);
    }

    fn connect<F: Fabric>(
        &mut self,
        path: PathIndex,
        request: &ConReq,
        sizes: QueueSizes,
        timeout: Nanos,
        core: &mut Core<F>,
    ) {
        if let Err(error) = self.start_connecting(path, request, sizes, timeout, core) {
            log::warn!("{}: {error}", self.setup.controller);
            let error = PathError::Fabric("the connection could not be started");
            self.end(path, error, core);
        }
    }

    fn start_connecting<F: Fabric>(
        &mut self,
        path: PathIndex,
        request: &ConReq,
        sizes: QueueSizes,
        timeout: Nanos,
        core: &mut Core<F>,
    ) -> Result<(), FabricError> {
        let known = self.paths.get_mut(path.index());
        let Some(ChannelPath {
            route: Some(route),
            link,
            ..
        }) = known
        else {
            return Err(FabricError::Stale("path"));
        };
        let private_data = PrivateData::new(&request.to_bytes());
        let params = ConnectParams {
            dst: route.dst,
            src: route.src,
            private_data: private_data.expect("56 bytes are below the limit"),
            domain: None,
            limits: QpLimits {
                send_wrs: sizes.send,
                recv_wrs: sizes.recv,
            },
            timeout_ns: timeout.0,
        };
        let conn = core.fabric.connect(&params, core.now)?;
        core.assign(conn, Role::Channel(self.slot, path));
        *link = Some(Link::new(conn));
        Ok(())
    }

    pub(crate) fn on_connected<F: Fabric>(
        &mut self,
        path: PathIndex,
        domain: DomainId,
        private_data: &PrivateData,
        core: &mut Core<F>,
    ) {
        let permits = self.machine.permits();
        let Some(link) = self.link_mut(path) else {
            return;
        };
        match link.set_up(domain, permits, core) {
            Ok(()) => self.machine.handle_connected(path, private_data.as_bytes()),
            Err(error) => {
                log::warn!("{}: {error}", self.setup.controller);
                let error = PathError::Fabric("memory for the connection could not be had");
                self.machine.fail(path, error);
            }
        }
        self.run_actions(core);
    }

    pub(crate) fn on_closed<F: Fabric>(
        &mut self,
        path: PathIndex,
        error: PathError,
        core: &mut Core<F>,
    ) {
        self.end(path, error, core);
        self.run_actions(core);
    }

    /// The connection is gone, or was never there: nothing touches the buffers of its requests
    /// any more.
    fn end<F: Fabric>(&mut self, path: PathIndex, error: PathError, core: &mut Core<F>) {
        self.close_openings(path, core);
        let link = self.paths.get_mut(path.index());
        if let Some(link) = link.and_then(|path| path.link.take()) {
            link.release(core);
        }
        let is_late = self.machine.failure(path) == Some(PathError::RequestTimedOut);
        let (permits, ended) = (self.machine.permits(), &mut self.ended);
        let requests = &mut self.requests;
        self.machine.handle_closed(path, error, |msg_id, how| {
            let position = permits.position(msg_id.into());
            let request = position.and_then(|position| requests[position].take());
            ended.extend(request.map(|request| (request, how)));
        });
        self.settle_ended(path, is_late, core.now);
    }
}
