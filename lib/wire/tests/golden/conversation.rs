//! Two peers, overheard: knows so much of the state between them that it can tell what each message
//! is, and compares all of its bytes with what this crate makes of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use rnbd_wire::rnbd::{self, Io, Open, OpenRsp, SessInfoRsp};
use rnbd_wire::rtrs::{
    ConReq, ConRsp, Descriptor, InfoReq, InfoRsp, PathParameters, ReadMsg, Request, RkeyRsp,
};
use rnbd_wire::{Imm, ImmLayout};

use crate::capture::{Kind, Message};

/// Bytes before the CM's own part of a management datagram, and the place in that of private data
/// (InfiniBand volume 1, 12.6.5 and 12.6.8).
const MANAGEMENT_HEADER: usize = 24;
const REQ_PRIVATE_DATA: usize = MANAGEMENT_HEADER + 140;
const REP_PRIVATE_DATA: usize = MANAGEMENT_HEADER + 36;
/// The addresses that the CM puts before a request's private data.
const CM_IP_HEADER: usize = 36;

/// What Linux leaves unset in every message of RNBD.
const HEADER_PADDING: Range<usize> = 2..4;

#[derive(Default)]
pub(crate) struct Conversation {
    path: Option<PathParameters>,
    chunks: Vec<Descriptor>,
    /// What is to be written to that address of the client.
    awaited: HashMap<u64, Answer>,
    heard: BTreeMap<&'static str, usize>,
}

#[derive(Clone, Copy)]
enum Answer {
    SessInfo,
    Open,
    Data,
}

impl Conversation {
    pub(crate) fn hear(&mut self, message: &Message) {
        match (message.kind, message.imm, message.invalidates) {
            (Kind::Management, ..) => self.hear_management(&message.payload),
            (Kind::Send, Some(imm), _) => self.hear_rkey(imm, &message.payload),
            (Kind::Send, None, Some(_)) => self.note("invalidation"),
            (Kind::Send, None, None) => self.hear_info(&message.payload),
            (Kind::Write, Some(imm), _) if message.payload.is_empty() => self.hear_imm(imm),
            (Kind::Write, Some(imm), _) => self.hear_request(imm, message),
            (Kind::Write, None, _) => self.hear_answer(message),
        }
    }

    /// How often each kind of message was heard.
    pub(crate) fn heard(self) -> BTreeMap<&'static str, usize> {
        self.heard
    }

    fn note(&mut self, what: &'static str) {
        *self.heard.entry(what).or_default() += 1;
    }

    fn hear_management(&mut self, datagram: &[u8]) {
        match u16::from_be_bytes([datagram[16], datagram[17]]) {
            0x10 => {
                let theirs = &datagram[REQ_PRIVATE_DATA + CM_IP_HEADER..][..ConReq::BYTES];
                let request = ConReq::decode(theirs).expect("a CON_REQ");
                self.compare("CON_REQ", &request.to_bytes(), theirs);
            }
            0x13 => {
                let theirs = &datagram[REP_PRIVATE_DATA..][..ConRsp::BYTES];
                let response = ConRsp::decode(theirs).expect("a CON_RSP");
                self.compare("CON_RSP", &response.to_bytes(), theirs);
                if let ConRsp::Accept(path) = response {
                    self.path = Some(path);
                }
            }
            _ => self.note("other management"),
        }
    }

    fn hear_info(&mut self, theirs: &[u8]) {
        if let Ok(request) = InfoReq::decode(theirs) {
            return self.compare("INFO_REQ", &request.to_bytes(), theirs);
        }
        let response = InfoRsp::decode(theirs).expect("an INFO_RSP");
        assert_eq!(response.service(), None, "a kernel says nothing there");
        self.chunks = response.descriptors().collect();
        let mut ours = vec![0; theirs.len()];
        assert_eq!(InfoRsp::encode(&self.chunks, None, &mut ours), theirs.len());
        self.compare("INFO_RSP", &ours, theirs);
    }

    fn hear_request(&mut self, imm: u32, message: &Message) {
        let Imm::Request { msg_id, offset } = self.layout().decode(imm) else {
            panic!("{imm:#x} comes with a request");
        };
        assert_eq!(self.layout().request(msg_id, offset), imm);
        let start = message.remote_addr - self.chunk_addr(msg_id);
        let header_start = usize::try_from(u64::from(offset) - start).expect("within a chunk");
        let (rest, theirs) = message.payload.split_at(header_start);
        let header = Request::decode(theirs).expect("a header of RTRS");
        let user_start = header_start - usize::from(header.usr_len());
        let answer = self.hear_user_message(&rest[user_start..]);
        match header {
            Request::Write(write) => self.compare("WRITE", &write.to_bytes(), theirs),
            Request::Read(read) => self.hear_read(read, theirs, answer),
        }
    }

    fn hear_read(&mut self, read: ReadMsg, theirs: &[u8], answer: Answer) {
        let mut ours = vec![0; read.bytes()];
        read.encode(&mut ours);
        self.compare("READ", &ours, theirs);
        if let Some(descriptor) = read.descriptor {
            self.awaited.insert(descriptor.addr, answer);
        }
    }

    fn hear_user_message(&mut self, theirs: &[u8]) -> Answer {
        match rnbd::Request::decode(theirs).expect("a message of RNBD") {
            rnbd::Request::SessInfo(message) => {
                let unset = [HEADER_PADDING, 5..36];
                self.compare_but("SESS_INFO", &message.to_bytes(), theirs, &unset);
                Answer::SessInfo
            }
            rnbd::Request::Open(message) => {
                let name_end = 6 + message.dev_name.as_bytes().len() + 1;
                let unset = [HEADER_PADDING, 5..6, name_end..Open::BYTES];
                self.compare_but("OPEN", &message.to_bytes(), theirs, &unset);
                Answer::Open
            }
            rnbd::Request::Io(message) => {
                let unset = [HEADER_PADDING, 26..32];
                self.compare_but(name_of(message), &message.to_bytes(), theirs, &unset);
                Answer::Data
            }
            rnbd::Request::Close(message) => {
                let unset = std::slice::from_ref(&HEADER_PADDING);
                self.compare_but("CLOSE", &message.to_bytes(), theirs, unset);
                Answer::Data
            }
        }
    }

    fn hear_answer(&mut self, message: &Message) {
        let theirs = &message.payload;
        let awaited = self.awaited.remove(&message.remote_addr);
        match awaited.expect("somebody asked for it") {
            Answer::SessInfo => {
                let response = SessInfoRsp::decode(theirs).expect("a SESS_INFO_RSP");
                let unset = [HEADER_PADDING, 5..36];
                self.compare_but("SESS_INFO_RSP", &response.to_bytes(), theirs, &unset);
            }
            Answer::Open => {
                let response = OpenRsp::decode(theirs).expect("an OPEN_RSP");
                let unset = [HEADER_PADDING, 46..56];
                self.compare_but("OPEN_RSP", &response.to_bytes(), theirs, &unset);
            }
            Answer::Data => self.note("data"),
        }
    }

    fn hear_rkey(&mut self, imm: u32, theirs: &[u8]) {
        let response = RkeyRsp::decode(theirs).expect("an RKEY_RSP");
        let Imm::Response { msg_id, .. } = self.layout().decode(imm) else {
            panic!("{imm:#x} comes with an RKEY_RSP");
        };
        assert_eq!(u32::from(response.buf_id), msg_id);
        self.compare("RKEY_RSP", &response.to_bytes(), theirs);
        self.hear_imm(imm);
    }

    fn hear_imm(&mut self, imm: u32) {
        match self.layout().decode(imm) {
            Imm::Response {
                msg_id,
                status,
                invalidated,
            } => {
                let msg_id = u16::try_from(msg_id).expect("a chunk");
                assert_eq!(Imm::response(msg_id, status, invalidated), imm);
                self.note(if status.is_ok() { "success" } else { "failure" });
            }
            Imm::Heartbeat => self.hear_heartbeat("heartbeat", imm, Imm::HEARTBEAT),
            Imm::HeartbeatAck => self.hear_heartbeat("heartbeat ack", imm, Imm::HEARTBEAT_ACK),
            other => panic!("{other:?} without a payload"),
        }
    }

    fn hear_heartbeat(&mut self, what: &'static str, imm: u32, ours: u32) {
        assert_eq!(imm, ours);
        self.note(what);
    }

    fn compare(&mut self, what: &'static str, ours: &[u8], theirs: &[u8]) {
        self.compare_but(what, ours, theirs, &[]);
    }

    /// Compares all but what Linux leaves `unset`.
    fn compare_but(
        &mut self,
        what: &'static str,
        ours: &[u8],
        theirs: &[u8],
        unset: &[Range<usize>],
    ) {
        let mut theirs = theirs.to_vec();
        assert_eq!(ours.len(), theirs.len(), "length of {what}");
        for range in unset.iter().cloned() {
            theirs[range.clone()].copy_from_slice(&ours[range]);
        }
        assert_eq!(ours, theirs, "{what}");
        self.note(what);
    }

    fn layout(&self) -> ImmLayout {
        let path = self.path.expect("a CON_RSP came before");
        ImmLayout::new(path.queue_depth).expect("a queue depth")
    }

    fn chunk_addr(&self, msg_id: u16) -> u64 {
        let path = self.path.expect("a CON_RSP came before");
        let chunk_bytes = u64::from(path.max_io_size + path.max_hdr_size);
        let mut offset = u64::from(msg_id) * chunk_bytes;
        for descriptor in &self.chunks {
            if offset < u64::from(descriptor.len) {
                return descriptor.addr + offset;
            }
            offset -= u64::from(descriptor.len);
        }
        panic!("the server has no chunk {msg_id}");
    }
}

fn name_of(message: Io) -> &'static str {
    match message.op {
        rnbd::Op::Read => "read",
        rnbd::Op::Write => "write",
        rnbd::Op::Flush => "flush",
        rnbd::Op::Discard => "discard",
        rnbd::Op::SecureErase | rnbd::Op::WriteZeroes => "never sent by Linux 6.1",
    }
}
