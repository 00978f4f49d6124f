//! From the fabric to the rings.

use rnbd_base::Errno;
use rnbd_fabric::{Completion, CompletionKind, Fabric, WorkRequest, WrOp};
use rnbd_rtrs::clt::{Done, PathError, PathIndex, Step, WrId};

use super::{CoreChannel, IoRequest, Opening};
use crate::message::Message;
use crate::shard::{Core, arrival};

impl CoreChannel {
    /// [`CoreChannel::run_actions`] is to follow.
    pub(crate) fn on_completion<F: Fabric>(
        &mut self,
        path: PathIndex,
        completion: &Completion,
        core: &mut Core<F>,
    ) {
        let Some(id) = WrId::decode(completion.wr_id) else {
            return;
        };
        match (completion.kind, id) {
            (CompletionKind::Sent, id) => self.on_sent(path, id, core),
            (kind, WrId::Receive(index)) => {
                let step = self.on_receive(path, kind, index, core);
                self.follow(path, step, core);
            }
            _ => {}
        }
    }

    fn on_sent<F: Fabric>(&mut self, path: PathIndex, id: WrId, core: &mut Core<F>) {
        let step = self.machine.handle_sent(path, id);
        self.follow(path, step, core);
        while let Some(done) = self.machine.next_sent(path) {
            self.on_done(done, core);
        }
    }

    fn on_receive<F: Fabric>(
        &mut self,
        path: PathIndex,
        kind: CompletionKind,
        index: u32,
        core: &mut Core<F>,
    ) -> Step {
        let known = self.paths.get(path.index());
        let Some(link) = known.and_then(|path| path.link.as_ref()) else {
            return Step::Wait;
        };
        let machine = &mut self.machine;
        let Some(arrival) = arrival(kind, link.receive_buffer(index)) else {
            return Step::Wait;
        };
        let step = machine.handle_arrival(path, arrival, core.now);
        if link.repost(index, core).is_err() {
            let error = PathError::Fabric("a receive cannot be posted");
            machine.fail(path, error);
        }
        step
    }

    fn follow<F: Fabric>(&mut self, path: PathIndex, step: Step, core: &mut Core<F>) {
        match step {
            Step::Wait => {}
            Step::Done(done) => self.on_done(done, core),
            Step::Invalidate(msg_id) => self.invalidate(path, msg_id, core),
        }
    }

    fn invalidate<F: Fabric>(&mut self, path: PathIndex, msg_id: u16, core: &mut Core<F>) {
        let request = self.requests[self.position(msg_id)];
        let window = match request.map(|request| request.opening) {
            Some(Opening::Window(window)) => window,
            _ => return,
        };
        if core.fabric.invalidate_now(window) {
            if let Step::Done(done) = self.machine.handle_invalidated(path, msg_id) {
                self.on_done(done, core);
            }
            return;
        }
        let Some(link) = self.link(path) else {
            return;
        };
        let conn = link.conn();
        let id = self.machine.begin_invalidation(path, msg_id);
        let wr = WorkRequest::new(WrOp::Invalidate(window)).signaled(id.encode());
        if core.fabric.post(conn, &wr).is_err() {
            let error = PathError::Fabric("a window cannot be invalidated");
            self.machine.fail(path, error);
        }
    }

    fn on_done<F: Fabric>(&mut self, done: Done, core: &mut Core<F>) {
        let position = self.position(done.msg_id);
        let Some(request) = self.requests[position].take() else {
            return;
        };
        self.close(&request, core);
        if done.result == Err(Errno::NOTCONN) {
            let (device, opening) = (request.device, request.device_opening);
            let message = Message::NotConnected(self.setup.session, device, opening);
            core.send(self.setup.home, message);
        }
        self.finish(&request, done.result);
    }

    /// Takes back what a request had opened.
    pub(super) fn close<F: Fabric>(&mut self, request: &IoRequest, core: &mut Core<F>) {
        match request.opening {
            Opening::None => {}
            Opening::Region(mr) => core.fabric.deregister(mr),
            Opening::Window(window) => {
                if let Some(link) = self.link_mut(request.path) {
                    link.give_window(window);
                }
            }
        }
    }

    /// Takes back what all requests of a path had opened whose connection is gone.
    pub(super) fn close_openings<F: Fabric>(&mut self, path: PathIndex, core: &mut Core<F>) {
        let requests = self.requests.iter_mut().flatten();
        for request in requests.filter(|request| request.path == path) {
            match std::mem::replace(&mut request.opening, Opening::None) {
                Opening::None => {}
                Opening::Region(mr) => core.fabric.deregister(mr),
                Opening::Window(window) => core.fabric.free_window(window),
            }
        }
    }

    pub(super) fn finish(&mut self, request: &IoRequest, result: Result<(), Errno>) {
        if let Some(port) = &mut self.ports[request.port as usize] {
            port.finish(request.io.tag, result);
        }
    }
}
