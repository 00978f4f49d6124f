//! Nothing is lost or mixed up whatever the network does, against a model of the disk.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod world;

use bdev_rnbd::Options;
use fastrand::Rng;
use rnbd_base::Nanos;
use rnbd_bdev::{IoDone, IoOp};
use rnbd_fabric::sim::{Device, FaultPlan, PerMillion};
use rnbd_mem::Span;
use rnbd_rtrs::HeartbeatConfig;
use world::{BLOCK, Setup, User, World};

/// Blocks that one user writes; nobody else does.
const AREA: usize = 64;
/// I/Os outstanding at a time.
const SLOTS: usize = 16;

/// One user and what its blocks must hold. At most one I/O is outstanding for a block.
struct Checked {
    user: User,
    first: u64,
    generations: Vec<u64>,
    slots: Vec<Option<Job>>,
    random: Rng,
    done: Vec<IoDone>,
    completed: u64,
}

#[derive(Clone, Copy)]
struct Job {
    /// Within the user's area.
    block: usize,
    write: bool,
}

impl Checked {
    fn new(user: User, first: u64, seed: u64) -> Self {
        Self {
            user,
            first,
            generations: vec![0; AREA],
            slots: vec![None; SLOTS],
            random: Rng::with_seed(seed),
            done: Vec::with_capacity(SLOTS),
            completed: 0,
        }
    }

    fn buffer(&self, slot: usize) -> Span {
        self.user.buffer.span().slice(slot * BLOCK, BLOCK).unwrap()
    }

    /// What a block of a generation holds: all zeroes at first.
    fn content(&self, block: usize) -> [u8; BLOCK] {
        let generation = self.generations[block];
        let mut content = [0; BLOCK];
        if generation > 0 {
            let mut random = Rng::with_seed((self.first + block as u64) << 32 | generation);
            random.fill(&mut content);
        }
        content
    }

    fn submit(&mut self, now: Nanos) {
        for slot in 0..SLOTS {
            let block = self.random.usize(0..AREA);
            let busy = self.slots.iter().flatten().any(|job| job.block == block);
            if self.slots[slot].is_some() || busy {
                continue;
            }
            let write = self.random.bool();
            let buffer = self.buffer(slot);
            if write {
                self.generations[block] += 1;
                buffer.write_at(0, &self.content(block));
            } else {
                buffer.fill(0xee);
            }
            let op = if write {
                IoOp::Write { fua: false }
            } else {
                IoOp::Read
            };
            let io = rnbd_bdev::BdevIo {
                tag: slot as u64,
                op,
                offset_blocks: self.first + block as u64,
                num_blocks: 1,
                buf: buffer,
                prio: 0,
            };
            self.user.channel.submit(&io, now).unwrap();
            self.slots[slot] = Some(Job { block, write });
        }
    }

    fn poll(&mut self, now: Nanos) {
        let mut done = std::mem::take(&mut self.done);
        self.user.channel.poll(now, &mut done);
        for one in done.drain(..) {
            assert_eq!(one.result, Ok(()));
            let slot = usize::try_from(one.tag).unwrap();
            let job = self.slots[slot].take().expect("each I/O completes once");
            self.completed += 1;
            if !job.write {
                let mut seen = [0; BLOCK];
                self.buffer(slot).read_at(0, &mut seen);
                assert!(
                    seen == self.content(job.block),
                    "block {} is wrong",
                    job.block
                );
            }
        }
        self.done = done;
    }

    fn is_idle(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }
}

fn faulty(random: &mut Rng, quiet: FaultPlan) -> FaultPlan {
    FaultPlan {
        completion_delay_ns: 0..=random.u64(0..50_000),
        reset: PerMillion(random.u32(0..2_000)),
        silent_drop: PerMillion(random.u32(0..500)),
        connect_reject: PerMillion(random.u32(0..200_000)),
        connect_loss: PerMillion(random.u32(0..100_000)),
        loss_at_close: PerMillion(random.u32(0..1_000_000)),
        ..quiet
    }
}

fn run(seed: u64) {
    let mut random = Rng::with_seed(seed);
    let quiet = FaultPlan {
        device: Device {
            local_keys: random.bool(),
            cheap_windows: seed.is_multiple_of(3),
            prefers_windows: seed % 3 == 1,
            invalidates_at_once: seed.is_multiple_of(2),
            merges_completions: seed % 4 < 2,
        },
        ..FaultPlan::default()
    };
    let setup = Setup {
        seed,
        initiator_cores: random.u16(1..=2),
        target_cores: random.u16(1..=2),
        nets: random.u8(1..=3),
        queue_depth: random.u16(4..=40),
        new_rkey: random.bool(),
        heartbeat: HeartbeatConfig {
            interval: Nanos::from_millis(500),
            missed_max: 3,
        },
        extension: random.bool(),
        plan: quiet.clone(),
    };
    let cores = setup.initiator_cores;
    let options = Options {
        bdev_retry_count: -1,
        hb_interval_ms: 500,
        hb_missed_max: 3,
        peer_hb_interval_ms: 500,
        ..Options::default()
    };
    let mut world = World::with_all_paths(setup, options);
    let mut users: Vec<_> = (0..u64::from(cores) * 2)
        .map(|index| {
            let core = u16::try_from(index).unwrap() % cores;
            Checked::new(
                world.open("r0_disk0", core),
                index * AREA as u64,
                seed ^ index,
            )
        })
        .collect();
    world.network.set_plan(faulty(&mut random, quiet.clone()));
    let crash_at = random.u64(200..2_000);
    let mut crashed = false;
    world.until("I/O goes on", |world| {
        for user in &mut users {
            user.submit(world.now);
            user.poll(world.now);
        }
        let completed: u64 = users.iter().map(|user| user.completed).sum();
        if !crashed && completed > crash_at {
            world.crash_target();
            world.start_target();
            crashed = true;
        }
        completed > 4_000
    });
    world.network.set_plan(quiet);
    world.until("all I/O ends", |world| {
        users.iter_mut().for_each(|user| user.poll(world.now));
        users.iter().all(Checked::is_idle)
    });
}

#[test]
fn every_io_completes_once_with_the_right_bytes_whatever_breaks() {
    for seed in 0..20 {
        run(seed);
    }
}
