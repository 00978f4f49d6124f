//! Sessions and devices come and go.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_fabric::sim::Crash;
use rnbd_proto::target::{DeviceSelector, Notification};
use rnbd_wire::rnbd::{AccessMode, Op};

use crate::client::{Identity, io};
use crate::rig::{BLOCK, DEPTH, Options, Rig, host, new_rkey};

#[test]
fn a_session_is_told_about_and_leaves_nothing() {
    for options in [Options::default(), new_rkey()] {
        let mut rig = Rig::sim(options);
        let mut client = rig.up(Identity::new("clt1", 1));
        rig.open_rw(&mut client, "disk");
        assert!(rig.chunk_memory() > 0);
        client.disconnect();
        rig.run(&mut client, |client| client.closed.len() == 3);
        rig.run_alone(|rig| rig.chunk_memory() == 0);
        assert!(rig.sessions().is_empty() && rig.services.exports.opens().is_empty());
        let log = rig.log.0.lock().unwrap();
        let types: Vec<_> = log.iter().map(Notification::notification_type).collect();
        assert_eq!(
            types,
            [
                "rtrs_session_connected",
                "rtrs_path_up",
                "rnbd_device_opened",
                "rtrs_path_down",
                "rnbd_device_closed",
                "rtrs_session_disconnected"
            ]
        );
        assert_eq!(log[1].ctx(), "clt1:ip:10.0.0.2@ip:10.0.0.1");
    }
}

#[test]
fn a_client_that_dies_under_load_leaves_nothing_once_its_io_has_drained() {
    let mut rig = Rig::sim(Options::default());
    let (mut client, id) = rig.up_with("slow");
    for msg_id in 0..6 {
        client.write_block(msg_id, id);
    }
    rig.steps(6, &mut [&mut client]);
    rig.world.0.crash(host(2), Crash::Process);
    drop(client);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    assert!(
        rig.services.exports.opens().is_empty(),
        "its writer does not count any more"
    );
    let mut next = rig.client_on(3, Identity::new("clt1", 2));
    rig.bring_up(&mut next);
    rig.open_rw(&mut next, "slow");
}

#[test]
fn a_client_whose_power_fails_is_given_up_after_its_heartbeats() {
    let mut rig = Rig::sim(Options::default());
    let client = rig.up(Identity::new("clt1", 1));
    let alive_at = rig.now;
    rig.world.0.crash(host(2), Crash::Power);
    drop(client);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    let silent = rig.now.since(alive_at);
    assert!(silent <= Nanos::from_secs(36), "{silent:?}");
}

#[test]
fn heartbeats_keep_an_idle_session() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.up(Identity::new("clt1", 1));
    let start = rig.now;
    while rig.now.since(start) < Nanos::from_secs(100) {
        rig.step(&mut [&mut client]);
    }
    assert!(client.others.len() >= 19 && client.closed.is_empty());
    let path = &rig.sessions()[0].paths[0];
    assert!(path.heartbeat.unwrap().last_rtt.is_some());

    client.answers_heartbeats = false;
    rig.run(&mut client, |client| client.closed.len() == 3);
    assert!(rig.sessions().is_empty());
}

#[test]
fn a_reconnect_waits_for_the_io_of_the_lost_path() {
    let mut rig = Rig::sim(Options::default());
    let (mut client, id) = rig.up_with("slow");
    client.write_block(0, id);
    rig.steps(6, &mut [&mut client]);
    assert_eq!(rig.sessions()[0].inflight, 1);
    client.disconnect();
    rig.run(&mut client, |client| client.closed.len() == 3);

    let again = Identity::new("clt1", 1).again();
    let mut early = rig.client(again.clone());
    let conn = early.connect(rig.addr, rig.now);
    rig.run(&mut early, |early| !early.closed.is_empty());
    assert_eq!(early.rejected(conn), Some(Errno::BUSY));
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    let mut late = rig.client(again);
    rig.bring_up(&mut late);
    rig.open_rw(&mut late, "slow");
}

#[test]
fn a_path_that_comes_again_supersedes_its_dead_incarnation() {
    let mut rig = Rig::sim(Options::default());
    let client = rig.up(Identity::new("clt1", 1));
    rig.world.0.crash(host(2), Crash::Power);
    drop(client);
    let again = Identity::new("clt1", 1).again();
    let mut refused = rig.client_on(3, again.clone());
    let conn = refused.connect(rig.addr, rig.now);
    rig.run(&mut refused, |refused| !refused.closed.is_empty());
    assert_eq!(refused.rejected(conn), Some(Errno::BUSY));
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    let mut late = rig.client_on(4, again);
    rig.bring_up(&mut late);
}

#[test]
fn two_sessions_cannot_have_one_name() {
    let mut rig = Rig::sim(Options {
        cores: 2,
        ..Options::default()
    });
    let first = rig.up(Identity::new("clt1", 1));
    let mut second = rig.client_on(3, Identity::new("clt1", 2));
    rig.connect(&mut second);
    second.send_info_req();
    rig.run(&mut second, |second| second.closed.len() == 3);
    assert!(second.chunks.is_empty());
    assert_eq!(rig.sessions().len(), 1);
    drop(first);
}

#[test]
fn a_path_that_calls_its_session_otherwise_is_refused_alone() {
    let mut rig = Rig::sim(Options::default());
    let mut first = rig.up(Identity::new("clt1", 1));
    let misnamed = Identity {
        name: "clt2".to_owned(),
        ..Identity::added(3)
    };
    let mut second = rig.client_on(3, misnamed);
    rig.connect(&mut second);
    second.send_info_req();
    rig.run(&mut second, |second| second.closed.len() == 3);
    assert!(second.chunks.is_empty());
    rig.open_rw(&mut first, "disk");
}

#[test]
fn a_second_path_joins_its_session_and_keeps_the_devices_up() {
    let mut rig = Rig::sim(Options {
        cores: 2,
        ..Options::default()
    });
    let (mut first, id) = rig.up_with("disk");
    let mut second = rig.added_path(3);
    first.disconnect();
    rig.run(&mut first, |first| first.closed.len() == 3);
    rig.run(&mut second, |_| true);
    second.write_block(0, id);
    rig.expect(&mut second, Ok(()));
    let again = rig.open_rw(&mut second, "disk");
    assert_eq!(again, id);
    assert_eq!(rig.sessions()[0].paths.len(), 1);
}

#[test]
fn sessions_are_spread_over_the_cores_and_whole_on_each() {
    let mut rig = Rig::sim(Options {
        cores: 2,
        ..Options::default()
    });
    let mut clients: Vec<_> = (1..=4)
        .map(|number| {
            let id = Identity::new(&format!("clt{number}"), number);
            let mut client = rig.client_on(10 + number, id);
            rig.bring_up(&mut client);
            client
        })
        .collect();
    for stats in rig.stats() {
        assert_eq!(
            (stats.sessions, stats.connections),
            (2, 6),
            "{:?}",
            stats.core
        );
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let opened = rig.open(client, "disk", AccessMode::ReadOnly);
        assert!(opened.is_ok(), "client {number}");
    }
}

#[test]
fn writers_are_counted_over_sessions_and_cores() {
    let mut rig = Rig::sim(Options {
        cores: 2,
        ..Options::default()
    });
    let mut first = rig.up(Identity::new("clt1", 1));
    rig.open_rw(&mut first, "disk");
    let mut second = rig.client_on(3, Identity::new("clt2", 2));
    rig.bring_up(&mut second);
    let refused = rig.open(&mut second, "disk", AccessMode::ReadWrite);
    assert_eq!(refused.unwrap_err(), Errno::PERM);
    rig.open(&mut second, "disk", AccessMode::Migration)
        .unwrap();
    let absent = rig.open(&mut second, "absent", AccessMode::ReadOnly);
    assert_eq!(absent.unwrap_err(), Errno::NOENT);
}

#[test]
fn a_device_taken_away_goes_although_a_lost_path_was_sending_from_it() {
    let mut rig = Rig::sim(Options::default());
    let (mut first, id) = rig.up_with("disk");
    let mut second = rig.added_path(3);
    rig.world.0.cut(host(1), host(2));
    first.read(1, 0, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
    rig.steps(10, &mut [&mut first, &mut second]);
    let device = DeviceSelector::Id(id);
    let taken = rig.ask(|handle, reply| handle.close_device("clt1", &device, reply));
    assert_eq!(taken, Ok(()));
    assert_eq!(
        rig.services.exports.opens().len(),
        1,
        "its memory is on the wire"
    );
    rig.world.0.crash(host(2), Crash::Process);
    rig.world.0.heal_all();
    rig.run(&mut second, |_| true);
    rig.steps(1000, &mut [&mut second]);
    assert_eq!(rig.sessions()[0].paths.len(), 1);
    assert!(rig.services.exports.opens().is_empty());
}

#[test]
fn a_close_does_not_wait_for_data_that_a_lost_path_was_sending() {
    for steps in 1..30 {
        let mut rig = Rig::sim(Options::default());
        let (mut client, id) = rig.up_with("disk");
        client.read(1, 0, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
        client.close(2, id);
        rig.steps(steps, &mut [&mut client]);
        rig.world.0.crash(host(2), Crash::Process);
        rig.steps(1000, &mut []);
        assert!(rig.sessions().is_empty(), "after {steps} steps");
        assert!(rig.services.exports.opens().is_empty());
    }
}

#[test]
fn a_device_stays_open_while_an_answer_from_its_memory_waits_to_be_sent() {
    let mut rig = Rig::sim(Options::default());
    let (mut client, id) = rig.up_with("disk");
    // The client takes no answers on connection 1 until the target cannot send any more.
    for _ in 0..1000 {
        if rig.sessions()[0].inflight > 0 {
            break;
        }
        client.write(1, 0, &[], &io(id + 1, Op::Flush, 0, 0).to_bytes());
        client.fabric.flush(rig.now);
        rig.steps(10, &mut []);
    }
    assert_eq!(rig.sessions()[0].inflight, 1, "an answer waits");
    client.read(1, 1, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
    client.fabric.flush(rig.now);
    rig.steps(10, &mut []);
    client.close(2, id);
    client.fabric.flush(rig.now);
    rig.steps(10, &mut []);
    assert_eq!(rig.sessions()[0].inflight, 3);
    assert_eq!(rig.services.exports.opens().len(), 1);
    rig.run(&mut client, |client| {
        client.answers.iter().any(|answer| answer.msg_id == 2)
    });
    assert!(rig.services.exports.opens().is_empty());
}

#[test]
fn requests_sent_again_on_another_path_wait_for_those_of_the_lost_one() {
    let mut rig = Rig::sim(Options::default());
    let (mut first, id) = rig.up_with("slow");
    let mut second = rig.added_path(3);
    let message = io(id, Op::Write, 0, BLOCK).to_bytes();
    for msg_id in 0..DEPTH {
        first.write(1, msg_id, &[1; BLOCK], &message);
    }
    rig.steps(20, &mut [&mut first, &mut second]);
    rig.world.0.crash(host(2), Crash::Process);
    drop(first);
    for msg_id in 0..DEPTH {
        second.write(1, msg_id, &[1; BLOCK], &message);
    }
    rig.steps(20, &mut [&mut second]);
    let inflight = rig.sessions()[0].inflight;
    assert!(inflight > u32::from(DEPTH), "more than the device takes");
    for _ in 0..DEPTH {
        rig.expect(&mut second, Ok(()));
    }
}
