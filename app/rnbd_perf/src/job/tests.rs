use std::sync::mpsc::{Receiver, channel};

use rnbd_base::CoreIndex;
use rnbd_bdev::{
    ErrorBdev, ErrorOptions, ErrorType, InjectError, InjectIoType, MallocBdev, MallocOptions,
    Registry,
};
use rnbd_mem::{Memory, MemoryConfig, Pages};

use super::*;
use crate::ledger::Fault;
use crate::places::Order;
use crate::spec::{Extent, Share};
use crate::workload::Workload;

const NUM_BLOCKS: u64 = 2048;

/// Devices `Malloc0` and `EE_Malloc0`, which fails on demand.
struct Lab {
    memory: Memory,
    bdevs: Registry,
}

impl Lab {
    fn new() -> Self {
        let memory = Memory::new(MemoryConfig::default());
        let bdevs = Registry::new(memory.clone());
        let options = MallocOptions {
            name: Some("Malloc0".to_owned()),
            num_blocks: NUM_BLOCKS,
            block_size: 512,
            ..MallocOptions::default()
        };
        MallocBdev::create(&bdevs, &memory, options).unwrap();
        Self { memory, bdevs }
    }

    /// With `EE_Malloc0`, whose I/O meets `error_type` for `num` times.
    fn inject(&self, io_type: InjectIoType, error_type: ErrorType, num: u32) {
        let error = InjectError {
            io_type,
            error_type,
            num,
            queue_depth: 0,
            corrupt_offset: 100,
            corrupt_value: 1,
        };
        let options = ErrorOptions {
            base_name: "Malloc0".to_owned(),
            ..ErrorOptions::default()
        };
        if self.bdevs.get("EE_Malloc0").is_none() {
            ErrorBdev::create(&self.bdevs, options).unwrap();
        }
        let inject = |bdev: &ErrorBdev| bdev.inject(&error);
        self.bdevs.find("EE_Malloc0", inject).unwrap().unwrap();
    }

    fn job(&self, spec: &JobSpec) -> Running {
        let desc = self.bdevs.open(&spec.bdev, spec.writes()).unwrap();
        let geometry = desc.geometry();
        let range = spec
            .range(geometry.block_size, geometry.num_blocks)
            .unwrap();
        let channel_to_bdev = desc.open_channel(CoreIndex(0), spec.depth).unwrap();
        let bytes = spec.depth as usize * spec.io_bytes as usize;
        let buffers = self.memory.alloc("job", bytes, Pages::Small).unwrap();
        let (tx, result) = channel();
        let progress = Arc::new(JobProgress::default());
        let on_done = Box::new(move |result| tx.send(result).unwrap());
        let job = Job::new(
            spec.clone(),
            range,
            desc,
            channel_to_bdev,
            buffers,
            Arc::clone(&progress),
            on_done,
        );
        Running {
            job,
            progress,
            result,
            now: Nanos::ZERO,
        }
    }

    /// Runs `spec` to its end.
    fn run(&self, spec: &JobSpec) -> JobResult {
        self.job(spec).finish()
    }
}

/// A job under a clock that the test turns: a microsecond a round.
struct Running {
    job: Job,
    progress: Arc<JobProgress>,
    result: Receiver<JobResult>,
    now: Nanos,
}

impl Running {
    fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            self.now += Nanos::from_micros(1);
            let _ = self.job.poll(self.now);
        }
    }

    fn finish(&mut self) -> JobResult {
        for _ in 0..1_000_000 {
            if let Ok(result) = self.result.try_recv() {
                return result;
            }
            self.rounds(1);
        }
        panic!("the job did not end: {:?}", self.job);
    }
}

fn spec(workload: Workload) -> JobSpec {
    JobSpec::example("Malloc0", workload)
}

#[test]
fn every_workload_keeps_its_queue_full_until_its_time_is_up() {
    for workload in [
        Workload::Read,
        Workload::Write,
        Workload::RandRead,
        Workload::RandWrite,
        Workload::Rw,
        Workload::RandRw,
        Workload::Unmap,
        Workload::WriteZeroes,
        Workload::Flush,
    ] {
        let result = Lab::new().run(&spec(workload));
        // A round of a microsecond completes and resubmits all eight.
        assert_eq!(result.status, Status::Finished, "{workload:?}");
        assert_eq!(result.tally.ios(), 8 * 1000, "{workload:?}");
        assert_eq!(
            result.runtime,
            Nanos::from_millis(1) + Nanos::from_micros(1)
        );
        assert_eq!(result.tally.percentile_us(50.0), 1.0, "{workload:?}");
    }
}

#[test]
fn mixed_workloads_read_about_as_often_as_asked() {
    let result = Lab::new().run(&JobSpec {
        read_percent: 70,
        ..spec(Workload::RandRw)
    });
    let share = result.tally.reads * 100 / result.tally.ios();
    assert!((65..=75).contains(&share), "{share} %");
}

#[test]
fn a_good_device_is_verified_without_a_complaint_by_every_workload() {
    for workload in [
        Workload::Verify,
        Workload::Read,
        Workload::RandRead,
        Workload::Write,
        Workload::RandWrite,
        Workload::Rw,
        Workload::RandRw,
        Workload::Unmap,
        Workload::WriteZeroes,
    ] {
        let result = Lab::new().run(&JobSpec {
            verify: true,
            ..spec(workload)
        });
        assert_eq!(result.status, Status::Finished, "{workload:?}");
        assert_eq!(
            result.mismatch_count, 0,
            "{workload:?}: {:?}",
            result.mismatches
        );
        let can_be_checked = workload != Workload::Unmap;
        assert_eq!(result.verified_blocks > 0, can_be_checked, "{workload:?}");
    }
}

#[test]
fn everything_written_is_read_back_at_the_end() {
    let result = Lab::new().run(&JobSpec {
        verify: true,
        ..spec(Workload::Write)
    });
    assert_eq!(result.verified_blocks, NUM_BLOCKS);
    assert_eq!(result.tally.reads, 0, "the final pass is not measured");
}

#[test]
fn shares_of_a_device_verify_side_by_side() {
    let lab = Lab::new();
    let share = |index| JobSpec {
        share: Share { index, count: 2 },
        ..spec(Workload::Verify)
    };
    let (mut first, mut second) = (lab.job(&share(0)), lab.job(&share(1)));
    for _ in 0..500 {
        first.rounds(1);
        second.rounds(1);
    }
    let results = [first.finish(), second.finish()];
    assert!(results.iter().all(|result| result.mismatch_count == 0));
    assert_eq!(results[1].range.first_block, NUM_BLOCKS / 2);
}

#[test]
fn one_corrupted_read_is_found_and_named() {
    let lab = Lab::new();
    lab.inject(InjectIoType::Read, ErrorType::CorruptData, 1);
    let result = lab.run(&JobSpec {
        bdev: "EE_Malloc0".to_owned(),
        verify: true,
        ..spec(Workload::Write)
    });
    assert_eq!((result.status, result.mismatch_count), (Status::Failed, 1));
    let mismatch = &result.mismatches[0];
    assert!(
        matches!(mismatch.fault, Fault::Damaged { offset: 100, .. }),
        "{mismatch}"
    );
    assert_eq!(mismatch.wrong_blocks, 1);
}

#[test]
fn corrupted_writes_are_found_even_if_only_the_final_pass_reads() {
    let lab = Lab::new();
    lab.inject(InjectIoType::Write, ErrorType::CorruptData, 3);
    let result = lab.run(&JobSpec {
        bdev: "EE_Malloc0".to_owned(),
        verify: true,
        continue_on_failure: true,
        // Once over the device, so that no corrupted block is written again.
        duration: Nanos::from_micros(20),
        ..spec(Workload::Write)
    });
    assert_eq!(result.mismatch_count, 3);
    assert!(
        result
            .mismatches
            .iter()
            .all(|m| matches!(m.fault, Fault::Damaged { .. }))
    );
}

#[test]
fn what_somebody_else_writes_meanwhile_is_found() {
    let lab = Lab::new();
    let mut running = lab.job(&spec(Workload::Verify));
    running.rounds(900);
    let content = lab.bdevs.get("Malloc0").unwrap().bdev.memory().unwrap();
    content.slice(512 * 1000, 512 * 200).unwrap().fill(0x5a);
    let result = running.finish();
    assert_eq!(result.status, Status::Failed);
    assert!(
        result
            .mismatches
            .iter()
            .any(|mismatch| mismatch.fault == Fault::Unknown)
    );
}

#[test]
fn blocks_that_move_are_misplaced() {
    let lab = Lab::new();
    let mut running = lab.job(&JobSpec {
        verify: true,
        // Not once over the device, so that nothing is written again.
        duration: Nanos::from_micros(20),
        ..spec(Workload::Write)
    });
    running.rounds(20);
    let content = lab.bdevs.get("Malloc0").unwrap().bdev.memory().unwrap();
    let from = content.slice(512 * 8, 4096).unwrap();
    content.slice(512 * 800, 4096).unwrap().copy_from(&from);
    let result = running.finish();
    let is_misplaced = |m: &Mismatch| matches!(m.fault, Fault::Misplaced(stamp) if stamp.lba == 8);
    assert!(
        result.mismatches.iter().any(is_misplaced),
        "{:?}",
        result.mismatches
    );
}

#[test]
fn a_failed_io_ends_the_job_unless_it_is_to_go_on() {
    for continue_on_failure in [false, true] {
        let lab = Lab::new();
        lab.inject(InjectIoType::Read, ErrorType::Failure, 2);
        let result = lab.run(&JobSpec {
            bdev: "EE_Malloc0".to_owned(),
            continue_on_failure,
            ..spec(Workload::Read)
        });
        assert_eq!(result.tally.errors(), [(Errno::IO, 2)]);
        let ran_on = result.tally.ios() > 1000;
        assert_eq!(ran_on, continue_on_failure);
        assert_eq!(result.status == Status::Finished, continue_on_failure);
    }
}

#[test]
fn failed_writes_leave_either_generation_right() {
    let lab = Lab::new();
    lab.inject(InjectIoType::Write, ErrorType::Failure, 100);
    let result = lab.run(&JobSpec {
        bdev: "EE_Malloc0".to_owned(),
        continue_on_failure: true,
        ..spec(Workload::Verify)
    });
    assert_eq!(result.tally.failed, 100);
    assert_eq!(result.mismatch_count, 0, "{:?}", result.mismatches);
}

#[test]
fn io_that_takes_too_long_is_counted_once() {
    let lab = Lab::new();
    lab.inject(InjectIoType::Read, ErrorType::Pending, 3);
    let mut running = lab.job(&JobSpec {
        bdev: "EE_Malloc0".to_owned(),
        timeout: Some(Nanos::from_micros(50)),
        duration: Nanos::from_millis(300),
        ..spec(Workload::Read)
    });
    running.rounds(250_000);
    assert_eq!(running.job.tally.timed_out, 3);
    let resume = |bdev: &ErrorBdev| bdev.resume_pending();
    lab.bdevs.find("EE_Malloc0", resume).unwrap();
    let result = running.finish();
    assert_eq!((result.tally.timed_out, result.tally.failed), (3, 0));
}

#[test]
fn a_stop_ends_it_early_without_a_check() {
    let lab = Lab::new();
    let mut running = lab.job(&spec(Workload::Verify));
    running.rounds(100);
    running.progress.stop.store(true, Ordering::Relaxed);
    let result = running.finish();
    assert_eq!(result.status, Status::Terminated);
    assert!(result.runtime < Nanos::from_micros(110));
}

#[test]
fn a_removed_device_ends_even_a_job_that_goes_on() {
    let lab = Lab::new();
    let mut running = lab.job(&JobSpec {
        continue_on_failure: true,
        ..spec(Workload::RandRead)
    });
    running.rounds(100);
    lab.bdevs.unregister("Malloc0", Box::new(|_| ())).unwrap();
    let result = running.finish();
    assert_eq!(result.status, Status::Failed);
    assert_eq!(result.tally.errors()[0].0, Errno::NODEV);
}

#[test]
fn more_in_flight_than_there_are_places_is_no_problem_when_verifying() {
    let lab = Lab::new();
    let result = lab.run(&JobSpec {
        depth: 64,
        length: Extent::Bytes(4096 * 5),
        ..spec(Workload::Verify)
    });
    assert_eq!(
        (result.status, result.mismatch_count),
        (Status::Finished, 0)
    );
    assert!(result.tally.ios() > 4000);
}

#[test]
fn unique_writes_leave_other_data_everywhere_each_time() {
    let content = |unique_writes, seed| {
        let lab = Lab::new();
        lab.run(&JobSpec {
            unique_writes,
            seed,
            // Once over the device.
            duration: Nanos::from_micros(32),
            ..spec(Workload::Write)
        });
        let memory = lab.bdevs.get("Malloc0").unwrap().bdev.memory().unwrap();
        let units = (0..NUM_BLOCKS / 8).map(|unit| {
            let mut bytes = [0; 16];
            memory.read_at(index(unit) * 4096, &mut bytes);
            bytes
        });
        units.collect::<std::collections::HashSet<_>>()
    };
    assert_eq!(content(true, 1).len(), 256);
    assert_eq!(content(false, 1).len(), 8, "a buffer's bytes stay the same");
}

#[test]
fn every_order_goes_with_verification() {
    for order in [Order::Zipf(1.1), Order::EachOnce] {
        let result = Lab::new().run(&JobSpec {
            order,
            verify: true,
            ..spec(Workload::RandRw)
        });
        assert_eq!(result.status, Status::Finished, "{order:?}");
        assert_eq!(result.mismatch_count, 0, "{order:?}");
    }
}

#[test]
fn progress_is_published() {
    let lab = Lab::new();
    let mut running = lab.job(&spec(Workload::Read));
    running.rounds(101);
    assert_eq!(running.progress.ios.load(Ordering::Relaxed), 800);
    assert_eq!(running.progress.bytes.load(Ordering::Relaxed), 800 * 4096);
}

#[test]
fn a_running_job_allocates_nothing() {
    for (workload, order) in [
        (Workload::RandRw, Order::Uniform),
        (Workload::RandWrite, Order::Zipf(1.1)),
        (Workload::RandRw, Order::EachOnce),
        (Workload::Verify, Order::Uniform),
        (Workload::WriteZeroes, Order::Sequential),
    ] {
        let lab = Lab::new();
        let mut running = lab.job(&JobSpec {
            timeout: Some(Nanos::from_millis(10)),
            order,
            unique_writes: true,
            ..spec(workload)
        });
        running.rounds(10);
        let counted = allocation_counter::measure(|| running.rounds(500));
        assert_eq!(counted.count_total, 0, "{workload:?} {order:?}");
        assert!(running.job.tally.ios() > 4000);
    }
}
