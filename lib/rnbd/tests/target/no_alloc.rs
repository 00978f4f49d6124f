//! Serving allocates nothing once sessions and devices are open.

use rnbd_base::Poll;
use rnbd_wire::rnbd::Op;

use crate::client::io;
use crate::rig::{BLOCK, DEPTH, Loopback, Options, Rig, new_rkey};

/// Allocations of the shard while `rounds` times all chunks are used for reads and writes.
fn allocations(options: Options, export: &str, rounds: u32) -> u64 {
    let mut rig = Rig::new(Loopback::new(), options);
    let (mut client, id) = rig.up_with(export);
    let data = [7; 4 * BLOCK];
    let mut allocations = 0;
    for round in 0..rounds {
        for msg_id in 0..DEPTH {
            let cid = usize::from(msg_id) % 3;
            let message = |op| io(id, op, u64::from(msg_id) * 8, data.len()).to_bytes();
            if round % 2 == 0 {
                client.write(cid, msg_id, &data, &message(Op::Write));
            } else {
                client.read(cid, msg_id, data.len(), &message(Op::Read));
            }
        }
        while client.answers.len() < usize::from(DEPTH) {
            let counted = allocation_counter::measure(|| {
                rig.shards[0].poll(rig.now);
            });
            allocations += if round < 4 { 0 } else { counted.count_total };
            client.poll(rig.now);
            rig.now = crate::rig::World::advance(&mut rig.world, rig.now, None);
        }
        assert!(client.answers.drain(..).all(|answer| answer.status.is_ok()));
    }
    allocations
}

#[test]
fn serving_allocates_nothing() {
    assert_eq!(allocations(Options::default(), "disk", 200), 0, "in place");
    assert_eq!(
        allocations(Options::default(), "slow", 10),
        0,
        "through the chunk"
    );
    assert_eq!(allocations(new_rkey(), "disk", 200), 0, "with new rkeys");
}
