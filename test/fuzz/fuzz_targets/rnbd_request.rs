//! The RNBD message of a request in a chunk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rnbd::Request;

fuzz_target!(|bytes: &[u8]| {
    let encoded = match Request::decode(bytes) {
        Ok(Request::SessInfo(message)) => message.to_bytes().to_vec(),
        Ok(Request::Open(message)) => message.to_bytes().to_vec(),
        Ok(Request::Io(message)) => message.to_bytes().to_vec(),
        Ok(Request::Close(message)) => message.to_bytes().to_vec(),
        Err(_) => return,
    };
    assert_eq!(Request::decode(&encoded), Request::decode(bytes));
});
