//! A session of several paths against the real target, over a simulated network.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod world;

use bdev_rnbd::{ControllerState, Options, TimeoutAction, Timeouts};
use rnbd_base::{Errno, Nanos};
use rnbd_bdev::{IoDone, IoOp};
use rnbd_rtrs::clt::{PathState, Policy};
use world::{Setup, User, World, device, pattern};

const WRITE: IoOp = IoOp::Write { fua: false };

fn paths(nets: u8) -> Setup {
    Setup {
        nets,
        ..Setup::default()
    }
}

fn two_paths() -> (World, User) {
    let world = World::with_all_paths(paths(2), Options::default());
    let user = world.open("r0_disk0", 0);
    (world, user)
}

fn states(world: &mut World) -> Vec<PathState> {
    let paths = world.controller().paths;
    paths.iter().map(|path| path.state).collect()
}

/// All I/O takes this path as long as it is up.
fn prefer(world: &mut World, path: u16) {
    world
        .call(|control, reply| control.set_policy("r0", Policy::ActivePassive, 1, reply))
        .unwrap();
    world
        .call(|control, reply| control.set_preferred_path("r0", path, reply))
        .unwrap();
}

/// Submits `depth` I/Os of one block each, to as many blocks.
fn submit(world: &World, user: &mut User, op: IoOp, depth: u64) {
    for tag in 0..depth {
        user.submit(tag, op, tag, 1, world.now).unwrap();
    }
}

fn finish(world: &mut World, user: &mut User, count: usize) -> Vec<IoDone> {
    let mut all = Vec::with_capacity(count);
    world.until("all I/Os complete", |world| {
        user.channel.poll(world.now, &mut all);
        all.len() == count
    });
    all
}

fn all_ok(done: &[IoDone]) -> bool {
    done.iter().all(|one| one.result.is_ok())
}

/// Keeps I/O going for a while; returns how long the longest took.
fn longest_io(world: &mut World, user: &mut User, span: Nanos) -> Nanos {
    let end = world.now + span;
    let mut longest = Nanos::ZERO;
    let mut round = 0;
    while world.now < end {
        let begun = world.now;
        let data = pattern(round, 2);
        world.write(user, round % 100, &data).unwrap();
        assert_eq!(world.read(user, round % 100, 2).unwrap(), data);
        longest = longest.max(world.now.since(begun));
        world.run_for(Nanos::from_millis(20));
        round += 1;
    }
    longest
}

#[test]
fn paths_are_added_up_to_the_limit_of_the_pair_of_addresses() {
    let (mut world, _) = two_paths();
    assert_eq!(states(&mut world), [PathState::Connected; 2]);
    let twice = world.add_path(1).unwrap_err();
    assert_eq!(twice.errno, Errno::EXIST);
    let nowhere = world.add_path(7).unwrap_err();
    assert_eq!(nowhere.errno, Errno::HOSTUNREACH, "{nowhere}");
    assert_eq!(world.controller().paths.len(), 2, "nothing is left of it");
}

#[test]
fn attaching_again_adds_a_path_if_that_is_wanted() {
    let mut world = World::new(paths(2));
    let mut params = world::attach_params(&["disk0"]);
    params.multipath.enabled = true;
    let attach = |world: &mut World, params: &bdev_rnbd::AttachParams| {
        let params = params.clone();
        world.call(|control, reply| control.attach_controller(params, reply))
    };
    assert_eq!(attach(&mut world, &params).unwrap(), ["r0_disk0"]);
    params.devices.clear();
    let same = attach(&mut world, &params).unwrap_err();
    assert_eq!(same.errno, Errno::ALREADY);
    params.addr = world::target_addr_on(1);
    params.hostaddr = Some(world::initiator_addr_on(1));
    assert_eq!(attach(&mut world, &params).unwrap(), ["r0_disk0"]);
    assert_eq!(states(&mut world), [PathState::Connected; 2]);
    params.sessname = "other".to_owned();
    assert_eq!(attach(&mut world, &params).unwrap_err().errno, Errno::INVAL);
    let config = world.initiator.config();
    let methods: Vec<_> = config.iter().map(|call| call.method).collect();
    assert!(methods.contains(&"bdev_rnbd_add_path"), "{methods:?}");
}

#[test]
fn every_policy_does_what_it_says() {
    for policy in Policy::ALL {
        let (mut world, mut user) = two_paths();
        world.run_for(Nanos::from_secs(5));
        world
            .call(|control, reply| control.set_policy("r0", policy, 1, reply))
            .unwrap();
        world
            .call(|control, reply| control.set_preferred_path("r0", 1, reply))
            .unwrap();
        for _ in 0..10 {
            submit(&world, &mut user, WRITE, 10);
            assert!(all_ok(&finish(&mut world, &mut user, 10)));
        }
        let stats = world.stats();
        let (a, b) = (stats[0].writes, stats[1].writes);
        let is_right = match policy {
            Policy::RoundRobin => a == b,
            Policy::MinInflight => a.abs_diff(b) < 10,
            Policy::MinLatency => a == 0 || b == 0,
            Policy::ActivePassive => a == 0,
        };
        assert!(is_right && a + b == 100, "{policy:?}: {a} and {b}");
    }
}

#[test]
fn io_of_a_path_that_breaks_goes_over_another_at_once() {
    let (mut world, mut user) = two_paths();
    submit(&world, &mut user, WRITE, 12);
    world.run_for(Nanos(3_000));
    let begun = world.now;
    let of_path_0 =
        |conn: &rnbd_fabric::sim::Connection| conn.client.ip() == world::initiator_ip(0);
    for conn in world
        .network
        .connections()
        .iter()
        .filter(|conn| of_path_0(conn))
    {
        world.network.reset(conn.wire);
    }
    assert!(all_ok(&finish(&mut world, &mut user, 12)));
    let took = world.now.since(begun);
    assert!(took < Nanos::from_millis(50), "{took:?}");
    assert_eq!(states(&mut world)[1], PathState::Connected);
    world.until("the path is back", |world| {
        states(world) == [PathState::Connected; 2]
    });
}

#[test]
fn a_path_that_dies_unnoticed_holds_the_other_back_for_no_longer_than_it_takes_to_notice() {
    let (mut world, mut user) = two_paths();
    world.cut(0);
    let longest = longest_io(&mut world, &mut user, Nanos::from_secs(30));
    assert!(longest < Nanos::from_millis(10_500), "{longest:?}");
    assert_eq!(states(&mut world)[1], PathState::Connected);
    world.heal(0);
    world.until("the path is back", |world| {
        states(world) == [PathState::Connected; 2]
    });
    let stats = world.stats();
    assert!(stats[0].reconnects_ok == 1 && stats[1].reconnects_ok == 0);
}

#[test]
fn a_dead_path_is_noticed_within_a_second_if_that_is_wanted() {
    let options = Options {
        peer_hb_interval_ms: 200,
        peer_hb_missed_max: 3,
        ..Options::default()
    };
    let mut world = World::with_all_paths(paths(2), options);
    world.run_for(Nanos::from_secs(3));
    world.cut(0);
    let cut_at = world.now;
    world.until("the loss is noticed", |world| {
        states(world)[0] != PathState::Connected
    });
    assert!(world.now.since(cut_at) <= Nanos::from_millis(1_001));
}

#[test]
fn writes_of_a_lost_path_are_sent_again_only_when_the_target_has_confirmed_its_end() {
    let (mut world, mut user) = two_paths();
    prefer(&mut world, 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 8);
    world.run_for(Nanos::from_secs(1));
    assert_eq!(user.channel.outstanding(), 8);
    assert!(all_ok(&finish(&mut world, &mut user, 8)));
    let fence = world.controller().fence;
    assert_eq!((fence.counters.sent, fence.counters.confirmed), (1, 1));
    assert_eq!((fence.waiting, fence.held_writes), (0, 0));
    let stats = world.stats();
    assert_eq!(stats[1].failovered, 8);
}

#[test]
fn all_paths_down_and_up_again_lose_nothing() {
    let mut world = World::with_all_paths(paths(4), Options::default());
    let mut user = world.open("r0_disk0", 0);
    for net in 0..4 {
        world.cut(net);
    }
    submit(&world, &mut user, WRITE, 12);
    world.run_for(Nanos::from_secs(60));
    assert_eq!(world.controller().state, ControllerState::Reconnecting);
    assert_eq!(user.channel.outstanding(), 12);
    for net in 0..4 {
        world.heal(net);
    }
    assert!(all_ok(&finish(&mut world, &mut user, 12)));
    world.until("all paths are back", |world| {
        states(world) == [PathState::Connected; 4]
    });
    let data = pattern(9, 8);
    world.write(&mut user, 0, &data).unwrap();
    assert_eq!(world.read(&mut user, 0, 8).unwrap(), data);
}

#[test]
fn paths_come_and_go_under_load() {
    let (mut world, mut user) = two_paths();
    for round in 0..6 {
        submit(&world, &mut user, WRITE, 10);
        let leaving = world.controller().paths.swap_remove(round % 2);
        let net = u8::from(leaving.dst_addr != world::target_addr());
        world
            .call(|control, reply| control.remove_path("r0", leaving.path_id, reply))
            .unwrap();
        assert!(all_ok(&finish(&mut world, &mut user, 10)));
        submit(&world, &mut user, WRITE, 10);
        world.until("the target let the old one go", |world| {
            world.add_path(net).is_ok()
        });
        assert!(all_ok(&finish(&mut world, &mut user, 10)));
    }
    assert_eq!(states(&mut world), [PathState::Connected; 2]);
}

#[test]
fn the_last_path_stays_and_one_that_does_not_exist_is_named() {
    let (mut world, _) = two_paths();
    let remove = |world: &mut World, path| {
        world.call(|control, reply| control.remove_path("r0", path, reply))
    };
    assert_eq!(remove(&mut world, 9).unwrap_err().errno, Errno::NOENT);
    remove(&mut world, 0).unwrap();
    assert_eq!(remove(&mut world, 1).unwrap_err().errno, Errno::BUSY);
    assert_eq!(remove(&mut world, 0).unwrap_err().errno, Errno::NOENT);
}

#[test]
fn a_restart_of_the_target_is_noticed_on_the_first_path_that_is_back() {
    let (mut world, mut user) = two_paths();
    world.cut(1);
    world.crash_target();
    world.start_target();
    submit(&world, &mut user, WRITE, 8);
    assert!(all_ok(&finish(&mut world, &mut user, 8)));
    world.heal(1);
    world.until("both paths are back", |world| {
        states(world) == [PathState::Connected; 2]
    });
    let names = world.call(|control, reply| control.map_device("r0", device("disk1"), reply));
    assert_eq!(names.unwrap(), "r0_disk1");
}

#[test]
fn io_without_a_path_fails_after_the_configured_time() {
    let options = Options {
        timeouts: Timeouts {
            reconnect_delay_sec: 2,
            fast_io_fail_timeout_sec: 5,
            ctrlr_loss_timeout_sec: 40,
            ..Timeouts::default()
        },
        ..Options::default()
    };
    let mut world = World::with_all_paths(paths(2), options);
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    world.cut(1);
    submit(&world, &mut user, WRITE, 4);
    let begun = world.now;
    let done = finish(&mut world, &mut user, 4);
    assert!(done.iter().all(|one| one.result == Err(Errno::TIMEDOUT)));
    assert!(world.now.since(begun) < Nanos::from_secs(16));
    world.until("the controller is given up", |world| {
        world.controller().state == ControllerState::Failed
    });
}

/// A target without the fence, as a kernel is, that is found dead after 2.5 s.
fn kernel_target(options: Options) -> World {
    let setup = Setup {
        extension: false,
        ..paths(2)
    };
    let options = Options {
        hb_interval_ms: 500,
        hb_missed_max: 3,
        ..options
    };
    let mut world = World::with_all_paths(setup, options);
    prefer(&mut world, 0);
    world
}

#[test]
fn writes_of_a_lost_path_wait_at_a_target_without_the_fence_and_reads_do_not() {
    let mut world = kernel_target(Options::default());
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 3);
    user.submit(3, IoOp::Read, 50, 1, world.now).unwrap();
    let begun = world.now;
    assert_eq!(finish(&mut world, &mut user, 1)[0].tag, 3);
    assert!(world.now.since(begun) < Nanos::from_secs(3));
    assert_eq!(world.controller().fence.held_writes, 3);
    assert!(all_ok(&finish(&mut world, &mut user, 3)));
    let took = world.now.since(begun);
    assert!(
        took > Nanos::from_secs(35) && took < Nanos::from_secs(40),
        "{took:?}"
    );
    assert_eq!(world.controller().fence.counters.timed_out, 1);
}

#[test]
fn the_wait_for_a_target_without_the_fence_can_be_switched_off() {
    let mut world = kernel_target(Options {
        fence_timeout_ms: 0,
        ..Options::default()
    });
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 3);
    let begun = world.now;
    assert!(all_ok(&finish(&mut world, &mut user, 3)));
    assert!(world.now.since(begun) < Nanos::from_secs(3));
}

#[test]
fn no_write_is_sent_while_one_that_failed_may_still_be_executed() {
    let mut world = kernel_target(Options {
        timeouts: Timeouts {
            reconnect_delay_sec: 1,
            fast_io_fail_timeout_sec: 6,
            ..Timeouts::default()
        },
        ..Options::default()
    });
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 1);
    let failed = finish(&mut world, &mut user, 1);
    assert_eq!(failed[0].result, Err(Errno::TIMEDOUT));
    assert!(world.controller().fence.writes_stopped);
    let written = world.stats()[1].writes;
    submit(&world, &mut user, WRITE, 1);
    world.read(&mut user_of(&world), 0, 1).unwrap();
    let failed = finish(&mut world, &mut user, 1);
    assert_eq!(failed[0].result, Err(Errno::TIMEDOUT), "by its own time");
    assert_eq!(world.stats()[1].writes, written, "it was not sent");
    world.until("the target's time is over", |world| {
        !world.controller().fence.writes_stopped
    });
    submit(&world, &mut user, WRITE, 1);
    assert!(all_ok(&finish(&mut world, &mut user, 1)));
}

/// Another user of the device, so that the first one's I/O is left alone.
fn user_of(world: &World) -> User {
    let desc = world.registry.open("r0_disk0", false).unwrap();
    let channel = desc
        .open_channel(rnbd_base::CoreIndex(0), User::DEPTH)
        .unwrap();
    let buffer = world
        .memory
        .alloc("test", 4096, rnbd_mem::Pages::Small)
        .unwrap();
    User {
        channel,
        desc,
        buffer,
    }
}

fn slow_heartbeat(action_on_timeout: TimeoutAction) -> Options {
    Options {
        peer_hb_interval_ms: 600_000,
        io_timeout_ms: 2_000,
        action_on_timeout,
        ..Options::default()
    }
}

#[test]
fn a_request_that_is_late_goes_over_another_path() {
    let mut world = World::with_all_paths(paths(2), slow_heartbeat(TimeoutAction::Reset));
    prefer(&mut world, 0);
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 4);
    let begun = world.now;
    assert!(all_ok(&finish(&mut world, &mut user, 4)));
    let took = world.now.since(begun);
    assert!(
        took >= Nanos::from_secs(2) && took < Nanos::from_secs(3),
        "{took:?}"
    );
}

#[test]
fn a_request_that_is_late_fails_if_that_is_wanted() {
    let mut world = World::with_all_paths(paths(2), slow_heartbeat(TimeoutAction::Abort));
    prefer(&mut world, 0);
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 4);
    let begun = world.now;
    let done = finish(&mut world, &mut user, 4);
    assert!(done.iter().all(|one| one.result == Err(Errno::TIMEDOUT)));
    assert!(world.now.since(begun) < Nanos::from_secs(3));
    submit(&world, &mut user, WRITE, 4);
    assert!(
        all_ok(&finish(&mut world, &mut user, 4)),
        "once it is fenced"
    );
}

#[test]
fn a_request_that_is_late_is_only_told_of_if_that_is_wanted() {
    let mut world = World::with_all_paths(paths(2), slow_heartbeat(TimeoutAction::None));
    prefer(&mut world, 0);
    let mut user = world.open("r0_disk0", 0);
    world.cut(0);
    submit(&world, &mut user, WRITE, 4);
    world.run_for(Nanos::from_secs(10));
    assert_eq!(user.channel.outstanding(), 4);
    world.heal(0);
    assert!(all_ok(&finish(&mut world, &mut user, 4)));
    assert_eq!(world.stats()[0].reconnects_ok, 0);
}

#[test]
fn removing_a_path_under_load_sends_nothing_again() {
    let (mut world, mut user) = two_paths();
    for path in [0, 1, 0] {
        submit(&world, &mut user, WRITE, 12);
        world.run_for(Nanos(2_000));
        world
            .call(|control, reply| control.disconnect_path("r0", path, reply))
            .unwrap();
        assert!(all_ok(&finish(&mut world, &mut user, 12)));
        world
            .call(|control, reply| control.reconnect_path("r0", path, reply))
            .unwrap();
    }
    let stats = world.stats();
    assert!(stats.iter().all(|path| path.failovered == 0), "{stats:?}");
}
