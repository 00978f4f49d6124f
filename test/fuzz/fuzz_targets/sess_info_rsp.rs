//! The version that a server speaks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rnbd::SessInfoRsp;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = SessInfoRsp::decode(bytes) {
        assert_eq!(SessInfoRsp::decode(&message.to_bytes()), Ok(message));
    }
});
