//! What a path has on the fabric and in memory.

use rnbd_base::{Errno, Nanos};
use rnbd_bdev::{BdevIo, IoOp};
use rnbd_fabric::{Caps, ConnId, DomainId, MemoryKey, QpLimits, Sge, WindowId};
use rnbd_mem::{Buffer, ChunkPool, Memory, MemoryError, Pages, Span};
use rnbd_rtrs::srv::{Config, PathKey, SessionKey};
use rnbd_wire::limits::SERVICE_QUEUE_DEPTH;
use rnbd_wire::rtrs::{InfoReq, InfoRsp, RkeyRsp};

use super::admission::Admission;
use super::parked::{Parked, ParkedQueue};
use super::signals::Signals;

/// Work requests that one answer takes at most: data, bind, invalidate, immediate.
pub(super) const ANSWER_WRS: u32 = 4;
/// Beside requests: heartbeats and their acknowledgements.
const HEARTBEAT_RECVS: u32 = 16;
/// Executed work requests are reported at least every so many.
const SIGNAL_INTERVAL_MAX: u32 = 64;

/// The data of a WRITE of at most so many bytes is copied out of a chunk that it would take the device
/// a work request to close: that is quicker.
const COPIED_BYTES_MAX: usize = 4096;

/// The message buffer: INFO_REQ, then one RKEY_RSP per chunk, then INFO_RSP.
const RKEY_RSP_OFFSET: usize = 512;

const _: () = assert!(InfoReq::BYTES <= RKEY_RSP_OFFSET);

/// A path's resources. Dropped only when all its connections are closed and no I/O is in flight,
/// so that nothing touches its memory any more.
#[derive(Debug)]
pub(super) struct PathIo {
    pub(super) key: PathKey,
    pub(super) session: SessionKey,
    pub(super) name: String,
    pub(super) domain: Option<DomainId>,
    pub(super) chunk_key: Option<MemoryKey>,
    pub(super) message_key: Option<MemoryKey>,
    pub(super) windows: Vec<WindowId>,
    /// By chunk; made with the chunks.
    pub(super) requests: Box<[RequestIo]>,
    /// What the path counts against the limits.
    pub(super) admission: Admission,
    memory: PathMemory,
    cid_num: u16,
    /// As many as came.
    cons: Vec<Option<Con>>,
    /// Links of the answers that wait.
    parked: Box<[Parked]>,
    /// Answers that send a device's memory in place and wait for that or are on their way, by
    /// device.
    sending: Vec<u32>,
    /// Immediates that wait for work requests of connection 0.
    pub(super) signals: Signals,
}

/// What memory each path gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathLayout {
    queue_depth: u16,
    chunk_bytes: usize,
    /// Beside each chunk; 0 where nothing is copied out of chunks.
    copied_bytes: usize,
    pages: Pages,
}

/// The memory of a path, kept together to be disposed of together.
#[derive(Debug)]
pub(super) struct PathMemory {
    /// Made when the handshake is complete: until then a client costs little.
    chunks: Option<ChunkPool>,
    /// The data of small WRITEs, by chunk, where chunks are closed by work requests.
    copies: Option<ChunkPool>,
    messages: Buffer,
}

/// A connection of a path.
#[derive(Debug)]
pub(super) struct Con {
    pub(super) conn: ConnId,
    /// Work requests that may still be posted.
    credits: u32,
    /// Posted since the last signalled one.
    unsignaled: u32,
    signal_interval: u32,
    /// Answers that wait for credits.
    parked: ParkedQueue,
}

/// What the shard keeps of a request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestIo {
    /// The device that it does I/O on.
    pub(super) device: usize,
    /// What it does there.
    pub(super) op: IoOp,
    /// Bytes that it covers.
    pub(super) bytes: u64,
    /// When it arrived.
    pub(super) started: Nanos,
    /// To be submitted when the flush before it is done.
    pub(super) after_flush: Option<BdevIo>,
    /// Where the data of its answer is.
    pub(super) source: Source,
    /// The data that it writes has been copied out of its chunk.
    pub(super) is_copied: bool,
}

/// Where the data of an answer is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// In the request's chunk.
    Chunk,
    /// In the device's own memory.
    InPlace(Span),
}

impl RequestIo {
    const IDLE: Self = Self {
        device: 0,
        op: IoOp::Flush,
        bytes: 0,
        started: Nanos::ZERO,
        after_flush: None,
        source: Source::Chunk,
        is_copied: false,
    };
}

impl PathIo {
    pub(super) fn new(
        key: PathKey,
        session: SessionKey,
        name: String,
        cid_num: u16,
        memory: PathMemory,
        admission: Admission,
    ) -> Self {
        Self {
            key,
            session,
            name,
            domain: None,
            chunk_key: None,
            message_key: None,
            windows: Vec::new(),
            requests: Box::default(),
            admission,
            memory,
            cid_num,
            cons: Vec::new(),
            parked: Box::default(),
            sending: Vec::new(),
            signals: Signals::default(),
        }
    }

    /// Makes the chunks, and what is kept of the request in each.
    pub(super) fn make_chunks(
        &mut self,
        memory: &Memory,
        layout: &PathLayout,
    ) -> Result<(), MemoryError> {
        let (count, pages) = (usize::from(layout.queue_depth), layout.pages);
        let owner = owner_of_chunks(&self.name);
        let chunks = ChunkPool::new(memory, &owner, count, layout.chunk_bytes, pages)?;
        self.memory.chunks = Some(chunks);
        if layout.copied_bytes > 0 {
            let owner = format!("the small writes of path {}", self.name);
            let copies = ChunkPool::new(memory, &owner, count, layout.copied_bytes, pages)?;
            self.memory.copies = Some(copies);
        }
        self.requests = vec![RequestIo::IDLE; count].into();
        self.parked = vec![Parked::NONE; count].into();
        Ok(())
    }

    /// A chunk; `None` before they are made.
    pub(super) fn chunk(&self, msg_id: u16) -> Option<Span> {
        self.memory.chunks.as_ref()?.chunk(usize::from(msg_id))
    }

    /// The data of a WRITE of at most so many bytes can be copied out of its chunk.
    pub(super) fn copied_max(&self) -> u32 {
        let copies = self.memory.copies.as_ref();
        let bytes = copies.map_or(0, ChunkPool::chunk_bytes);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Copies the data of a WRITE, at most [`PathIo::copied_max`], out of its chunk.
    pub(super) fn copy_data(&mut self, msg_id: u16, data_len: u32) {
        let data = self
            .chunk(msg_id)
            .and_then(|chunk| chunk.slice(0, data_len as usize));
        if let (Some(data), Some(copy)) = (data, self.copy(msg_id)) {
            copy.copy_from(&data);
            self.requests[usize::from(msg_id)].is_copied = true;
        }
    }

    /// Where a request's data is written from, or read to.
    pub(super) fn data_area(&self, msg_id: u16) -> Option<Span> {
        if self.requests.get(usize::from(msg_id))?.is_copied {
            return self.copy(msg_id);
        }
        self.chunk(msg_id)
    }

    fn copy(&self, msg_id: u16) -> Option<Span> {
        self.memory.copies.as_ref()?.chunk(usize::from(msg_id))
    }

    /// All chunks; `None` before they are made.
    pub(super) fn chunk_area(&self) -> Option<Span> {
        self.memory.chunks.as_ref().map(ChunkPool::area)
    }

    pub(super) fn into_memory(self) -> PathMemory {
        self.memory
    }

    pub(super) fn con(&self, cid: u16) -> Option<&Con> {
        self.cons.get(usize::from(cid))?.as_ref()
    }

    pub(super) fn con_mut(&mut self, cid: u16) -> Option<&mut Con> {
        self.cons.get_mut(usize::from(cid))?.as_mut()
    }

    pub(super) fn add_con(&mut self, cid: u16, con: Con) {
        let place = usize::from(cid);
        if self.cons.len() <= place {
            self.cons.resize_with(place + 1, || None);
        }
        self.cons[place] = Some(con);
    }

    /// Returns whether that was the last one: nothing is being sent any more then.
    pub(super) fn remove_con(&mut self, cid: u16) -> bool {
        if let Some(place) = self.cons.get_mut(usize::from(cid)) {
            *place = None;
        }
        let last = self.cons.iter().all(Option::is_none);
        if last {
            self.sending.fill(0);
        }
        last
    }

    pub(super) fn cid_num(&self) -> u16 {
        self.cid_num
    }

    // Answers that wait.

    pub(super) fn park(&mut self, cid: u16, msg_id: u16, status: Result<(), Errno>) {
        if let Some(Some(con)) = self.cons.get_mut(usize::from(cid)) {
            con.parked.push(&mut self.parked, msg_id, status);
        }
    }

    /// The next answer of this connection that waits.
    pub(super) fn take_parked(&mut self, cid: u16) -> Option<(u16, Result<(), Errno>)> {
        let con = self.cons.get_mut(usize::from(cid))?.as_mut()?;
        con.parked.pop(&self.parked)
    }

    /// The start of a chunk, `bytes` long.
    pub(super) fn chunk_sge(&self, msg_id: u16, bytes: usize) -> Option<Sge> {
        let span = self.chunk(msg_id)?.slice(0, bytes)?;
        let lkey = self.chunk_key?.lkey;
        Some(Sge { span, lkey })
    }

    /// Where INFO_REQ is received.
    pub(super) fn info_req_sge(&self) -> Option<Sge> {
        self.message_sge(0, InfoReq::BYTES)
    }

    /// INFO_RSP, copied to where it is sent from.
    pub(super) fn info_rsp_sge(&self, message: &[u8]) -> Option<Sge> {
        let offset = RKEY_RSP_OFFSET + RkeyRsp::BYTES * self.requests.len();
        self.write_message(offset, message)
    }

    /// The RKEY_RSP of a chunk, copied to where it is sent from.
    pub(super) fn rkey_rsp_sge(&self, rsp: RkeyRsp) -> Option<Sge> {
        let offset = RKEY_RSP_OFFSET + RkeyRsp::BYTES * usize::from(rsp.buf_id);
        self.write_message(offset, &rsp.to_bytes())
    }

    fn write_message(&self, offset: usize, message: &[u8]) -> Option<Sge> {
        let sge = self.message_sge(offset, message.len())?;
        sge.span.write_at(0, message);
        Some(sge)
    }

    fn message_sge(&self, offset: usize, bytes: usize) -> Option<Sge> {
        let span = self.memory.messages.span().slice(offset, bytes)?;
        let lkey = self.message_key?.lkey;
        Some(Sge { span, lkey })
    }

    /// All messages, to be registered.
    pub(super) fn messages(&self) -> Span {
        self.memory.messages.span()
    }

    // Devices whose memory is sent in place.

    pub(super) fn make_room_for_device(&mut self, device: usize) {
        if self.sending.len() <= device {
            self.sending.resize(device + 1, 0);
        }
    }

    pub(super) fn on_sending(&mut self, device: usize) {
        self.make_room_for_device(device);
        self.sending[device] += 1;
    }

    pub(super) fn on_sent(&mut self, device: usize) {
        if let Some(count) = self.sending.get_mut(device) {
            *count = count.saturating_sub(1);
        }
    }

    pub(super) fn is_sending(&self, device: usize) -> bool {
        self.sending.get(device).is_some_and(|&count| count > 0)
    }
}

impl PathLayout {
    /// What a path needs on this fabric.
    pub(super) fn new(config: &Config, caps: &Caps) -> Self {
        let closes_by_work_request = config.new_rkey && !caps.cheap_windows;
        Self {
            queue_depth: config.queue_depth,
            chunk_bytes: usize::try_from(config.chunk_bytes).unwrap_or(usize::MAX),
            copied_bytes: if closes_by_work_request {
                COPIED_BYTES_MAX
            } else {
                0
            },
            pages: if caps.prefers_hugepages {
                Pages::PreferHuge
            } else {
                Pages::Small
            },
        }
    }

    /// Of all chunks, and what is copied out of them.
    fn chunk_area_bytes(&self) -> u64 {
        u64::from(self.queue_depth) * (self.chunk_bytes + self.copied_bytes) as u64
    }
}

impl PathMemory {
    /// What the handshake needs. There must be room for the chunks as well, although they are
    /// made later: a client that is told at once knows why.
    pub(super) fn new(
        memory: &Memory,
        path: &str,
        layout: &PathLayout,
    ) -> Result<Self, MemoryError> {
        memory.check_room(&owner_of_chunks(path), layout.chunk_area_bytes())?;
        let count = usize::from(layout.queue_depth);
        let message_bytes =
            RKEY_RSP_OFFSET + RkeyRsp::BYTES * count + InfoRsp::bytes(layout.queue_depth);
        let owner = format!("the messages of path {path}");
        Ok(Self {
            chunks: None,
            copies: None,
            messages: memory.alloc(&owner, message_bytes, Pages::Small)?,
        })
    }
}

fn owner_of_chunks(path: &str) -> String {
    format!("the chunks of path {path}")
}

impl Con {
    pub(super) fn new(conn: ConnId, config: &Config) -> Self {
        let credits = send_credits(config);
        Self {
            conn,
            credits,
            unsignaled: 0,
            signal_interval: (credits / 2).min(SIGNAL_INTERVAL_MAX),
            parked: ParkedQueue::default(),
        }
    }

    /// Whether an answer can be posted now, and none waits before it.
    pub(super) fn may_answer(&self) -> bool {
        self.parked.is_empty() && self.has_credits_for_answer()
    }

    pub(super) fn has_credits_for_answer(&self) -> bool {
        self.credits >= ANSWER_WRS
    }

    /// Whether a message that belongs to no request can be posted; answers come first.
    pub(super) fn may_send(&self) -> bool {
        self.credits > ANSWER_WRS
    }

    /// A work request that is not the last of its chain is posted.
    pub(super) fn charge(&mut self, count: u32) {
        self.credits = self.credits.saturating_sub(count);
        self.unsignaled += count;
    }

    /// Whether the next work request is to be signalled, for how many; it is charged.
    pub(super) fn charge_last(&mut self, must_signal: bool) -> Option<u32> {
        self.charge(1);
        if must_signal || self.unsignaled >= self.signal_interval {
            return Some(std::mem::take(&mut self.unsignaled));
        }
        None
    }

    pub(super) fn on_executed(&mut self, count: u32) {
        self.credits += count;
    }
}

/// Work requests for answers. Those that revoke chunks come on top: there is at most one per
/// chunk, and each is signalled.
fn send_credits(config: &Config) -> u32 {
    ANSWER_WRS * u32::from(config.queue_depth) + 2 * ANSWER_WRS
}

/// Queue sizes of every connection of a path.
pub(super) fn qp_limits(config: &Config) -> QpLimits {
    QpLimits {
        send_wrs: send_credits(config) + u32::from(config.queue_depth),
        recv_wrs: recvs(config) + 1,
    }
}

/// Empty receives of a connection: a request per chunk, and heartbeats.
pub(super) fn recvs(config: &Config) -> u32 {
    u32::from(config.queue_depth.max(SERVICE_QUEUE_DEPTH)) + HEARTBEAT_RECVS
}
