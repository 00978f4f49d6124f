//! What two peers of this project agree on, in messages that are otherwise right: random bytes
//! seldom get past the magic numbers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::{ConReq, ConRsp, PathParameters};

fuzz_target!(|input: ([u8; 8], [u8; 36], bool)| {
    let (mut offer, mut agreement, with_magic) = input;
    if with_magic {
        offer[..4].copy_from_slice(b"RNBX");
        agreement[..4].copy_from_slice(b"RNBX");
    }
    request(offer);
    response(agreement);
});

fn request(offer: [u8; 8]) {
    let plain = ConReq {
        cid: 0,
        cid_num: 2,
        recon_cnt: 1,
        sess_uuid: [1; 16],
        paths_uuid: [2; 16],
        first_conn: true,
        extension: None,
    };
    let mut bytes = plain.to_bytes();
    bytes[48..].copy_from_slice(&offer);
    let message = ConReq::decode(&bytes).expect("an offer never makes a request wrong");
    assert_eq!(ConReq::decode(&message.to_bytes()), Ok(message));
    let without = ConReq {
        extension: None,
        ..message
    };
    assert_eq!(without, plain);
}

fn response(agreement: [u8; 36]) {
    let plain = PathParameters {
        queue_depth: 512,
        max_io_size: 126_976,
        max_hdr_size: 4096,
        new_rkey: true,
        extension: None,
    };
    let mut bytes = ConRsp::Accept(plain).to_bytes();
    bytes[20..].copy_from_slice(&agreement);
    if let Ok(message) = ConRsp::decode(&bytes) {
        assert_eq!(ConRsp::decode(&message.to_bytes()), Ok(message));
    }
}
