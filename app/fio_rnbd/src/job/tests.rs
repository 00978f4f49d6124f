//! A job on bdevs of its own process, without fio.

use std::io::Write;

use super::*;
use crate::runtime;

const CONFIG: &str = r#"{ "subsystems": [ { "subsystem": "bdev", "config": [
    { "method": "bdev_malloc_create",
      "params": { "name": "disk", "num_blocks": 1024, "block_size": 4096 } }
] } ] }"#;

const DEPTH: u32 = 8;

/// A process has one runtime, so all is in one test.
#[test]
fn a_job_works() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(CONFIG.as_bytes()).unwrap();
    let runtime = runtime::get(file.path(), || 2).unwrap();
    let mut job = job(&runtime);
    let start = job.alloc_buffer(DEPTH as usize * 4096).unwrap() as u64;
    what_is_no_whole_block_or_not_in_our_memory_is_refused(&mut job, start);
    no_more_than_the_depth_is_taken(&mut job, start);
    nothing_is_allocated_for_an_io(&mut job, start);
    job.free_buffer();
    drop(job);
    every_job_has_a_reactor_of_its_own(&runtime);
    runtime::stop();
}

fn job(runtime: &Arc<Runtime>) -> Job {
    let seat = runtime.take_seat().unwrap();
    let desc = runtime.bdevs.open("disk", true).unwrap();
    let channel = desc.open_channel(seat.core(), DEPTH).unwrap();
    let manner = Manner {
        depth: DEPTH,
        is_sync: false,
        is_paced: false,
        writes_zeroes: false,
    };
    let disk = Disk::new("disk".to_owned(), desc, channel);
    Job::new(vec![disk], seat, manner, Arc::clone(runtime))
}

fn write(token: u64, start: u64) -> Request {
    Request {
        token,
        disk: 0,
        what: What::Write,
        offset: token % 1024 * 4096,
        bytes: 4096,
        start: start + token % u64::from(DEPTH) * 4096,
        prio: 0,
    }
}

fn what_is_no_whole_block_or_not_in_our_memory_is_refused(job: &mut Job, start: u64) {
    let good = write(0, start);
    let refused = [
        (
            Request {
                offset: 512,
                ..good
            },
            Errno::INVAL,
        ),
        (Request { bytes: 512, ..good }, Errno::INVAL),
        (
            Request {
                offset: 1024 * 4096,
                ..good
            },
            Errno::INVAL,
        ),
        (
            Request {
                start: start - 1,
                ..good
            },
            Errno::FAULT,
        ),
        (
            Request {
                start: start + (1 << 30),
                ..good
            },
            Errno::FAULT,
        ),
        (Request { disk: 1, ..good }, Errno::NODEV),
    ];
    for (request, errno) in refused {
        assert_eq!(job.queue(&request), Queued::Failed(errno), "{request:?}");
    }
    assert_eq!(job.wait(1, 1, None, || false), 0, "nothing was started");
}

fn no_more_than_the_depth_is_taken(job: &mut Job, start: u64) {
    for token in 0..u64::from(DEPTH) {
        assert_eq!(job.queue(&write(token, start)), Queued::Started);
    }
    assert_eq!(job.queue(&write(9, start)), Queued::Full);
    job.commit();
    assert_eq!(job.wait(3, 3, None, || false), 3);
    let depth = DEPTH as usize;
    let mut tokens: Vec<u64> = (0..3).filter_map(|at| Some(job.ended(at)?.token)).collect();
    assert_eq!(job.wait(depth, depth, None, || false), depth - 3);
    tokens.extend((0..depth).filter_map(|at| Some(job.ended(at)?.token)));
    tokens.sort_unstable();
    assert_eq!(tokens, (0..u64::from(DEPTH)).collect::<Vec<_>>());
}

fn nothing_is_allocated_for_an_io(job: &mut Job, start: u64) {
    let mut round = |count: u64| {
        for token in 0..count {
            while job.queue(&write(token, start)) == Queued::Full {
                assert!(job.wait(1, 2, None, || false) > 0);
                assert_eq!(job.ended(0).map(|ended| ended.result), Some(Ok(())));
            }
            job.commit();
        }
        while job.wait(1, 8, None, || false) > 0 {}
    };
    // What is made once is made.
    round(100);
    let allocated = allocation_counter::measure(|| round(1000));
    assert_eq!(allocated.count_total, 0);
}

fn every_job_has_a_reactor_of_its_own(runtime: &Runtime) {
    let (one, two) = (runtime.take_seat().unwrap(), runtime.take_seat().unwrap());
    assert_ne!(one.core(), two.core());
    assert!(runtime.take_seat().is_none());
    drop(one);
    assert!(runtime.take_seat().is_some());
}
