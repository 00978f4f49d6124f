//! A new key for a chunk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::RkeyRsp;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = RkeyRsp::decode(bytes) {
        assert_eq!(RkeyRsp::decode(&message.to_bytes()), Ok(message));
    }
});
