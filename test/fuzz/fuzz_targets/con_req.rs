//! What a client sends with its connect request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::ConReq;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = ConReq::decode(bytes) {
        assert_eq!(ConReq::decode(&message.to_bytes()), Ok(message));
    }
});
