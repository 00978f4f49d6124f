//! The initiator against the real target, over a simulated network.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod world;

use bdev_rnbd::{AttachParams, ControllerState, Options, Timeouts, UnmapMode};
use rnbd_base::{Errno, Nanos};
use rnbd_bdev::{IoDone, IoOp};
use rnbd_fabric::sim::{Device, Injection, Side};
use rnbd_fabric::{Addr, RemoteAddr};
use world::{Setup, User, World, attach_params, device, make_disk, pattern};

fn attached(setup: Setup) -> World {
    let mut world = World::new(setup);
    assert_eq!(world.attach(&["disk0"]).unwrap(), ["r0_disk0"]);
    world
}

#[test]
fn what_is_written_is_read_back() {
    for new_rkey in [false, true] {
        let mut world = attached(Setup {
            new_rkey,
            ..Setup::default()
        });
        let mut user = world.open("r0_disk0", 0);
        for round in 0..40 {
            let data = pattern(round, 8);
            world.write(&mut user, round * 8, &data).unwrap();
            assert_eq!(
                world.read(&mut user, round * 8, 8).unwrap(),
                data,
                "round {round}"
            );
        }
        world.io(&mut user, IoOp::Flush, 0, 0).unwrap();
    }
}

#[test]
fn buffers_are_opened_in_every_way_that_a_fabric_prefers() {
    let (keys, windows) = (Device::HARDWARE, true);
    let by_window = Device {
        prefers_windows: windows,
        ..keys
    };
    for (device, new_rkey) in [(keys, false), (by_window, false), (by_window, true)] {
        let mut setup = Setup {
            new_rkey,
            ..Setup::default()
        };
        setup.plan.device = device;
        let mut world = attached(setup);
        let mut user = world.open("r0_disk0", 0);
        let dones = hammer(&mut world, &mut user, 200);
        assert!(each_once(&dones));
        let data = pattern(1, 8);
        world.write(&mut user, 8, &data).unwrap();
        assert_eq!(world.read(&mut user, 8, 8).unwrap(), data, "{device:?}");
    }
}

#[test]
fn an_io_larger_than_a_chunk_is_split() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 0);
    let data = pattern(7, 128);
    world.write(&mut user, 3, &data).unwrap();
    assert_eq!(world.read(&mut user, 3, 128).unwrap(), data);
}

#[test]
fn blocks_can_be_unmapped_and_zeroed() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 0);
    world.write(&mut user, 0, &pattern(1, 16)).unwrap();
    world
        .io(&mut user, IoOp::WriteZeroes { no_unmap: true }, 0, 8)
        .unwrap();
    world.io(&mut user, IoOp::Unmap, 8, 8).unwrap();
    assert!(
        world
            .read(&mut user, 0, 16)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

/// Keeps `depth` I/Os outstanding until `count` are done; returns their results.
fn hammer(world: &mut World, user: &mut User, count: u64) -> Vec<IoDone> {
    let mut all: Vec<IoDone> = Vec::new();
    let mut done = Vec::with_capacity(8);
    let mut next = 0;
    world.until("all I/Os complete", |world| {
        while next < count && user.channel.outstanding() < user.channel.depth() {
            let op = if next % 2 == 0 {
                IoOp::Write { fua: next % 4 == 0 }
            } else {
                IoOp::Read
            };
            user.submit(next, op, next % 64, 4, world.now).unwrap();
            next += 1;
        }
        user.channel.poll(world.now, &mut done);
        all.append(&mut done);
        all.len() as u64 == count
    });
    all
}

fn each_once(all: &[IoDone]) -> bool {
    let mut tags: Vec<_> = all.iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    tags.into_iter().eq(0..all.len() as u64)
}

#[test]
fn more_ios_than_permits_all_complete_once() {
    for new_rkey in [false, true] {
        for queue_depth in [2, 3, 16] {
            let setup = Setup {
                new_rkey,
                queue_depth,
                ..Setup::default()
            };
            let mut world = attached(setup);
            let mut user = world.open("r0_disk0", 0);
            let all = hammer(&mut world, &mut user, 500);
            assert!(each_once(&all));
            assert!(all.iter().all(|done| done.result.is_ok()));
        }
    }
}

#[test]
fn two_cores_do_io_on_two_devices() {
    let mut world = World::new(Setup {
        initiator_cores: 2,
        target_cores: 2,
        ..Setup::default()
    });
    let names = world.attach(&["disk0", "disk1"]).unwrap();
    assert_eq!(names, ["r0_disk0", "r0_disk1"]);
    let users = [("r0_disk0", 0), ("r0_disk1", 1), ("r0_disk0", 1)];
    let mut users = users.map(|(name, core)| world.open(name, core));
    for (index, user) in users.iter_mut().enumerate() {
        let data = pattern(index as u64, 4);
        world.write(user, 100 * index as u64, &data).unwrap();
        assert_eq!(world.read(user, 100 * index as u64, 4).unwrap(), data);
    }
    let seen = world.read(&mut users[0], 200, 4).unwrap();
    assert_eq!(seen, pattern(2, 4), "what one core wrote, the other reads");
}

#[test]
fn a_consumer_on_a_core_without_a_shard_is_served_by_another() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 5);
    let data = pattern(5, 4);
    world.write(&mut user, 0, &data).unwrap();
    assert_eq!(world.read(&mut user, 0, 4).unwrap(), data);
}

#[test]
fn io_survives_a_crash_and_restart_of_the_target() {
    for seed in 0..10 {
        let new_rkey = seed % 2 == 0;
        let mut world = attached(Setup {
            seed,
            new_rkey,
            ..Setup::default()
        });
        let mut user = world.open("r0_disk0", 0);
        let data = pattern(seed, 8);
        world.write(&mut user, 500, &data).unwrap();
        for tag in 0..32 {
            user.submit(tag, IoOp::Write { fua: false }, tag, 1, world.now)
                .unwrap();
        }
        world.run_for(Nanos::from_micros(10 + seed));
        world.crash_target();
        world.run_for(Nanos::from_millis(50));
        world.start_target();
        let mut done = Vec::with_capacity(64);
        world.until("the I/Os complete", |world| {
            user.channel.poll(world.now, &mut done);
            done.len() == 32
        });
        assert!(each_once(&done) && done.iter().all(|done| done.result.is_ok()));
        assert_eq!(world.read(&mut user, 500, 8).unwrap(), data);
    }
}

#[test]
fn a_device_that_grew_while_the_target_was_away_is_resized() {
    let mut world = attached(Setup::default());
    let user = world.open("r0_disk0", 0);
    world.crash_target();
    replace_disk(&mut world, 2048);
    world.start_target();
    world.until("the size changes", |_| {
        user.desc.geometry().num_blocks == 2048
    });
    assert_eq!(user.desc.resize_generation(), 1);
}

#[test]
fn a_device_that_shrank_while_the_target_was_away_is_not_used() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 0);
    world.crash_target();
    replace_disk(&mut world, 512);
    world.start_target();
    assert_eq!(world.read(&mut user, 0, 1), Err(Errno::NODEV));
}

fn replace_disk(world: &mut World, num_blocks: u64) {
    let (tx, rx) = std::sync::mpsc::channel();
    let gone = Box::new(move |_| tx.send(()).unwrap());
    world.target_registry.unregister("disk0", gone).unwrap();
    world.until("the disk is gone", |_| rx.try_recv().is_ok());
    world::make_disk_of(&world.target_registry, &world.memory, "disk0", num_blocks);
}

#[test]
fn io_fails_after_the_set_time_and_works_again_when_the_target_is_back() {
    let mut world = World::new(Setup::default());
    let timeouts = Timeouts {
        reconnect_delay_sec: 2,
        fast_io_fail_timeout_sec: 5,
        ..Timeouts::default()
    };
    let options = Options {
        timeouts,
        ..Options::default()
    };
    world.initiator.set_options(options).unwrap();
    world.attach(&["disk0"]).unwrap();
    let mut user = world.open("r0_disk0", 0);
    world.crash_target();
    let lost_at = world.now;
    assert_eq!(world.read(&mut user, 0, 1), Err(Errno::TIMEDOUT));
    let waited = world.now.since(lost_at);
    assert!(
        waited >= Nanos::from_secs(5) && waited < Nanos::from_secs(7),
        "{waited:?}"
    );
    world.start_target();
    world.until("the path is back", |world| {
        let all = world
            .call(|control, reply| control.get_controllers(None, reply))
            .unwrap();
        all[0].state == ControllerState::Enabled
    });
    world.read(&mut user, 0, 1).unwrap();
}

#[test]
fn a_controller_that_is_lost_fails_io_until_it_is_reconnected() {
    let mut world = World::new(Setup::default());
    let mut params = attach_params(&["disk0"]);
    params.timeouts = Some(Timeouts {
        reconnect_delay_sec: 1,
        ctrlr_loss_timeout_sec: 10,
        ..Timeouts::default()
    });
    world
        .call(|control, reply| control.attach_controller(params, reply))
        .unwrap();
    let mut user = world.open("r0_disk0", 0);
    world.crash_target();
    assert_eq!(world.read(&mut user, 0, 1), Err(Errno::CONNABORTED));
    let all = world
        .call(|control, reply| control.get_controllers(Some("r0"), reply))
        .unwrap();
    assert_eq!(all[0].state, ControllerState::Failed);
    world.start_target();
    world
        .call(|control, reply| control.reconnect_path("r0", 0, reply))
        .unwrap();
    world.read(&mut user, 0, 1).unwrap();
}

#[test]
fn a_path_can_be_disconnected_and_reconnected() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 0);
    world
        .call(|control, reply| control.disconnect_path("r0", 0, reply))
        .unwrap();
    assert_eq!(world.read(&mut user, 0, 1), Err(Errno::CONNABORTED));
    world
        .call(|control, reply| control.reconnect_path("r0", 0, reply))
        .unwrap();
    world.read(&mut user, 0, 1).unwrap();
}

#[test]
fn unmapping_spares_a_device_in_use_unless_forced() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 0);
    let unmap = |world: &mut World, mode| {
        world.call(|control, reply| control.unmap_device("r0_disk0", mode, reply))
    };
    assert_eq!(
        unmap(&mut world, UnmapMode::Normal).unwrap_err().errno,
        Errno::BUSY
    );
    world.read(&mut user, 0, 1).unwrap();
    let forced = world.begin(|control, reply| {
        control.unmap_device("r0_disk0", UnmapMode::Force, reply);
    });
    world.until("the user is told", |_| user.desc.is_removed());
    assert!(forced.try_recv().is_err(), "the user has not let go yet");
    drop(user);
    world.until("it is unmapped", |_| forced.try_recv().is_ok());
    let name = world.call(|control, reply| control.map_device("r0", device("disk0"), reply));
    assert_eq!(name.unwrap(), "r0_disk0", "the server has closed it, too");
}

#[test]
fn a_device_that_the_server_closed_is_remapped() {
    let mut world = attached(Setup::default());
    let mut user = world.open("r0_disk0", 0);
    let remap =
        |world: &mut World| world.call(|control, reply| control.remap_device("r0_disk0", reply));
    assert_eq!(remap(&mut world).unwrap_err().errno, Errno::ALREADY);
    let selector = rnbd_proto::target::DeviceSelector::Path("disk0".to_owned());
    let (tx, rx) = std::sync::mpsc::channel();
    let reply = Box::new(move |result: Result<(), Errno>| tx.send(result).unwrap());
    world
        .target
        .as_ref()
        .unwrap()
        .close_device("host-a", &selector, reply)
        .unwrap();
    world.until("it is closed", |_| rx.try_recv().is_ok());
    assert_eq!(world.read(&mut user, 0, 1), Err(Errno::NOTCONN));
    remap(&mut world).unwrap();
    world.read(&mut user, 0, 1).unwrap();
}

#[test]
fn a_resize_is_local_and_a_rescan_tells_the_truth() {
    let mut world = attached(Setup::default());
    let user = world.open("r0_disk0", 0);
    let resize = |world: &mut World, blocks| {
        world.call(|control, reply| control.resize_device("r0_disk0", blocks, reply))
    };
    assert_eq!(resize(&mut world, 10).unwrap_err().errno, Errno::BUSY);
    resize(&mut world, 4096).unwrap();
    assert_eq!(user.desc.geometry().num_blocks, 4096);
    world
        .call(|control, reply| control.rescan_device("r0_disk0", reply))
        .unwrap();
    assert_eq!(user.desc.geometry().num_blocks, 1024);
}

#[test]
fn an_attach_that_fails_leaves_nothing() {
    let mut world = World::new(Setup::default());
    let error = world.attach(&["disk0", "nothing"]).unwrap_err();
    assert_eq!(error.errno, Errno::NOENT);
    assert!(world.registry.list().is_empty());
    let all = world
        .call(|control, reply| control.get_controllers(None, reply))
        .unwrap();
    assert!(all.is_empty());
    world.attach(&["disk0"]).unwrap();
}

#[test]
fn a_server_that_is_not_there_is_said_to_be_so() {
    let mut world = World::new(Setup::default());
    world.crash_target();
    let error = world.attach(&[]).unwrap_err();
    assert_eq!(error.errno, Errno::CONNREFUSED);
    assert_eq!(error.message, "ip:10.0.0.1 port 1234: connection refused");
}

#[test]
fn a_transport_that_was_not_added_is_named() {
    let mut world = World::new(Setup::default());
    let params = AttachParams {
        trtype: "SHM",
        ..attach_params(&[])
    };
    let attached = world.call(|control, reply| control.attach_controller(params, reply));
    let error = attached.unwrap_err();
    assert_eq!(error.errno, Errno::OPNOTSUPP);
    assert!(error.message.contains("SHM"), "{error}");
}

#[test]
fn a_connection_that_cannot_even_be_started_leaves_nothing() {
    let mut world = World::new(Setup::default());
    let mut params = attach_params(&["disk0"]);
    params.addr = Addr::new("gid:fe80::1".parse().unwrap(), 1234);
    let error = world
        .call(|control, reply| control.attach_controller(params, reply))
        .unwrap_err();
    assert_eq!(error.errno, Errno::OPNOTSUPP);
    assert!(error.message.starts_with("gid:fe80:0000:"), "{error}");
    assert!(error.message.contains("a GID"), "{error}");
    let left = world.call(|control, reply| control.get_controllers(None, reply));
    assert!(left.unwrap().is_empty());
}

#[test]
fn a_queue_that_is_too_short_is_refused_with_its_limit() {
    let mut world = World::new(Setup {
        initiator_cores: 4,
        queue_depth: 4,
        ..Setup::default()
    });
    let error = world.attach(&["disk0"]).unwrap_err();
    assert_eq!(error.errno, Errno::INVAL);
    assert!(error.message.contains("at least 5"), "{error}");
}

#[test]
fn detaching_gives_everything_back() {
    let mut world = attached(Setup {
        initiator_cores: 2,
        ..Setup::default()
    });
    let detach = |world: &mut World, force| {
        world.call(|control, reply| control.detach_controller("r0", force, reply))
    };
    let user = world.open("r0_disk0", 1);
    assert_eq!(detach(&mut world, false).unwrap_err().errno, Errno::BUSY);
    drop(user);
    let used = world.memory.usage().used_bytes;
    detach(&mut world, false).unwrap();
    assert!(world.registry.list().is_empty());
    assert!(world.memory.usage().used_bytes < used);
    assert_eq!(detach(&mut world, true).unwrap_err().errno, Errno::NODEV);
    world.attach(&["disk0"]).unwrap();
}

#[test]
fn what_is_being_detached_takes_neither_devices_nor_paths() {
    let mut world = attached(Setup {
        nets: 2,
        ..Setup::default()
    });
    let user = world.open("r0_disk0", 0);
    let detached = world.begin(|control, reply| control.detach_controller("r0", true, reply));
    let mapped = world.call(|control, reply| control.map_device("r0", device("disk1"), reply));
    assert_eq!(mapped.unwrap_err().errno, Errno::BUSY);
    assert_eq!(world.add_path(1).unwrap_err().errno, Errno::BUSY);
    assert!(detached.try_recv().is_err(), "the bdev is in use");
    drop(user);
    world.until("the controller is gone", |_| {
        detached.try_recv().is_ok_and(|result| result.is_ok())
    });
}

#[test]
fn names_that_are_taken_are_refused() {
    let mut world = attached(Setup::default());
    let map = |world: &mut World, params| {
        world.call(|control, reply| control.map_device("r0", params, reply))
    };
    assert_eq!(
        map(&mut world, device("disk0")).unwrap_err().errno,
        Errno::EXIST
    );
    let memory = world.memory.clone();
    make_disk(&world.registry, &memory, "taken");
    let mut params = device("disk1");
    params.bdev_name = Some("taken".to_owned());
    assert_eq!(map(&mut world, params).unwrap_err().errno, Errno::EXIST);
    assert_eq!(world.attach(&[]).unwrap_err().errno, Errno::ALREADY);
}

#[test]
fn statistics_add_up_over_cores() {
    let mut world = attached(Setup {
        initiator_cores: 2,
        ..Setup::default()
    });
    for core in 0..2 {
        let mut user = world.open("r0_disk0", core);
        world.write(&mut user, 0, &pattern(1, 2)).unwrap();
        world.read(&mut user, 0, 2).unwrap();
    }
    let stats = world
        .call(|control, reply| control.path_stats(Some("r0"), reply))
        .unwrap();
    assert_eq!(stats.len(), 1);
    assert_eq!((stats[0].reads, stats[0].writes), (2, 2));
    assert_eq!(stats[0].write_bytes, 2 * (1024 + 32));
    assert!(stats[0].path.ends_with("@ip:10.0.0.1"), "{}", stats[0].path);
    world
        .call(|control, reply| control.reset_path_stats("r0", None, reply))
        .unwrap();
    let stats = world
        .call(|control, reply| control.path_stats(None, reply))
        .unwrap();
    assert_eq!(stats[0].reads, 0);
    let paths = world
        .call(|control, reply| control.io_paths(reply))
        .unwrap();
    assert_eq!(paths.len(), 2);
    assert!(paths.iter().all(|path| path.connected && path.accessible));
}

#[test]
fn the_saved_configuration_is_what_was_asked_for() {
    let world = attached(Setup::default());
    let calls = world.initiator.config();
    let methods: Vec<_> = calls.iter().map(|call| call.method).collect();
    let expected = [
        "bdev_rnbd_set_options",
        "bdev_rnbd_attach_controller",
        "bdev_rnbd_map_device",
    ];
    assert_eq!(methods, expected);
    assert_eq!(calls[1].params["traddr"], "10.0.0.1");
    assert_eq!(calls[2].params["device_path"], "disk0");
}

#[test]
fn a_device_is_the_same_one_in_every_run_and_no_other() {
    let uuid = |seed, controller: &str, sessname: &str, device: &str| {
        let mut world = World::new(Setup {
            seed,
            ..Setup::default()
        });
        let mut params = attach_params(&[device]);
        controller.clone_into(&mut params.name);
        sessname.clone_into(&mut params.sessname);
        let names = world.call(|control, reply| control.attach_controller(params, reply));
        world.registry.get(&names.unwrap()[0]).unwrap().bdev.uuid()
    };
    let disk = uuid(1, "r0", "host", "disk0");
    assert_eq!(uuid(2, "r0", "host", "disk0"), disk);
    assert_ne!(uuid(1, "r0", "host", "disk1"), disk);
    assert_ne!(uuid(1, "r0", "guest", "disk0"), disk);
    assert_ne!(
        uuid(1, "r1", "host", "disk0"),
        disk,
        "maybe of another server"
    );
}

#[test]
fn watchers_hear_of_paths_and_devices() {
    let mut world = attached(Setup::default());
    world.crash_target();
    world.run_for(Nanos::from_secs(3));
    let heard = |kind, ctx: &str| {
        let all = world.notifications.lock().unwrap();
        all.iter()
            .any(|one| one.kind.as_str() == kind && one.ctx == ctx)
    };
    assert!(heard("bdev_rnbd_path_state", "r0:0:connected"));
    assert!(heard("rnbd_device_opened", "r0_disk0"));
    assert!(heard("bdev_rnbd_path_state", "r0:0:reconnecting"));
    assert!(heard("rnbd_device_closed", "r0_disk0"));
    assert!(heard("bdev_rnbd_reconnect_failed", "r0:0"));
}

/// What a hostile server may send at any time, whatever the mode of the path is.
fn injections() -> Vec<Injection> {
    let send = |bytes: &[u8], imm| Injection::Send {
        bytes: bytes.to_vec(),
        imm,
    };
    let nowhere = RemoteAddr {
        addr: 0x1000,
        rkey: 7,
    };
    vec![
        Injection::Imm(0x1000_ffff),
        Injection::Imm(0x2000_0001),
        Injection::Imm(0x0000_0020),
        Injection::Imm(0xf123_4567),
        send(&[], None),
        send(&[4, 0, 200, 0, 1, 2, 3, 4], Some(0x1000_00c8)),
        send(&[0; 64], None),
        Injection::Write {
            remote: nowhere,
            bytes: vec![0xff; 64],
            imm: 0x1000_0001,
        },
    ]
}

#[test]
fn a_hostile_server_costs_itself_the_path_and_nothing_else() {
    for new_rkey in [false, true] {
        for injection in injections() {
            let mut world = attached(Setup {
                new_rkey,
                ..Setup::default()
            });
            let mut user = world.open("r0_disk0", 0);
            let data = pattern(3, 8);
            world.write(&mut user, 0, &data).unwrap();
            for connection in world.network.connections() {
                let injection = injection.clone();
                world
                    .network
                    .inject(connection.wire, Side::Server, injection);
            }
            world.run_for(Nanos::from_millis(1));
            let seen = world.read(&mut user, 0, 8).unwrap();
            assert_eq!(seen, data, "{injection:?}");
            let stats = world.call(|control, reply| control.path_stats(None, reply));
            assert!(stats.unwrap()[0].reconnects_ok >= 1, "{injection:?}");
        }
    }
}
