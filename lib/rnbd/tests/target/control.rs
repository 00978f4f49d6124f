//! Commands: what an administrator can do to a target that serves.

use std::sync::{Arc, Mutex};

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_proto::target::{DeviceSelector, Notification, Selector, TargetHandle};
use rnbd_wire::rnbd::{AccessMode, Op};

use crate::client::{Client, Identity, Image, io};
use crate::rig::{BLOCK, Options, Rig, Sim, World, host, new_rkey};

type SimClient = Client<<Sim as World>::Fabric>;

fn up_with(name: &str) -> (Rig<Sim>, SimClient, u32) {
    let mut rig = Rig::sim(Options {
        cores: 2,
        ..Options::default()
    });
    let (client, id) = rig.up_with(name);
    (rig, client, id)
}

fn write(rig: &mut Rig<Sim>, client: &mut SimClient, id: u32) -> Result<(), Errno> {
    client.write_block(0, id);
    rig.answer(client).status
}

fn selector(path: Option<&str>) -> Selector {
    Selector {
        sessname: "clt1".to_owned(),
        path: path.map(str::to_owned),
    }
}

#[test]
fn a_device_that_is_taken_away_answers_enotconn_until_it_is_opened_again() {
    let (mut rig, mut client, id) = up_with("disk");
    let by_name = DeviceSelector::Path("disk".to_owned());
    let taken = rig.ask(|handle, reply| handle.close_device("clt1", &by_name, reply));
    assert_eq!(taken, Ok(()));
    assert_eq!(write(&mut rig, &mut client, id), Err(Errno::NOTCONN));
    assert!(rig.services.exports.opens().is_empty());
    assert!(rig.sessions()[0].devices[0].force_closed);
    let again = rig.ask(|handle, reply| handle.close_device("clt1", &by_name, reply));
    assert_eq!(again, Err(Errno::NOENT));
    let id = rig.open_rw(&mut client, "disk");
    assert_eq!(write(&mut rig, &mut client, id), Ok(()));
}

#[test]
fn an_export_that_is_removed_is_closed_everywhere() {
    let (mut rig, mut client, id) = up_with("disk");
    rig.services.exports.delete("disk", true).unwrap();
    assert_eq!(
        rig.ask(|handle, reply| handle.close_export("disk", reply)),
        1
    );
    assert_eq!(write(&mut rig, &mut client, id), Err(Errno::NOTCONN));
    let gone = rig.open(&mut client, "disk", AccessMode::ReadWrite);
    assert_eq!(gone.unwrap_err(), Errno::NOENT);
}

#[test]
fn a_bdev_that_is_removed_is_let_go_by_all() {
    let (mut rig, mut client, id) = up_with("disk");
    let gone = Arc::new(Mutex::new(false));
    let told = Arc::clone(&gone);
    let on_removed = Box::new(move |_| *told.lock().unwrap() = true);
    rig.services
        .registry
        .unregister("Malloc0", on_removed)
        .unwrap();
    assert_eq!(write(&mut rig, &mut client, id), Err(Errno::NOTCONN));
    rig.run(&mut client, |_| *gone.lock().unwrap());
    assert_eq!(write(&mut rig, &mut client, id), Err(Errno::NOTCONN));
}

#[test]
fn a_disconnect_waits_until_nothing_is_left() {
    let (mut rig, mut client, id) = up_with("slow");
    client.write_block(0, id);
    rig.steps(6, &mut [&mut client]);
    let wait = Some(Nanos::from_secs(5));
    let reply = rig.ask_later(|handle, reply| handle.disconnect(&selector(None), wait, reply));
    rig.run(&mut client, |_| reply.lock().unwrap().is_some());
    assert_eq!(*reply.lock().unwrap(), Some(Ok(())));
    assert_eq!(rig.chunk_memory(), 0);
}

#[test]
fn a_disconnect_gives_up_after_the_time_it_was_given() {
    let (mut rig, mut client, id) = up_with("slow");
    client.write_block(0, id);
    rig.steps(6, &mut [&mut client]);
    let wait = Some(Nanos::from_micros(100));
    let result = rig.ask(|handle, reply| handle.disconnect(&selector(None), wait, reply));
    assert_eq!(result, Err(Errno::TIMEDOUT));
}

/// The client hears nothing of the disconnect and goes on writing, with the keys that it had.
fn a_late_write_fails(mut options: Options, path: Option<&str>) {
    options.rtrs.queue_depth = 16;
    let mut rig = Rig::sim(options);
    let (mut client, id) = rig.up_with("disk");
    rig.world.0.cut(host(1), host(2));
    let asked_at = rig.now;
    let wait = Some(Nanos::from_secs(5));
    let gone = rig.ask(|handle, reply| handle.disconnect(&selector(path), wait, reply));
    assert_eq!(gone, Ok(()));
    assert!(rig.now.since(asked_at) < Nanos::from_secs(1));
    assert_eq!(rig.chunk_memory(), 0);

    let message = io(id, Op::Write, 0, BLOCK).to_bytes();
    client.post_image(1, 0, &Image::write(&[0xbd; BLOCK], &message));
    client.fabric.flush(rig.now);
    rig.world.0.heal_all();
    rig.run(&mut client, |client| client.closed.len() == 3);
    assert!(client.answers.is_empty());
    let mut other = rig.client_on(3, Identity::new("clt2", 2));
    rig.bring_up(&mut other);
    let id = rig.open_rw(&mut other, "disk");
    other.read(1, 0, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
    rig.expect(&mut other, Ok(()));
    assert_eq!(other.data(0, BLOCK), [0; BLOCK]);
}

#[test]
fn who_is_disconnected_can_write_no_more() {
    for path in [None, Some("ip:10.0.0.2@ip:10.0.0.1")] {
        a_late_write_fails(Options::default(), path);
        a_late_write_fails(new_rkey(), path);
    }
}

#[test]
fn one_path_is_disconnected_and_the_others_go_on() {
    let mut rig = Rig::sim(Options::default());
    let (mut first, id) = rig.up_with("disk");
    let mut second = rig.added_path(3);
    rig.log.0.lock().unwrap().clear();
    let path = selector(Some("ip:10.0.0.2@ip:10.0.0.1"));
    let wait = Some(Nanos::from_secs(5));
    let gone = rig.ask(|handle, reply| handle.disconnect(&path, wait, reply));
    assert_eq!(gone, Ok(()));
    rig.run(&mut first, |first| first.closed.len() == 3);
    assert_eq!(write(&mut rig, &mut second, id), Ok(()));
    let log = rig.log.0.lock().unwrap();
    let down = "clt1:ip:10.0.0.2@ip:10.0.0.1:closed by the administrator";
    let told: Vec<_> = log.iter().map(Notification::ctx).collect();
    assert_eq!(told, [down], "rtrs_path_down alone");
}

#[test]
fn a_silence_is_told_before_its_path_is_given_up() {
    let (mut rig, mut client, _) = up_with("disk");
    client.answers_heartbeats = false;
    rig.log.0.lock().unwrap().clear();
    rig.run(&mut client, |client| client.closed.len() == 3);
    let log = rig.log.0.lock().unwrap();
    let types: Vec<_> = log.iter().map(Notification::notification_type).collect();
    let missed = "rtrs_heartbeat_missed";
    assert_eq!(types[..5], [missed; 5]);
    assert_eq!(types[5], "rtrs_path_down");
    assert_eq!(log[0].ctx(), "clt1:ip:10.0.0.2@ip:10.0.0.1");
}

#[test]
fn what_is_not_there_is_said() {
    let (mut rig, _client, _) = up_with("disk");
    let other = Selector {
        sessname: "other".to_owned(),
        path: None,
    };
    let absent = rig.ask(|handle, reply| handle.disconnect(&other, None, reply));
    assert_eq!(absent, Err(Errno::NOENT));
    let path = selector(Some("ip:10.0.0.9@ip:10.0.0.1"));
    let absent = rig.ask(|handle, reply| handle.disconnect(&path, None, reply));
    assert_eq!(absent, Err(Errno::NOENT));
    let path = selector(Some("ip:10.0.0.2@ip:10.0.0.1"));
    let known = rig.ask(|handle, reply| handle.reset_stats(&path, reply));
    assert_eq!(known, Ok(()));
}

#[test]
fn listeners_come_and_go_without_their_sessions() {
    let (mut rig, mut client, id) = up_with("disk");
    let addr = rig.addr;
    let listeners = rig.ask(TargetHandle::listeners);
    assert_eq!((listeners[0].addr, listeners[0].requests), (addr, 3));
    let removed = rig.ask(|handle, reply| handle.remove_listener(addr, reply));
    assert_eq!(removed, Ok(()));
    let again = rig.ask(|handle, reply| handle.remove_listener(addr, reply));
    assert_eq!(again, Err(Errno::NODEV));
    assert_eq!(write(&mut rig, &mut client, id), Ok(()));
    let mut late = rig.client_on(3, Identity::new("clt2", 2));
    late.connect(addr, rig.now);
    rig.run(&mut late, |late| !late.closed.is_empty());
}

#[test]
fn shutdown_ends_everything() {
    let (mut rig, mut client, _) = up_with("disk");
    let reply = rig.ask_later(TargetHandle::shutdown);
    rig.run(&mut client, |_| reply.lock().unwrap().is_some());
    assert_eq!(rig.chunk_memory(), 0);
    assert!(rig.services.exports.opens().is_empty());
}
