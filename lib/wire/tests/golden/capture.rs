//! Messages of RDMA in a capture of RoCE v2: pcap, Ethernet, IPv4, UDP, and the headers of the
//! InfiniBand specification (volume 1, chapter 9).

use std::collections::{HashMap, HashSet};

/// Bytes of a record's header in a pcap file, and of the file's own.
const RECORD_HEADER: usize = 16;
const FILE_HEADER: usize = 24;
/// Ethernet, IPv4 without options, UDP.
const LOWER_HEADERS: usize = 14 + 20 + 8;
const BASE_HEADER: usize = 12;
const ICRC: usize = 4;

/// Where a packet stands in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Middle,
    Last,
    Only,
}

/// What an operation is, apart from what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Send,
    Write,
    /// A datagram of the connection manager.
    Management,
}

/// A whole message, put together from its packets.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// The queue pair that it is for, on the host of that address.
    pub(crate) to: (u32, u32),
    /// Where a write goes; 0 for others.
    pub(crate) remote_addr: u64,
    pub(crate) imm: Option<u32>,
    pub(crate) invalidates: Option<u32>,
    pub(crate) payload: Vec<u8>,
}

struct Opcode {
    kind: Kind,
    place: Place,
    imm: bool,
    invalidate: bool,
}

impl Opcode {
    /// The operations that RTRS uses; `None` for acknowledgements.
    fn decode(opcode: u8) -> Option<Self> {
        use Kind::{Management, Send, Write};
        use Place::{First, Last, Middle, Only};
        let (kind, place, imm, invalidate) = match opcode {
            0x00 => (Send, First, false, false),
            0x01 => (Send, Middle, false, false),
            0x02 => (Send, Last, false, false),
            0x03 => (Send, Last, true, false),
            0x04 => (Send, Only, false, false),
            0x05 => (Send, Only, true, false),
            0x06 => (Write, First, false, false),
            0x07 => (Write, Middle, false, false),
            0x08 => (Write, Last, false, false),
            0x09 => (Write, Last, true, false),
            0x0a => (Write, Only, false, false),
            0x0b => (Write, Only, true, false),
            0x16 => (Send, Last, false, true),
            0x17 => (Send, Only, false, true),
            0x64 => (Management, Only, false, false),
            0x11 => return None,
            other => panic!("RTRS does not use opcode {other:#x}"),
        };
        Some(Self {
            kind,
            place,
            imm,
            invalidate,
        })
    }
}

/// The messages of a pcap file, in the order in which they were complete.
pub(crate) fn messages(file: &[u8]) -> Vec<Message> {
    assert_eq!(file[..4], 0xa1b2_c3d4_u32.to_le_bytes(), "no pcap file");
    let mut rest = &file[FILE_HEADER..];
    let mut listener = Listener::default();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let captured = le32(&rest[8..]) as usize;
        assert_eq!(le32(&rest[12..]) as usize, captured, "a packet was cut off");
        messages.extend(listener.hear(&rest[RECORD_HEADER..][..captured]));
        rest = &rest[RECORD_HEADER + captured..];
    }
    messages
}

/// Puts messages together.
#[derive(Default)]
struct Listener {
    begun: HashMap<(u32, u32), Message>,
    /// Packets by queue pair and number, to know those that were sent again.
    heard: HashSet<((u32, u32), u32)>,
}

impl Listener {
    /// Returns the message that this packet completes.
    fn hear(&mut self, packet: &[u8]) -> Option<Message> {
        let transport = &packet[LOWER_HEADERS..packet.len() - ICRC];
        let opcode = Opcode::decode(transport[0])?;
        let to = (be32(&packet[30..]), be32(&transport[4..]) & 0xff_ffff);
        let number = be32(&transport[8..]) & 0xff_ffff;
        if opcode.kind != Kind::Management && !self.heard.insert((to, number)) {
            return None;
        }
        let padding = usize::from(transport[1] >> 4 & 3);
        let headers = &transport[BASE_HEADER..transport.len() - padding];
        self.join(&opcode, Message::from_headers(&opcode, to, headers))
    }

    fn join(&mut self, opcode: &Opcode, part: Message) -> Option<Message> {
        let to = part.to;
        let message = match opcode.place {
            Place::First | Place::Only => part,
            Place::Middle | Place::Last => {
                let mut message = self.begun.remove(&to).expect("its first packet");
                message.append(part);
                message
            }
        };
        match opcode.place {
            Place::Only | Place::Last => Some(message),
            Place::First | Place::Middle => {
                self.begun.insert(to, message);
                None
            }
        }
    }
}

impl Message {
    fn from_headers(opcode: &Opcode, to: (u32, u32), mut headers: &[u8]) -> Self {
        let mut take = |bytes| {
            let (taken, rest) = headers.split_at(bytes);
            headers = rest;
            taken
        };
        let starts = matches!(opcode.place, Place::First | Place::Only);
        let mut remote_addr = 0;
        match opcode.kind {
            Kind::Write if starts => remote_addr = be64(take(16)),
            // A datagram says who sends it.
            Kind::Management => _ = take(8),
            Kind::Write | Kind::Send => {}
        }
        let imm = opcode.imm.then(|| be32(take(4)));
        let invalidates = opcode.invalidate.then(|| be32(take(4)));
        Self {
            kind: opcode.kind,
            to,
            remote_addr,
            imm,
            invalidates,
            payload: headers.to_vec(),
        }
    }

    fn append(&mut self, part: Self) {
        assert_eq!(self.kind, part.kind, "messages are mixed up");
        self.payload.extend(part.payload);
        self.imm = part.imm;
        self.invalidates = part.invalidates;
    }
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("four bytes"))
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().expect("four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().expect("eight bytes"))
}
