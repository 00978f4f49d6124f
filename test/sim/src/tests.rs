use std::ops::RangeInclusive;

use super::*;

#[test]
fn fifty_seeds_run_clean_and_are_eventful() {
    let bench = Bench::new();
    let mut total = Report::default();
    for seed in 1..=50 {
        match run_seed(&bench, seed, Shape::Short) {
            Ok(report) => total.add(&report),
            Err(failure) => panic!("seed {seed}: {failure}"),
        }
    }
    assert!(total.completed > 10_000, "{total:?}");
    assert!(total.reconnects > 50, "{total:?}");
    assert!(total.retries > 50, "{total:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 100..105 {
        let bench = Bench::new();
        let first = run_seed(&bench, seed, Shape::Short);
        let second = run_seed(&bench, seed, Shape::Short);
        assert_eq!(first, second);
    }
}

#[test]
fn every_kind_of_fault_occurs_among_a_hundred_seeds() {
    let scenarios: Vec<_> = (0..100)
        .map(|seed| Scenario::new(seed, Shape::Short))
        .collect();
    for kind in FaultKind::ALL {
        let has = |scenario: &Scenario| scenario.faults.contains(&kind);
        assert!(scenarios.iter().any(has), "{kind:?}");
    }
    assert!(scenarios.iter().any(|scenario| scenario.rtrs.new_rkey));
    assert!(scenarios.iter().any(|scenario| !scenario.rtrs.new_rkey));
}

/// An I/O timeout that is shorter than the disks may take failed reads when nothing was wrong.
#[test]
fn slow_disks_are_waited_for() {
    let played = World::new(&Bench::new(), Scenario::lingering(112)).run();
    assert!(played.is_ok(), "{played:?}");
}

/// The disk's model took what a read had seen before a power failure for what was there after it.
#[test]
fn a_read_is_answered_after_a_power_failure_with_what_it_saw_before() {
    let played = World::new(&Bench::new(), Scenario::new(3636, Shape::Short)).run();
    assert!(played.is_ok(), "{played:?}");
}

/// With all permits taken, a request that waited to be sent again never failed when its time was up,
/// and its core never slept.
#[test]
fn a_request_that_waits_for_a_permit_fails_when_its_time_is_up() {
    let played = World::new(&Bench::new(), Scenario::haunted(42)).run();
    assert!(played.is_ok(), "{played:?}");
}

/// Paths came back to a session that the server served anew, where no device was open.
#[test]
fn devices_are_opened_again_when_the_server_serves_a_session_anew() {
    let played = World::new(&Bench::new(), Scenario::haunted(744)).run();
    assert!(played.is_ok(), "{played:?}");
}

/// A connection that broke on its way to another core of the target made that forget which core has
/// the session. Its next path made another one there, which did not get the disks.
#[test]
fn a_session_stays_on_its_core_when_a_request_does_not_arrive_there() {
    let played = World::new(&Bench::new(), Scenario::haunted(349)).run();
    assert!(played.is_ok(), "{played:?}");
}

/// A session was given up, and as one of its connections took its time to end, its core had something
/// due all the while.
#[test]
fn a_core_can_rest_while_a_session_that_is_given_up_closes() {
    let played = World::new(&Bench::new(), Scenario::new(3382, Shape::Short)).run();
    assert!(played.is_ok(), "{played:?}");
}

#[test]
fn what_a_disk_keeps_for_seconds_is_fenced_too() {
    let bench = Bench::new();
    for seed in 1..=10 {
        let played = World::new(&bench, Scenario::lingering(seed)).run();
        assert!(played.is_ok(), "seed {seed}: {played:?}");
    }
}

/// The first of some seeds that finds something when writes of lost paths are sent again at once.
fn finds_without_fence(seeds: RangeInclusive<u64>) -> Option<(u64, Failure)> {
    let bench = Bench::new();
    seeds.into_iter().find_map(|seed| {
        let mut scenario = Scenario::haunted(seed);
        scenario.options.fence = false;
        scenario.options.fence_timeout_ms = 0;
        let failure = World::new(&bench, scenario).run().err()?;
        Some((seed, failure))
    })
}

#[test]
fn without_the_fence_a_ghost_write_is_found_and_with_it_none() {
    let (seed, failure) = finds_without_fence(1..=60).expect("one in sixty");
    assert!(
        failure.what.contains("but may have only"),
        "seed {seed}: {failure}"
    );
    let bench = Bench::new();
    let fenced = World::new(&bench, Scenario::haunted(seed)).run();
    assert!(fenced.is_ok(), "seed {seed}: {fenced:?}");
}

/// Whether one of a few seeds finds something on disks with this flaw. Faults that would excuse it
/// are left out.
fn finds(flaw: Option<Flaw>) -> bool {
    let bench = Bench::new();
    (1..=10).any(|seed| {
        let mut scenario = Scenario::new(seed, Shape::Short);
        scenario.flaw = flaw;
        scenario.options.bdev_retry_count = -1;
        scenario.options.timeouts.fast_io_fail_timeout_sec = 0;
        scenario.options.timeouts.ctrlr_loss_timeout_sec = -1;
        scenario.faults.retain(|kind| !kind.excuses_errors());
        for disk in &mut scenario.disks {
            disk.can_fail = false;
        }
        World::new(&bench, scenario).run().is_err()
    })
}

#[test]
fn the_checks_find_every_flaw_of_a_disk_and_no_other() {
    assert!(!finds(None));
    for flaw in Flaw::ALL {
        assert!(finds(Some(flaw)), "{flaw:?}");
    }
}
