//! What a server answers to a connect request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::ConRsp;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = ConRsp::decode(bytes) {
        assert_eq!(ConRsp::decode(&message.to_bytes()), Ok(message));
    }
});
