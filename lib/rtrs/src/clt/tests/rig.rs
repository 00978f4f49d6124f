//! A session and its channels without a fabric: a test sees what they would send and answers it.

use std::collections::VecDeque;

use rnbd_base::Nanos;
use rnbd_wire::Name;
use rnbd_wire::extension::ServiceId;
use rnbd_wire::rtrs::{ConReq, ConRsp, Descriptor, InfoRsp, PathParameters, RkeyRsp};

use crate::clt::{
    Arrival, Channel, ChannelAction, Ended, PathError, PathIndex, Post, Request, ServerId, Session,
    SessionAction, SessionConfig, SessionEvent, Step, WrId,
};

pub(super) const PATH: PathIndex = PathIndex(0);
pub(super) const PATH_UUID: &str = "0f1e2d3c4b5a49788796a5b4c3d2e1f0";
pub(super) const SESSION_UUID: &str = "112233445566 4778899aabbccddeeff0";
/// Where chunk 0 is on the played server.
pub(super) const CHUNKS_AT: u64 = 0x7f00_1000_0000;

/// Bytes of hexadecimal digits; blanks are skipped.
pub(super) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// A vector of the protocol's reference, as bytes.
pub(super) fn vector(name: &str) -> Vec<u8> {
    let all: serde_json::Value =
        serde_json::from_str(include_str!("../../../../../test/protocol-vectors.json")).unwrap();
    let mut vectors = all["vectors"].as_array().unwrap().iter();
    let found = vectors.find(|vector| vector["name"] == name).unwrap();
    hex(found["hex"].as_str().unwrap())
}

pub(super) fn uuid(digits: &str) -> [u8; 16] {
    hex(digits).try_into().unwrap()
}

pub(super) fn accept(queue_depth: u16, new_rkey: bool) -> PathParameters {
    PathParameters {
        queue_depth,
        max_io_size: 126_976,
        max_hdr_size: 4096,
        new_rkey,
        extension: None,
    }
}

/// One descriptor for all chunks, with key 0x00181234.
pub(super) fn info_rsp(params: &PathParameters) -> Vec<u8> {
    info_rsp_of(params, None)
}

/// The same, from a server that says which service the path belongs to.
pub(super) fn info_rsp_of(params: &PathParameters, service: Option<ServiceId>) -> Vec<u8> {
    let chunk = params.max_io_size + params.max_hdr_size;
    let all = Descriptor {
        addr: CHUNKS_AT,
        key: 0x0018_1234,
        len: chunk * u32::from(params.queue_depth),
    };
    let mut message = vec![0; InfoRsp::bytes(1)];
    InfoRsp::encode(&[all], service, &mut message);
    message
}

/// What would have gone out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Out {
    Connect(u16, ConReq),
    Disconnect(u16),
    Info(Vec<u8>),
    Receives(u16, u32, u32),
    Immediate(u32),
}

pub(super) struct Rig {
    pub(super) now: Nanos,
    pub(super) session: Session,
    pub(super) channels: Vec<Channel>,
    pub(super) out: VecDeque<Out>,
    pub(super) events: Vec<SessionEvent>,
    pub(super) ended: Vec<(u16, Ended)>,
    pub(super) params: PathParameters,
}

impl Rig {
    pub(super) fn new(config: SessionConfig, params: PathParameters) -> Self {
        let name = Name::new("clt1-srv1").unwrap();
        let mut session = Session::new(name, uuid(SESSION_UUID), config);
        assert_eq!(session.add_path(uuid(PATH_UUID), ServerId(0), 1), Ok(PATH));
        let channels = (0..config.channels)
            .map(|index| Channel::new(index, config))
            .collect();
        Self {
            now: Nanos::ZERO,
            session,
            channels,
            out: VecDeque::new(),
            events: Vec::new(),
            ended: Vec::new(),
            params,
        }
    }

    /// A session of one channel that is up, in the mode of `params`.
    pub(super) fn up(params: PathParameters) -> Self {
        let mut rig = Self::new(SessionConfig::default(), params);
        rig.start();
        rig.play_handshake();
        assert!(rig.session.is_up());
        rig
    }

    pub(super) fn start(&mut self) {
        self.session.start(PATH, self.now);
        self.run();
    }

    /// Delivers what the machines have for each other, and notes the rest.
    pub(super) fn run(&mut self) {
        loop {
            if let Some(action) = self.session.poll_action() {
                self.on_session_action(action);
            } else if !self.run_channels() {
                break;
            }
        }
        self.events
            .extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    fn on_session_action(&mut self, action: SessionAction) {
        match action {
            SessionAction::Connect { request, .. } => self.out.push_back(Out::Connect(0, request)),
            SessionAction::PostInfoReceive { .. } => {}
            SessionAction::SendInfo { .. } => {
                self.out
                    .push_back(Out::Info(self.session.info_req().to_vec()));
            }
            SessionAction::PostReceives { count, bytes, .. } => {
                self.out.push_back(Out::Receives(0, count, bytes));
            }
            SessionAction::SendImmediate { imm, .. } => self.out.push_back(Out::Immediate(imm)),
            SessionAction::Disconnect { .. } => self.out.push_back(Out::Disconnect(0)),
            SessionAction::ToChannel { channel, message } => {
                self.channels[usize::from(channel)].handle_message(&message, self.now);
            }
        }
    }

    fn run_channels(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.channels.len() {
            let cid = u16::try_from(index).unwrap() + 1;
            while let Some(action) = self.channels[index].poll_action() {
                any = true;
                match action {
                    ChannelAction::Connect { request, .. } => {
                        self.out.push_back(Out::Connect(cid, request));
                    }
                    ChannelAction::PostReceives { count, bytes, .. } => {
                        self.out.push_back(Out::Receives(cid, count, bytes));
                    }
                    ChannelAction::Up(_) => {}
                    ChannelAction::Disconnect(_) => self.out.push_back(Out::Disconnect(cid)),
                    ChannelAction::Send(message) => {
                        self.session.handle_channel(cid - 1, message, self.now);
                    }
                }
            }
        }
        any
    }

    // What the server does.

    /// Accepts the connection with this cid.
    pub(super) fn accept(&mut self, cid: u16, private_data: &[u8]) {
        match cid {
            0 => self.session.handle_connected(PATH, private_data, self.now),
            _ => self.channels[usize::from(cid) - 1].handle_connected(PATH, private_data),
        }
        self.run();
    }

    /// Ends the connection with this cid.
    pub(super) fn close(&mut self, cid: u16, error: PathError) {
        let ended = &mut self.ended;
        let tell = |msg_id, how| ended.push((msg_id, how));
        match cid {
            0 => self.session.handle_closed(PATH, error, self.now, tell),
            _ => self.channels[usize::from(cid) - 1].handle_closed(PATH, error, tell),
        }
        self.run();
    }

    pub(super) fn info(&mut self, message: &[u8]) {
        self.session.handle_info_rsp(PATH, message, self.now);
        self.run();
    }

    pub(super) fn info_rsp(&self) -> Vec<u8> {
        info_rsp(&self.params)
    }

    /// Plays a server that agrees with everything, until nothing more is asked of it.
    pub(super) fn play_handshake(&mut self) {
        let accept = ConRsp::Accept(self.params).to_bytes();
        while let Some(out) = self.out.pop_front() {
            match out {
                Out::Connect(cid, _) => self.accept(cid, &accept),
                Out::Info(_) => self.info(&self.info_rsp()),
                Out::Disconnect(cid) => self.close(cid, PathError::Requested),
                Out::Receives(..) | Out::Immediate(_) => {}
            }
        }
    }

    pub(super) fn advance(&mut self, span: Nanos) {
        self.now += span;
        self.session.handle_timeout(self.now);
        for channel in &mut self.channels {
            channel.handle_timeout(self.now);
        }
        self.run();
    }

    // Requests of the first channel.

    pub(super) fn begin(&mut self, request: &Request) -> Post {
        self.channels[0].begin(PATH, request, self.now).unwrap()
    }

    pub(super) fn arrive(&mut self, arrival: Arrival) -> Step {
        let step = self.channels[0].handle_arrival(PATH, arrival, self.now);
        self.run();
        step
    }

    /// Operations up to this one were executed; the requests that ended by that.
    pub(super) fn sent(&mut self, serial: u32) -> Vec<u16> {
        let channel = &mut self.channels[0];
        let step = channel.handle_sent(PATH, WrId::Executed(serial));
        assert_eq!(step, Step::Wait);
        let next = std::iter::from_fn(|| channel.next_sent(PATH));
        next.map(|done| done.msg_id).collect()
    }

    /// The error that a path went down with.
    pub(super) fn path_error(&self) -> PathError {
        self.session.path(PATH).unwrap().error
    }
}

/// A send of the server's with this immediate and these bytes.
pub(super) fn message(imm: Option<u32>, invalidated: Option<u32>, bytes: &[u8]) -> Arrival {
    let mut copy = [0; RkeyRsp::BYTES];
    let len = bytes.len().min(copy.len());
    copy[..len].copy_from_slice(&bytes[..len]);
    Arrival::Message {
        imm,
        invalidated,
        len: u32::try_from(bytes.len()).unwrap(),
        bytes: copy,
    }
}
