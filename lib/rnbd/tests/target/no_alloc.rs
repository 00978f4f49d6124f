//! Serving allocates nothing once sessions and devices are open.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rnbd_base::Poll;
use rnbd_wire::rnbd::{AccessMode, Op};

use crate::client::{Identity, io};
use crate::rig::{BLOCK, DEPTH, Loopback, Options, Rig, new_rkey};

/// Counts what the current thread allocates and frees while it is armed.
struct Counting;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    if ARMED.get() {
        COUNT.set(COUNT.get() + 1);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are the same.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the shard while `rounds` times all chunks are used for reads and writes.
fn allocations(options: Options, export: &str, rounds: u32) -> usize {
    let mut rig = Rig::new(Loopback::new(), options);
    let mut client = rig.up(Identity::new("clt1", 1));
    let id = rig
        .open(&mut client, export, AccessMode::ReadWrite)
        .unwrap()
        .device_id;
    let data = [7; 4 * BLOCK];
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
            ARMED.set(round >= 4);
            rig.shards[0].poll(rig.now);
            ARMED.set(false);
            client.poll(rig.now);
            rig.now = crate::rig::World::advance(&mut rig.world, rig.now, None);
        }
        assert!(client.answers.drain(..).all(|answer| answer.status.is_ok()));
    }
    COUNT.take()
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
