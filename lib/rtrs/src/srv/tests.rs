use std::net::Ipv4Addr;

use proptest::prelude::*;
use rnbd_base::{Errno, Host, Nanos};
use rnbd_wire::rtrs::{ConReq, Descriptor, InfoReq, ReadFlags, ReadMsg, WriteMsg};
use rnbd_wire::{Imm, ImmLayout, Name};

use super::*;

mod admission;
mod fence;
mod hostile;
mod serving;

const NOW: Nanos = Nanos(1_000);
const DEPTH: u16 = 8;
const CHUNK: u32 = 8192;
const SESSION: [u8; 16] = [0x5e; 16];

/// A server with one client that says whatever the test wants.
struct Bed {
    sessions: Sessions,
    now: Nanos,
}

impl Bed {
    fn new(new_rkey: bool) -> Self {
        let config = Config {
            queue_depth: DEPTH,
            chunk_bytes: CHUNK,
            new_rkey,
            ..Config::default()
        };
        Self::with(config)
    }

    fn with(config: Config) -> Self {
        Self {
            sessions: Sessions::new(config, Tokens::default()).unwrap(),
            now: NOW,
        }
    }

    fn request(&mut self, request: &ConReq, host: u8) -> Decision {
        self.sessions
            .handle_con_req(&request.to_bytes(), route(host), self.now)
    }

    fn connect(&mut self, uuid: u8, host: u8) -> PathKey {
        let mut path = None;
        for cid in 0..3 {
            let decision = self.request(&con_req(uuid, cid), host);
            path = Some(decision.verdict.unwrap().path);
        }
        path.unwrap()
    }

    fn info(&mut self, key: PathKey, name: &str) -> Result<InfoAccepted, Violation> {
        let pathname = Name::new(name).unwrap();
        let message = InfoReq { pathname }.to_bytes();
        self.sessions
            .handle_info_req(key, &message, self.now, |_, _| true)
    }

    /// A path that serves.
    fn up(&mut self) -> PathKey {
        let key = self.connect(1, 1);
        self.info(key, "clt1").unwrap();
        key
    }

    fn path(&mut self, key: PathKey) -> &mut Path {
        self.sessions.path_mut(key).unwrap()
    }

    fn imm(&mut self, key: PathKey, cid: u16, imm: u32) -> Result<Inbound, Violation> {
        let now = self.now;
        self.path(key).handle_imm(cid, imm, now)
    }

    /// Brings a request in and passes its header on.
    fn arrive(
        &mut self,
        key: PathKey,
        msg_id: u16,
        offset: u32,
        header: &[u8],
    ) -> Result<Result<Request, Errno>, Violation> {
        match self.imm(key, 1, request_imm(msg_id, offset))? {
            Inbound::Revoke { msg_id, .. } => {
                assert_eq!(self.path(key).handle_revoked(msg_id), Some(offset));
            }
            Inbound::Request { .. } => (),
            other => panic!("{other:?}"),
        }
        self.path(key).handle_header(msg_id, header)
    }

    fn lose(&mut self, key: PathKey) {
        let path = self.path(key);
        path.close(CloseCause::ConnectionLost("test"));
        for cid in 0..3 {
            path.handle_con_closed(cid);
        }
    }
}

fn route(host: u8) -> Route {
    Route {
        client: Host::Ip(Ipv4Addr::new(192, 0, 2, host).into()),
        server: Host::Ip(Ipv4Addr::LOCALHOST.into()),
    }
}

fn con_req(uuid: u8, cid: u16) -> ConReq {
    ConReq {
        cid,
        cid_num: 3,
        recon_cnt: 1,
        sess_uuid: [uuid; 16],
        paths_uuid: SESSION,
        first_conn: true,
        extension: None,
    }
}

fn request_imm(msg_id: u16, offset: u32) -> u32 {
    ImmLayout::new(DEPTH).unwrap().request(msg_id, offset)
}

fn read_header(usr_len: u16, need_inval: bool, len: Option<u32>) -> Vec<u8> {
    let flags = if need_inval {
        ReadFlags::NEED_INVAL
    } else {
        ReadFlags::empty()
    };
    let descriptor = len.map(|len| Descriptor {
        addr: 0xabc0,
        key: 77,
        len,
    });
    let message = ReadMsg {
        usr_len,
        flags,
        descriptor,
    };
    let mut bytes = vec![0; message.bytes()];
    message.encode(&mut bytes);
    bytes
}

fn write_header(usr_len: u16) -> Vec<u8> {
    WriteMsg { usr_len }.to_bytes().to_vec()
}
