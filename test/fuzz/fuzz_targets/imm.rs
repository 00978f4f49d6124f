//! The immediate, for every queue depth.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rnbd_wire::{Imm, ImmLayout};

fuzz_target!(|input: (u16, u32)| {
    let (queue_depth, value) = input;
    let Some(layout) = ImmLayout::new(queue_depth) else {
        assert_eq!(queue_depth, 0);
        return;
    };
    match layout.decode(value) {
        Imm::Request { msg_id, offset } => assert_eq!(
            layout.decode(layout.request(msg_id, offset)),
            Imm::Request { msg_id, offset }
        ),
        Imm::Fence(token) => assert_eq!(Imm::fence(token), value),
        Imm::Fenced(token) => assert_eq!(Imm::fenced(token), value),
        _ => (),
    }
});
