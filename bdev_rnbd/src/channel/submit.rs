//! From the rings to the fabric.

use rnbd_base::{Errno, Nanos, Progress};
use rnbd_bdev::IoOp;
use rnbd_fabric::{Fabric, MemoryKey, PostError, RemoteAddr, Sge, WorkRequest, WrOp};
use rnbd_proto::clt::IoPlan;
use rnbd_rtrs::clt::{
    BeginError, Direction, Exposure, Invalidation, PathError, PathIndex, Post, Request, WrId,
};
use rnbd_wire::rnbd::Io;

use super::{CoreChannel, Gate, IoRequest, Opening, Usable};
use crate::shard::Core;

/// What became of an attempt to send an I/O.
pub(super) enum Sent {
    /// It is on its way, or over.
    Yes,
    /// The path took nothing: the I/O waits for the next one.
    NotNow,
}

/// Why a request was not posted.
enum Refused {
    /// The path is gone or its queue is in disorder.
    Path(&'static str),
    /// It cannot be done at all.
    Io(Errno),
}

/// Bytes of an I/O message.
const IO_MESSAGE_BYTES: u16 = 32;
const _: () = assert!(Io::BYTES == IO_MESSAGE_BYTES as usize);

const GONE: Refused = Refused::Path("the connection is gone");

impl From<PostError> for Refused {
    fn from(error: PostError) -> Self {
        Self::Path(match error {
            PostError::NotConnected => "the connection is gone",
            PostError::OverLimit => "the send queue is full",
            PostError::NoWindow => "a window is gone",
        })
    }
}

impl CoreChannel {
    /// Sends what can be sent: first what was sent before and lost, then the ports in turn.
    pub(crate) fn submit_ready<F: Fabric>(&mut self, core: &mut Core<F>) -> Progress {
        let mut progress = Progress::Idle;
        if !self.waiting.is_empty() {
            progress = self.submit_waiting(core);
        }
        let count = self.ports.len();
        for offset in 0..count {
            let index = (self.turn + offset) % count;
            progress = progress.or(self.submit_port(index, core));
        }
        if progress.is_busy() {
            self.turn = (self.turn + 1) % count.max(1);
            self.run_actions(core);
        }
        progress
    }

    fn submit_port<F: Fabric>(&mut self, index: usize, core: &mut Core<F>) -> Progress {
        let Some(port) = &self.ports[index] else {
            return Progress::Idle;
        };
        if !port.has_request() {
            if port.is_over() {
                self.ports[index] = None;
            }
            return Progress::Idle;
        }
        match self.gate(port.device()) {
            Gate::Wait => Progress::Idle,
            Gate::Fail(errno) => self.fail_port(index, errno),
            Gate::Open(device) => self.send_port(index, &device, core),
        }
    }

    fn fail_port(&mut self, index: usize, errno: Errno) -> Progress {
        while let Some(request) = self.take(index) {
            self.finish(&request, Err(errno));
        }
        Progress::Busy
    }

    fn send_port<F: Fabric>(
        &mut self,
        index: usize,
        device: &Usable,
        core: &mut Core<F>,
    ) -> Progress {
        let mut progress = Progress::Idle;
        while self.may_take()
            && let Some(path) = self.machine.choose(core.now)
            && let Some(mut request) = self.take(index)
        {
            progress = Progress::Busy;
            if self.is_kept_back(&request) {
                self.wait(request, None, core.now);
            } else if matches!(self.send(&mut request, path, device, core), Sent::NotNow) {
                break;
            }
        }
        progress
    }

    fn take(&mut self, index: usize) -> Option<IoRequest> {
        let port = self.ports[index].as_mut()?;
        let io = port.take()?;
        Some(IoRequest {
            #[expect(clippy::cast_possible_truncation, reason = "there are fewer ports")]
            port: index as u32,
            device: port.device(),
            path: PathIndex::default(),
            retries: 0,
            device_opening: 0,
            begun: Nanos::ZERO,
            opening: Opening::None,
            io,
        })
    }

    /// Sends one I/O. A permit is free, the path has room, and the device takes I/O.
    pub(super) fn send<F: Fabric>(
        &mut self,
        request: &mut IoRequest,
        path: PathIndex,
        device: &Usable,
        core: &mut Core<F>,
    ) -> Sent {
        request.path = path;
        request.device_opening = device.opening;
        let io = &request.io;
        let plan = IoPlan::new(
            &device.info,
            self.max_io_bytes,
            io.op,
            io.offset_blocks,
            io.num_blocks,
            io.prio,
        );
        match plan {
            Err(errno) => self.finish(request, Err(errno)),
            Ok(IoPlan::Nothing) => self.finish(request, Ok(())),
            Ok(IoPlan::Send {
                message,
                direction,
                data_bytes,
            }) => match self.start(request, &message, direction, data_bytes, core) {
                Ok(()) => {}
                Err(Refused::Io(errno)) => self.finish(request, Err(errno)),
                Err(Refused::Path(what)) => {
                    self.machine.fail(path, PathError::Fabric(what));
                    self.wait(*request, None, core.now);
                    return Sent::NotNow;
                }
            },
        }
        Sent::Yes
    }

    fn start<F: Fabric>(
        &mut self,
        request: &mut IoRequest,
        message: &Io,
        direction: Direction,
        data_bytes: u32,
        core: &mut Core<F>,
    ) -> Result<(), Refused> {
        if request.io.op.has_data() && request.io.buf.len() != data_bytes as usize {
            return Err(Refused::Io(Errno::INVAL));
        }
        let (mut exposure, mut data) = (None, Sge::EMPTY);
        match request.io.op {
            IoOp::Read => exposure = Some(self.open(request, core)?),
            IoOp::Write { .. } => data = self.data(request, core)?,
            _ => {}
        }
        let wanted = Request {
            direction,
            user_bytes: IO_MESSAGE_BYTES,
            data_bytes,
            exposure,
        };
        let post = match self.machine.begin(request.path, &wanted, core.now) {
            Ok(post) => post,
            Err(error) => {
                self.take_back(request, core);
                return Err(refusal(error));
            }
        };
        match self.post(request.path, &post, data, message, core) {
            Ok(()) => {
                self.count(request, direction, data_bytes);
                if request.retries == 0 {
                    request.begun = core.now;
                }
                let position = self.position(post.msg_id);
                self.requests[position] = Some(*request);
                Ok(())
            }
            Err(error) => {
                self.machine.abort(post.msg_id);
                self.take_back(request, core);
                Err(error.into())
            }
        }
    }

    /// A request that was not posted has nothing open, and may be tried again.
    fn take_back<F: Fabric>(&mut self, request: &mut IoRequest, core: &mut Core<F>) {
        self.close(request, core);
        request.opening = Opening::None;
    }

    fn post<F: Fabric>(
        &mut self,
        path: PathIndex,
        post: &Post,
        data: Sge,
        message: &Io,
        core: &mut Core<F>,
    ) -> Result<(), PostError> {
        const MESSAGE: usize = Io::BYTES;
        let position = self.position(post.msg_id);
        let bytes = MESSAGE + usize::from(post.header_bytes);
        let link = self.link(path).ok_or(PostError::NotConnected)?;
        let header = link
            .header(position, bytes)
            .ok_or(PostError::NotConnected)?;
        let mut image = [0; MESSAGE + 24];
        image[..MESSAGE].copy_from_slice(&message.to_bytes());
        image[MESSAGE..].copy_from_slice(&post.header);
        header.span.write_at(0, &image[..bytes]);
        let remote = RemoteAddr {
            addr: post.chunk.addr.wrapping_add(post.offset.into()),
            rkey: post.chunk.rkey,
        };
        let wr = WorkRequest::new(WrOp::WriteImm(remote, post.imm)).with_sges(data, header);
        let wr = if post.signaled {
            let id = WrId::Executed(post.serial);
            wr.signaled(id.encode()).cumulative()
        } else {
            wr
        };
        core.fabric.post(link.conn(), &wr)
    }

    /// Opens the buffer of a read to the server: through a window if that is the fabric's way, else
    /// by its registration. Memory of unknown origin is registered for this I/O alone.
    fn open<F: Fabric>(
        &mut self,
        request: &mut IoRequest,
        core: &mut Core<F>,
    ) -> Result<Exposure, Refused> {
        let span = request.io.buf;
        let key = self.key(request, core)?;
        let mut exposure = Exposure {
            addr: span.addr(),
            rkey: key.rkey,
            invalidation: Invalidation::None,
        };
        if core.caps.opens_by_window() && request.opening == Opening::None {
            let link = self.link_mut(request.path).ok_or(GONE)?;
            let window = link.take_window().ok_or(GONE)?;
            match core.fabric.bind(link.conn(), window, key.mr, span) {
                Ok(rkey) => exposure.rkey = rkey,
                Err(error) => {
                    link.give_window(window);
                    return Err(error.into());
                }
            }
            exposure.invalidation = match core.caps.cheap_windows {
                true => Invalidation::Local,
                false => Invalidation::Remote,
            };
            request.opening = Opening::Window(window);
        }
        Ok(exposure)
    }

    fn key<F: Fabric>(
        &mut self,
        request: &mut IoRequest,
        core: &mut Core<F>,
    ) -> Result<MemoryKey, Refused> {
        let link = self.link_mut(request.path).ok_or(GONE)?;
        let registrations = link.registrations().ok_or(GONE)?;
        let span = request.io.buf;
        let known = registrations.key(&mut core.fabric, span);
        if let Some(key) = known.map_err(Refused::Io)? {
            return Ok(key);
        }
        let key = registrations.register_once(&mut core.fabric, span, request.io.op);
        let key = key.map_err(Refused::Io)?;
        request.opening = Opening::Region(key.mr);
        Ok(key)
    }

    /// The local bytes of a write. Only devices need a key for them.
    fn data<F: Fabric>(
        &mut self,
        request: &mut IoRequest,
        core: &mut Core<F>,
    ) -> Result<Sge, Refused> {
        let lkey = if core.caps.needs_local_keys {
            self.key(request, core)?.lkey
        } else {
            0
        };
        let span = request.io.buf;
        Ok(Sge { span, lkey })
    }

    fn count(&mut self, request: &IoRequest, direction: Direction, data_bytes: u32) {
        let stats = &mut self.paths[request.path.index()].stats;
        let bytes = u64::from(data_bytes) + Io::BYTES as u64;
        match direction {
            Direction::Read => {
                stats.reads += 1;
                stats.read_bytes += bytes;
            }
            Direction::Write => {
                stats.writes += 1;
                stats.write_bytes += bytes;
            }
        }
        stats.failovered += u64::from(request.retries > 0);
    }

    pub(super) fn position(&self, msg_id: u16) -> usize {
        let position = self.machine.permits().position(msg_id.into());
        position.expect("the channel names only its own permits")
    }
}

fn refusal(error: BeginError) -> Refused {
    match error {
        BeginError::NoPermit | BeginError::PathDown => Refused::Path("the path is not up"),
        BeginError::TooLong => Refused::Io(Errno::MSGSIZE),
    }
}
