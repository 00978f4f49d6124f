//! I/O over TCP allocates nothing, neither in the initiator nor in the target.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod pair;

use pair::attached;
use rnbd_bdev::{BdevIo, IoOp};
use rnbd_mem::{Memory, MemoryConfig, Pages};

#[test]
fn reads_and_writes_are_done_without_an_allocation() {
    for new_rkey in [false, true] {
        let memory = Memory::new(MemoryConfig::default());
        let (mut pair, mut channel) = attached(&memory, new_rkey);
        let buffer = memory.alloc("test", 64 * 65_536, Pages::Small).unwrap();
        let mut done = Vec::with_capacity(64);
        let mut run = |count: u64| {
            let (mut begun, mut ended) = (0, 0);
            let mut now = pair.poll();
            while ended < count {
                while begun < count && begun - ended < 64 {
                    let num_blocks = if begun % 5 == 0 { 128 } else { 8 };
                    let slot = usize::try_from(begun % 64).unwrap() * 65_536;
                    let io = BdevIo {
                        tag: begun,
                        op: if begun % 2 == 0 {
                            IoOp::Read
                        } else {
                            IoOp::Write { fua: false }
                        },
                        offset_blocks: begun % 1024,
                        num_blocks,
                        buf: buffer
                            .span()
                            .slice(slot, usize::try_from(num_blocks).unwrap() * 512)
                            .unwrap(),
                        prio: 0,
                    };
                    channel.submit(&io, now).unwrap();
                    begun += 1;
                }
                now = pair.poll();
                channel.poll(now, &mut done);
                for one in done.drain(..) {
                    assert_eq!(one.result, Ok(()));
                    ended += 1;
                }
            }
        };
        run(2000);
        let counted = allocation_counter::measure(|| run(5000));
        assert_eq!(counted.count_total, 0, "new_rkey {new_rkey}");
    }
}
