//! The first message on a path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::InfoReq;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = InfoReq::decode(bytes) {
        assert_eq!(InfoReq::decode(&message.to_bytes()), Ok(message));
    }
});
