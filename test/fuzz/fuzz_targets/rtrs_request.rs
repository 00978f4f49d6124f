//! The RTRS header of a request in a chunk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::{ReadMsg, Request};

fuzz_target!(|bytes: &[u8]| {
    let encoded = match Request::decode(bytes) {
        Ok(Request::Read(read)) => {
            let mut out = vec![0; ReadMsg::BYTES_MAX];
            let len = read.encode(&mut out);
            out.truncate(len);
            out
        }
        Ok(Request::Write(write)) => write.to_bytes().to_vec(),
        Err(_) => return,
    };
    assert_eq!(Request::decode(&encoded), Request::decode(bytes));
});
