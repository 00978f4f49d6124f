//! What a server tells about a device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rnbd::OpenRsp;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = OpenRsp::decode(bytes) {
        assert_eq!(OpenRsp::decode(&message.to_bytes()), Ok(message));
    }
});
