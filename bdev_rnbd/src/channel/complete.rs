//! From the fabric to the rings.

use rnbd_base::Errno;
use rnbd_fabric::{Completion, CompletionKind, Fabric, WorkRequest, WrOp};
use rnbd_rtrs::clt::{Done, Ended, PathError, Step, WrId};

use super::port::Port;
use super::{CoreChannel, IoRequest, Opening, PATH};
use crate::message::Message;
use crate::shard::{Core, arrival};

impl CoreChannel {
    pub(crate) fn on_completion<F: Fabric>(&mut self, completion: &Completion, core: &mut Core<F>) {
        let Some(id) = WrId::decode(completion.wr_id) else {
            return;
        };
        let step = match (completion.kind, id) {
            (CompletionKind::Sent, id) => self.machine.handle_sent(PATH, id),
            (kind, WrId::Receive(index)) => self.on_receive(kind, index, core),
            _ => return,
        };
        self.follow(step, core);
        self.run_actions(core);
    }

    fn on_receive<F: Fabric>(
        &mut self,
        kind: CompletionKind,
        index: u32,
        core: &mut Core<F>,
    ) -> Step {
        let Some(link) = &self.link else {
            return Step::Wait;
        };
        let Some(arrival) = arrival(kind, link.receive_buffer(index)) else {
            return Step::Wait;
        };
        let step = self.machine.handle_arrival(PATH, arrival);
        if link.repost(index, core).is_err() {
            let error = PathError::Fabric("a receive cannot be posted");
            self.machine.fail(PATH, error);
        }
        step
    }

    fn follow<F: Fabric>(&mut self, step: Step, core: &mut Core<F>) {
        match step {
            Step::Wait => {}
            Step::Done(done) => self.on_done(done, core),
            Step::Invalidate(msg_id) => self.invalidate(msg_id, core),
        }
    }

    fn invalidate<F: Fabric>(&mut self, msg_id: u16, core: &mut Core<F>) {
        let request = self.requests[self.position(msg_id)];
        let window = match request.map(|request| request.opening) {
            Some(Opening::Window(window)) => window,
            _ => return,
        };
        if core.fabric.invalidate_now(window) {
            if let Step::Done(done) = self.machine.handle_invalidated(msg_id) {
                self.on_done(done, core);
            }
            return;
        }
        let Some(link) = &self.link else {
            return;
        };
        let id = WrId::Invalidate(msg_id);
        let wr = WorkRequest::new(WrOp::Invalidate(window)).signaled(id.encode());
        match core.fabric.post(link.conn(), &wr) {
            Ok(()) => self.machine.handle_invalidate_posted(PATH),
            Err(_) => {
                let error = PathError::Fabric("a window cannot be invalidated");
                self.machine.fail(PATH, error);
            }
        }
    }

    fn on_done<F: Fabric>(&mut self, done: Done, core: &mut Core<F>) {
        let position = self.position(done.msg_id);
        let Some(request) = self.requests[position].take() else {
            return;
        };
        self.close(&request, core);
        if done.result == Err(Errno::NOTCONN) {
            let message = Message::NotConnected(self.setup.session, request.device);
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
                if let Some(link) = &mut self.link {
                    link.give_window(window);
                }
            }
        }
    }

    pub(super) fn finish(&mut self, request: &IoRequest, result: Result<(), Errno>) {
        finish(&mut self.ports, request, result);
    }

    /// The connection is gone, or was never there: what was outstanding is tried again when a path
    /// is up, as often as the options say.
    pub(super) fn end<F: Fabric>(&mut self, error: PathError, core: &mut Core<F>) {
        for request in self.requests.iter_mut().flatten() {
            match std::mem::replace(&mut request.opening, Opening::None) {
                Opening::None => {}
                Opening::Region(mr) => core.fabric.deregister(mr),
                Opening::Window(window) => core.fabric.free_window(window),
            }
        }
        if let Some(link) = self.link.take() {
            link.release(core);
        }
        let permits = self.machine.permits();
        let limit = u32::try_from(self.setup.retry_count).unwrap_or(u32::MAX);
        let (requests, ports) = (&mut self.requests, &mut self.ports);
        let (retries, stats) = (&mut self.retries, &mut self.stats);
        self.machine.handle_closed(PATH, error, |msg_id, ended| {
            let position = permits.position(msg_id.into());
            let Some(mut request) = position.and_then(|position| requests[position].take()) else {
                return;
            };
            match ended {
                Ended::Answered(result) => finish(ports, &request, result),
                Ended::Unknown if request.retries >= limit => {
                    finish(ports, &request, Err(Errno::CONNABORTED));
                }
                Ended::Unknown => {
                    request.retries += 1;
                    stats.retried += 1;
                    retries.push_back(request);
                }
            }
        });
    }
}

fn finish(ports: &mut [Option<Port>], request: &IoRequest, result: Result<(), Errno>) {
    if let Some(port) = &mut ports[request.port] {
        port.finish(request.io.tag, result);
    }
}
