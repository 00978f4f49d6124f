//! The scripted client.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::{
    Access, Addr, CloseReason, Completion, CompletionKind, ConnId, ConnectParams, DomainId, Event,
    Fabric, MemoryKey, PrivateData, QpLimits, RemoteAddr, Sge, WindowKind, WorkRequest, WrOp,
};
use rnbd_mem::{Buffer, Memory, Pages, Span};
use rnbd_wire::extension::{Features, PathToken, ServiceId};
use rnbd_wire::rnbd::{AccessMode, Close, Io, Op, Open, OpenRsp, SessInfo, SessInfoRsp};
use rnbd_wire::rtrs::{
    ConReq, ConRsp, Descriptor, InfoReq, InfoRsp, PathParameters, ReadFlags, ReadMsg, RkeyRsp,
    WriteMsg,
};
use rnbd_wire::{Imm, ImmLayout, Name};

use crate::rig::BLOCK;

/// Receives posted on each connection.
const RECVS: u64 = 256;
const LIMITS: QpLimits = QpLimits {
    send_wrs: 4096,
    recv_wrs: 1024,
};

/// One path of a session, in whatever state.
#[derive(Debug)]
pub(crate) struct Client<F: Fabric> {
    pub(crate) fabric: F,
    pub(crate) id: Identity,
    pub(crate) conns: Vec<ConnId>,
    pub(crate) closed: Vec<(ConnId, CloseReason)>,
    pub(crate) connected: usize,
    pub(crate) parameters: Option<PathParameters>,
    pub(crate) chunks: Vec<Descriptor>,
    /// What the path belongs to, if the server said so.
    pub(crate) service: Option<ServiceId>,
    pub(crate) answers: Vec<Answer>,
    /// Immediates that are no answers: heartbeats.
    pub(crate) others: Vec<u32>,
    pub(crate) answers_heartbeats: bool,
    buffer: Buffer,
    key: Option<MemoryKey>,
    domain: Option<DomainId>,
    completions: Vec<Completion>,
    /// Rkeys invalidated by the server since the last answer.
    invalidated: Vec<u32>,
}

/// Who the client says that it is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) session: u8,
    pub(crate) path: u8,
    pub(crate) recon_cnt: u16,
    pub(crate) cid_num: u16,
    pub(crate) first_conn: bool,
    pub(crate) extension: Option<Features>,
}

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) cid: usize,
    pub(crate) msg_id: u32,
    pub(crate) status: Result<(), Errno>,
    pub(crate) invalidated: Vec<u32>,
}

impl Identity {
    pub(crate) fn new(name: &str, session: u8) -> Self {
        Self {
            name: name.to_owned(),
            session,
            path: session,
            recon_cnt: 1,
            cid_num: 3,
            first_conn: true,
            extension: None,
        }
    }

    /// Another path of session `clt1`.
    pub(crate) fn added(path: u8) -> Self {
        Self {
            path,
            first_conn: false,
            ..Self::new("clt1", 1)
        }
    }

    /// The same, of a client that knows the extension.
    pub(crate) fn peer(self) -> Self {
        Self {
            extension: Some(Features::FENCE),
            ..self
        }
    }

    /// The same, when it connects again.
    pub(crate) fn again(self) -> Self {
        Self {
            recon_cnt: self.recon_cnt + 1,
            ..self
        }
    }
}

/// The buffer holds, for each chunk, what is to be written there and what is read from there, and
/// behind that the messages.
const MESSAGES: usize = 8192;

impl<F: Fabric> Client<F> {
    pub(crate) fn new(
        fabric: F,
        memory: &Memory,
        id: Identity,
        depth: usize,
        chunk: usize,
    ) -> Self {
        let bytes = MESSAGES + InfoRsp::bytes(u16::try_from(depth).unwrap()) + 2 * depth * chunk;
        Self {
            fabric,
            id,
            conns: Vec::new(),
            closed: Vec::new(),
            connected: 0,
            parameters: None,
            chunks: Vec::new(),
            service: None,
            answers: Vec::with_capacity(1024),
            others: Vec::with_capacity(1024),
            answers_heartbeats: true,
            buffer: memory.alloc("client", bytes, Pages::Small).unwrap(),
            key: None,
            domain: None,
            completions: Vec::with_capacity(512),
            invalidated: Vec::new(),
        }
    }

    // Connecting.

    pub(crate) fn con_req(&self, cid: u16) -> ConReq {
        ConReq {
            cid,
            cid_num: self.id.cid_num,
            recon_cnt: self.id.recon_cnt,
            sess_uuid: [self.id.path; 16],
            paths_uuid: [self.id.session; 16],
            first_conn: self.id.first_conn,
            extension: self.id.extension,
        }
    }

    /// Starts to connect the next connection.
    pub(crate) fn connect(&mut self, dst: Addr, now: Nanos) -> ConnId {
        let cid = u16::try_from(self.conns.len()).unwrap();
        let private_data = PrivateData::new(&self.con_req(cid).to_bytes()).unwrap();
        let params = ConnectParams {
            dst,
            src: None,
            private_data,
            domain: self.domain,
            limits: LIMITS,
            timeout_ns: Nanos::from_secs(10).0,
        };
        let conn = self.fabric.connect(&params, now).unwrap();
        self.conns.push(conn);
        conn
    }

    /// Names the session on connection 0.
    pub(crate) fn send_info_req(&mut self) {
        let pathname = Name::new(&self.id.name).unwrap();
        self.send_message(0, &InfoReq { pathname }.to_bytes());
    }

    pub(crate) fn send_message(&mut self, cid: usize, message: &[u8]) {
        let sge = self.part(0, message.len());
        sge.span.write_at(0, message);
        let send = WorkRequest::new(WrOp::Send).with_sge(sge).signaled(1);
        self.fabric.post(self.conns[cid], &send).unwrap();
    }

    fn depth(&self) -> usize {
        usize::from(self.parameters.unwrap().queue_depth)
    }

    pub(crate) fn chunk_bytes(&self) -> usize {
        let parameters = self.parameters.unwrap();
        (parameters.max_io_size + parameters.max_hdr_size) as usize
    }

    fn part(&self, offset: usize, len: usize) -> Sge {
        Sge {
            span: self.buffer.span().slice(offset, len).unwrap(),
            lkey: self.key.unwrap().lkey,
        }
    }

    /// Where a chunk's request is written from.
    fn staging(&self, msg_id: u16) -> usize {
        let info = InfoRsp::bytes(u16::try_from(self.depth()).unwrap());
        MESSAGES + info + usize::from(msg_id) * self.chunk_bytes()
    }

    /// Where a chunk's data is read to.
    fn dest(&self, msg_id: u16) -> usize {
        self.staging(msg_id) + self.depth() * self.chunk_bytes()
    }

    pub(crate) fn dest_span(&self, msg_id: u16, len: usize) -> Span {
        self.part(self.dest(msg_id), len).span
    }

    // Requests.

    /// Writes a request into its chunk: `data`, or room for it, then message and header.
    pub(crate) fn post_image(&mut self, cid: usize, msg_id: u16, image: &Image) {
        let chunk = self.chunks[usize::from(msg_id)];
        let start = self.staging(msg_id);
        let sge = self.part(start, image.bytes.len());
        sge.span.write_at(0, &image.bytes);
        let to = RemoteAddr {
            addr: chunk.addr + image.at as u64,
            rkey: chunk.key,
        };
        let imm = self.request_imm(msg_id, image.header_at);
        let write = WorkRequest::new(WrOp::WriteImm(to, imm))
            .with_sge(sge)
            .signaled(1);
        self.fabric.post(self.conns[cid], &write).unwrap();
    }

    /// Writes into a chunk without a word about it.
    pub(crate) fn write_into_chunk(&mut self, cid: usize, msg_id: u16, bytes: &[u8]) {
        let chunk = self.chunks[usize::from(msg_id)];
        let sge = self.part(self.staging(msg_id), bytes.len());
        sge.span.write_at(0, bytes);
        let to = RemoteAddr {
            addr: chunk.addr,
            rkey: chunk.key,
        };
        let write = WorkRequest::new(WrOp::Write(to)).with_sge(sge).signaled(1);
        self.fabric.post(self.conns[cid], &write).unwrap();
    }

    /// A READ whose data goes to this chunk's part of the buffer.
    pub(crate) fn read(&mut self, cid: usize, msg_id: u16, len: usize, message: &[u8]) {
        let descriptor = self.descriptor(msg_id, len);
        let image = Image::read(len, message, descriptor, ReadFlags::empty());
        self.post_image(cid, msg_id, &image);
    }

    /// The same, through a window that the server is to invalidate; returns its rkey.
    pub(crate) fn read_with_window(
        &mut self,
        cid: usize,
        msg_id: u16,
        len: usize,
        message: &[u8],
    ) -> u32 {
        let rkey = self.bind_window(cid, msg_id, len);
        let descriptor = Descriptor {
            key: rkey,
            ..self.descriptor(msg_id, len).unwrap()
        };
        let image = Image::read(len, message, Some(descriptor), ReadFlags::NEED_INVAL);
        self.post_image(cid, msg_id, &image);
        rkey
    }

    /// Opens this chunk's part of the buffer for one answer; returns the rkey.
    pub(crate) fn bind_window(&mut self, cid: usize, msg_id: u16, len: usize) -> u32 {
        let domain = self.domain.unwrap();
        let window = self
            .fabric
            .alloc_window(domain, WindowKind::Connection)
            .unwrap();
        let mr = self.key.unwrap().mr;
        let dest = self.dest_span(msg_id, len);
        self.fabric.bind(self.conns[cid], window, mr, dest).unwrap()
    }

    pub(crate) fn request_imm(&self, msg_id: u16, offset: u32) -> u32 {
        let layout = ImmLayout::new(self.parameters.unwrap().queue_depth).unwrap();
        layout.request(msg_id, offset)
    }

    fn descriptor(&self, msg_id: u16, len: usize) -> Option<Descriptor> {
        let sge = self.part(self.dest(msg_id), len);
        (len > 0).then(|| Descriptor {
            addr: sge.span.addr(),
            key: self.key.unwrap().rkey,
            len: u32::try_from(len).unwrap(),
        })
    }

    pub(crate) fn write(&mut self, cid: usize, msg_id: u16, data: &[u8], message: &[u8]) {
        self.post_image(cid, msg_id, &Image::write(data, message));
    }

    /// Writes ones to the device's first block, over connection 1.
    pub(crate) fn write_block(&mut self, msg_id: u16, id: u32) {
        self.fill_block(msg_id, id, 1);
    }

    /// The same with another byte.
    pub(crate) fn fill_block(&mut self, msg_id: u16, id: u32, byte: u8) {
        let message = io(id, Op::Write, 0, BLOCK).to_bytes();
        self.write(1, msg_id, &[byte; BLOCK], &message);
    }

    pub(crate) fn sess_info(&mut self, msg_id: u16) {
        self.read(
            0,
            msg_id,
            SessInfoRsp::BYTES,
            &SessInfo { ver: 2 }.to_bytes(),
        );
    }

    pub(crate) fn open(&mut self, msg_id: u16, name: &str, access_mode: AccessMode) {
        let open = Open {
            access_mode,
            dev_name: Name::new(name).unwrap(),
        };
        self.read(0, msg_id, OpenRsp::BYTES, &open.to_bytes());
    }

    pub(crate) fn close(&mut self, msg_id: u16, device_id: u32) {
        self.write(0, msg_id, &[], &Close { device_id }.to_bytes());
    }

    pub(crate) fn open_rsp(&self, msg_id: u16) -> OpenRsp {
        let mut bytes = [0; OpenRsp::BYTES];
        self.dest_span(msg_id, bytes.len()).read_at(0, &mut bytes);
        OpenRsp::decode(&bytes).unwrap()
    }

    pub(crate) fn data(&self, msg_id: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dest_span(msg_id, len).read_at(0, &mut bytes);
        bytes
    }

    // Progress.

    pub(crate) fn poll(&mut self, now: Nanos) {
        let mut completions = std::mem::take(&mut self.completions);
        self.fabric.poll(now, &mut completions);
        for completion in completions.drain(..) {
            self.handle(&completion);
        }
        self.completions = completions;
        while let Some(event) = self.fabric.next_event() {
            self.handle_event(event);
        }
        self.fabric.flush(now);
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Connected {
                conn,
                domain,
                private_data,
                ..
            } => self.on_connected(conn, domain, &private_data),
            Event::Closed { conn, reason } => self.closed.push((conn, reason)),
            Event::ConnectRequest { .. } => panic!("nobody listens here"),
        }
    }

    fn on_connected(&mut self, conn: ConnId, domain: DomainId, private_data: &PrivateData) {
        let ConRsp::Accept(parameters) = ConRsp::decode(private_data.as_bytes()).unwrap() else {
            panic!("accepted with a reject");
        };
        self.connected += 1;
        if self.parameters.is_some_and(|known| known != parameters) {
            panic!("connections differ");
        }
        if self.parameters.is_none() {
            self.parameters = Some(parameters);
            self.domain = Some(domain);
            let span = self.buffer.span();
            self.key = Some(
                self.fabric
                    .register(domain, span, Access::RemoteWrite)
                    .unwrap(),
            );
            let info = self.part(MESSAGES, InfoRsp::bytes(parameters.queue_depth));
            self.fabric.post_recv(conn, RECVS, Some(info)).unwrap();
        }
        for wr_id in 0..RECVS {
            self.post_recv(conn, wr_id);
        }
    }

    /// As a Linux client: empty in plain mode, 8 bytes in `NEW_RKEY` mode.
    fn post_recv(&mut self, conn: ConnId, wr_id: u64) {
        let offset = self.rkey_rsp_at(conn, wr_id);
        let buf = self.new_rkey().then(|| self.part(offset, RkeyRsp::BYTES));
        let _closed_meanwhile = self.fabric.post_recv(conn, wr_id, buf);
    }

    fn new_rkey(&self) -> bool {
        self.parameters.unwrap().new_rkey
    }

    fn handle(&mut self, completion: &Completion) {
        let conn = completion.conn;
        match completion.kind {
            CompletionKind::Sent => return,
            CompletionKind::WriteImm(imm) => self.on_imm(conn, imm),
            CompletionKind::Recv { bytes, .. } if completion.wr_id == RECVS => {
                return self.on_info_rsp(bytes as usize);
            }
            CompletionKind::Recv {
                imm: None,
                invalidated,
                bytes,
            } => {
                assert_eq!(bytes, 0, "only INFO_RSP is a plain send with bytes");
                self.invalidated.push(invalidated.unwrap());
            }
            CompletionKind::Recv { imm: Some(imm), .. } => {
                self.on_rkey_rsp(conn, completion.wr_id, imm);
                self.on_imm(conn, imm);
            }
        }
        self.post_recv(conn, completion.wr_id);
    }

    fn on_info_rsp(&mut self, bytes: usize) {
        let mut message = vec![0; bytes];
        self.part(MESSAGES, bytes).span.read_at(0, &mut message);
        let parameters = self.parameters.unwrap();
        let chunk_bytes = parameters.max_io_size + parameters.max_hdr_size;
        let info = InfoRsp::decode(&message).unwrap();
        self.service = info.service();
        for descriptor in info.descriptors() {
            for at in (0..descriptor.len).step_by(chunk_bytes as usize) {
                self.chunks.push(Descriptor {
                    addr: descriptor.addr + u64::from(at),
                    key: descriptor.key,
                    len: chunk_bytes,
                });
            }
        }
        assert_eq!(self.chunks.len(), usize::from(parameters.queue_depth));
    }

    fn rkey_rsp_at(&self, conn: ConnId, wr_id: u64) -> usize {
        let cid = self.conns.iter().position(|&own| own == conn).unwrap();
        let recvs = usize::try_from(RECVS).unwrap();
        1024 + (cid * recvs + usize::try_from(wr_id).unwrap()) * RkeyRsp::BYTES
    }

    fn on_rkey_rsp(&mut self, conn: ConnId, wr_id: u64, imm: u32) {
        let offset = self.rkey_rsp_at(conn, wr_id);
        let mut message = [0; RkeyRsp::BYTES];
        self.part(offset, message.len())
            .span
            .read_at(0, &mut message);
        let rsp = RkeyRsp::decode(&message).unwrap();
        assert_eq!(u32::from(rsp.buf_id), imm & 0x7_ffff);
        self.chunks[usize::from(rsp.buf_id)].key = rsp.rkey;
    }

    fn on_imm(&mut self, conn: ConnId, imm: u32) {
        let layout = ImmLayout::new(self.parameters.unwrap().queue_depth).unwrap();
        match layout.decode(imm) {
            Imm::Response {
                msg_id,
                status,
                invalidated,
            } => {
                let keys = std::mem::take(&mut self.invalidated);
                assert_eq!(
                    invalidated,
                    keys.len() == 1,
                    "one send with invalidate each"
                );
                self.answers.push(Answer {
                    cid: self.conns.iter().position(|&own| own == conn).unwrap(),
                    msg_id,
                    status,
                    invalidated: keys,
                });
            }
            Imm::Heartbeat => {
                self.others.push(imm);
                if self.answers_heartbeats {
                    self.send_imm(0, Imm::HEARTBEAT_ACK);
                }
            }
            _ => self.others.push(imm),
        }
    }

    /// The token that the server gave this path.
    pub(crate) fn token(&self) -> PathToken {
        self.parameters.unwrap().extension.unwrap().token
    }

    /// Asks for the end of another path.
    pub(crate) fn fence(&mut self, token: PathToken) {
        self.send_imm(0, Imm::fence(token));
    }

    /// How often the end of that path was confirmed.
    pub(crate) fn fenced(&self, token: PathToken) -> usize {
        let is_it = |&&imm: &&u32| imm == Imm::fenced(token);
        self.others.iter().filter(is_it).count()
    }

    pub(crate) fn send_imm(&mut self, cid: usize, imm: u32) {
        let write = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, imm)).signaled(1);
        self.fabric.post(self.conns[cid], &write).unwrap();
    }

    pub(crate) fn disconnect(&mut self) {
        for &conn in &self.conns {
            self.fabric.disconnect(conn);
        }
    }

    /// Errno of the reject that ended this connection.
    pub(crate) fn rejected(&self, conn: ConnId) -> Option<Errno> {
        let (_, reason) = self.closed.iter().find(|(own, _)| *own == conn)?;
        match reason {
            CloseReason::Rejected(data) => match ConRsp::decode(data.as_bytes()).unwrap() {
                ConRsp::Reject(errno) => Some(errno),
                ConRsp::Accept(_) => None,
            },
            _ => None,
        }
    }
}

/// Bytes of a client's write into a chunk.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Where in the chunk they go.
    pub(crate) at: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) header_at: u32,
}

impl Image {
    pub(crate) fn write(data: &[u8], message: &[u8]) -> Self {
        let usr_len = u16::try_from(message.len()).unwrap();
        let header = WriteMsg { usr_len }.to_bytes();
        Self {
            at: 0,
            bytes: [data, message, &header].concat(),
            header_at: u32::try_from(data.len() + message.len()).unwrap(),
        }
    }

    pub(crate) fn read(
        room: usize,
        message: &[u8],
        descriptor: Option<Descriptor>,
        flags: ReadFlags,
    ) -> Self {
        let read = ReadMsg {
            usr_len: u16::try_from(message.len()).unwrap(),
            flags,
            descriptor,
        };
        let mut header = vec![0; read.bytes()];
        read.encode(&mut header);
        Self {
            at: room,
            bytes: [message, &header].concat(),
            header_at: u32::try_from(room + message.len()).unwrap(),
        }
    }
}

/// A block request's message.
pub(crate) fn io(device_id: u32, op: Op, sector: u64, bi_size: usize) -> Io {
    Io {
        device_id,
        sector,
        op,
        flags: rnbd_wire::rnbd::IoFlags::empty(),
        bi_size: u32::try_from(bi_size).unwrap(),
        prio: 0,
    }
}
