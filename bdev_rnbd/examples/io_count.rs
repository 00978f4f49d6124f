//! A given number of 4K reads or writes at depth 32, over TCP, target and initiator in one thread.
//!
//! For counting instructions: run it under callgrind with two counts and divide the difference.
//! `scripts/bench.sh --instructions` does so for each side.

#![allow(clippy::unwrap_used, reason = "a failed unwrap ends the run")]

#[path = "../tests/pair/mod.rs"]
mod pair;

use pair::{Pair, attached};
use rnbd_bdev::{BdevIo, Channel, IoOp};
use rnbd_mem::{Memory, MemoryConfig, Pages, Span};

const DEPTH: u64 = 32;
const BLOCKS: u64 = 8;
const BYTES: usize = 4096;

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(what), Some(count)) = (args.next(), args.next()) else {
        panic!("usage: io_count read|write COUNT");
    };
    let op = match what.as_str() {
        "read" => IoOp::Read,
        _ => IoOp::Write { fua: false },
    };
    let memory = Memory::new(MemoryConfig::default());
    let (mut pair, mut channel) = attached(&memory, true);
    let buffer = memory.alloc("io_count", BYTES * 32, Pages::Small).unwrap();
    run(
        &mut pair,
        &mut channel,
        op,
        buffer.span(),
        count.parse().unwrap(),
    );
}

fn run(pair: &mut Pair, channel: &mut Channel, op: IoOp, buffer: Span, count: u64) {
    let mut done = Vec::with_capacity(64);
    let (mut begun, mut ended) = (0, 0);
    let mut now = pair.poll();
    while ended < count {
        while begun < count && begun - ended < DEPTH {
            let slot = usize::try_from(begun % DEPTH).unwrap();
            let io = BdevIo {
                tag: begun,
                op,
                offset_blocks: begun * BLOCKS % 2048,
                num_blocks: BLOCKS,
                buf: buffer.slice(slot * BYTES, BYTES).unwrap(),
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
}
