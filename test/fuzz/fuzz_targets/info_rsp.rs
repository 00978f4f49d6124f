//! The chunks that a server offers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::rtrs::InfoRsp;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = InfoRsp::decode(bytes) else {
        return;
    };
    let descriptors: Vec<_> = message.descriptors().collect();
    let count = u16::try_from(descriptors.len()).expect("the field has 16 bits");
    let mut encoded = vec![0; InfoRsp::bytes(count)];
    InfoRsp::encode(&descriptors, message.service(), &mut encoded);
    let again = InfoRsp::decode(&encoded).expect("it was made by the encoder");
    assert_eq!(again.service(), message.service());
    assert!(again.descriptors().eq(descriptors));
});
