//! OPEN: of files below the search path, and when it has to wait.

use std::sync::{Arc, Mutex};

use rnbd_base::{Errno, Nanos};
use rnbd_bdev::{MallocBdev, MallocOptions};
use rnbd_fabric::sim::SimFabric;
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_proto::srv::{Export, OpenPath, ServiceOptions};
use rnbd_proto::target::{DeviceOpener, DeviceSelector, Reply};
use rnbd_wire::rnbd::AccessMode;

use crate::client::{Client, Identity};
use crate::rig::{Options, Rig, Sim};

type Asked = (OpenPath, Reply<Result<String, Errno>>);

/// Opens files late: when the test says so.
#[derive(Default)]
struct Late {
    asked: Mutex<Vec<Asked>>,
    closed: Mutex<Vec<String>>,
}

impl DeviceOpener for Late {
    fn open(&self, path: OpenPath, reply: Reply<Result<String, Errno>>) {
        self.asked.lock().unwrap().push((path, reply));
    }

    fn closed(&self, bdev_name: &str) {
        self.closed.lock().unwrap().push(bdev_name.to_owned());
    }
}

fn rig_with_files() -> (Rig<Sim>, Arc<Late>) {
    let late = Arc::new(Late::default());
    let rig = Rig::with_opener(
        Options::default(),
        Arc::clone(&late) as Arc<dyn DeviceOpener>,
    );
    rig.services.exports.set_options(ServiceOptions {
        dev_search_path: Some("/srv/%SESSNAME%".to_owned()),
        allow_any_host: true,
        ..ServiceOptions::default()
    });
    (rig, late)
}

#[test]
fn a_file_below_the_search_path_is_opened_elsewhere() {
    let (mut rig, late) = rig_with_files();
    let mut client = rig.up(Identity::new("clt1", 1));
    client.open(1, "images/a", AccessMode::ReadWrite);
    rig.run(&mut client, |_| !late.asked.lock().unwrap().is_empty());
    let (path, reply) = late.asked.lock().unwrap().remove(0);
    assert_eq!(
        path.root.join(&path.relative).to_str(),
        Some("/srv/clt1/images/a")
    );
    reply(Ok("Malloc0".to_owned()));
    rig.expect(&mut client, Ok(()));
    let id = client.open_rsp(1).device_id;
    client.write_block(0, id);
    rig.expect(&mut client, Ok(()));
    client.close(1, id);
    rig.expect(&mut client, Ok(()));
    assert_eq!(*late.closed.lock().unwrap(), ["Malloc0"]);
}

#[test]
fn a_file_that_is_not_there_leaves_nothing() {
    let (mut rig, late) = rig_with_files();
    let mut client = rig.up(Identity::new("clt1", 1));
    client.open(1, "absent", AccessMode::ReadWrite);
    rig.run(&mut client, |_| !late.asked.lock().unwrap().is_empty());
    let (_, reply) = late.asked.lock().unwrap().remove(0);
    reply(Err(Errno::NOENT));
    rig.expect(&mut client, Err(Errno::NOENT));
    assert!(rig.sessions()[0].devices.is_empty());
    let escape = rig.open(&mut client, "../absent", AccessMode::ReadWrite);
    assert_eq!(escape.unwrap_err(), Errno::INVAL);
}

#[test]
fn a_client_that_leaves_while_its_file_is_opened_is_waited_for() {
    let (mut rig, late) = rig_with_files();
    let mut client = rig.up(Identity::new("clt1", 1));
    client.open(1, "a", AccessMode::ReadWrite);
    rig.run(&mut client, |_| !late.asked.lock().unwrap().is_empty());
    client.disconnect();
    rig.run(&mut client, |client| client.closed.len() == 3);
    assert_eq!(rig.sessions().len(), 1, "its OPEN is in flight");
    let (_, reply) = late.asked.lock().unwrap().remove(0);
    reply(Ok("Malloc0".to_owned()));
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    assert!(rig.services.exports.opens().is_empty());
    assert_eq!(*late.closed.lock().unwrap(), ["Malloc0"]);
}

#[test]
fn an_export_without_its_bdev_cannot_be_opened_until_it_is_there() {
    let (mut rig, mut client) = rig_with_missing_bdev();
    let absent = rig.open(&mut client, "later", AccessMode::ReadWrite);
    assert_eq!(absent.unwrap_err(), Errno::NODEV);
    create_missing_bdev(&rig);
    let opened = rig
        .open(&mut client, "later", AccessMode::ReadWrite)
        .unwrap();
    assert_eq!(opened.nsectors, 8);
}

// Waiting.

/// A client of an export whose bdev is not there.
fn rig_with_missing_bdev() -> (Rig<Sim>, Client<SimFabric>) {
    let mut rig = Rig::sim(Options::default());
    let client = rig.up(Identity::new("clt1", 1));
    let export = Export {
        allow_any_host: true,
        ..Export::new("later", "Malloc9")
    };
    rig.services.exports.create(export).unwrap();
    (rig, client)
}

fn create_missing_bdev(rig: &Rig<Sim>) {
    let malloc = MallocOptions {
        name: Some("Malloc9".to_owned()),
        num_blocks: 8,
        block_size: 512,
        ..MallocOptions::default()
    };
    let memory = Memory::new(MemoryConfig::default());
    MallocBdev::create(&rig.services.registry, &memory, malloc).unwrap();
}

fn wait_for_missing(rig: &Rig<Sim>, timeout: Nanos) {
    let options = rig.services.exports.options();
    rig.services.exports.set_options(ServiceOptions {
        wait_for_missing: true,
        open_timeout: timeout,
        ..options
    });
}

#[test]
fn an_open_waits_for_a_missing_bdev_if_it_may() {
    let (mut rig, mut client) = rig_with_missing_bdev();
    wait_for_missing(&rig, Nanos::from_secs(5));
    client.open(1, "later", AccessMode::ReadWrite);
    rig.steps(100, &mut [&mut client]);
    assert!(client.answers.is_empty());
    create_missing_bdev(&rig);
    rig.expect(&mut client, Ok(()));
    assert_eq!(client.open_rsp(1).nsectors, 8);
}

#[test]
fn an_open_of_what_stays_missing_fails_when_its_time_is_up() {
    let (mut rig, mut client) = rig_with_missing_bdev();
    wait_for_missing(&rig, Nanos::from_secs(5));
    for (name, errno) in [("later", Errno::NODEV), ("never", Errno::NOENT)] {
        let asked_at = rig.now;
        let absent = rig.open(&mut client, name, AccessMode::ReadWrite);
        assert_eq!(absent.unwrap_err(), errno);
        let waited = rig.now.since(asked_at);
        assert!(waited >= Nanos::from_secs(5) && waited < Nanos::from_secs(6));
    }
    assert!(rig.sessions()[0].devices.is_empty());
}

#[test]
fn a_client_that_leaves_while_its_open_waits_leaves_nothing() {
    let (mut rig, mut client) = rig_with_missing_bdev();
    wait_for_missing(&rig, Nanos::from_secs(3600));
    client.open(1, "later", AccessMode::ReadWrite);
    rig.steps(100, &mut [&mut client]);
    client.disconnect();
    rig.run(&mut client, |client| client.closed.len() == 3);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    create_missing_bdev(&rig);
    rig.steps(100, &mut []);
    assert!(rig.services.exports.opens().is_empty());
}

#[test]
fn a_device_that_is_being_closed_can_be_opened_again_when_that_is_done() {
    let mut rig = Rig::sim(Options::default());
    let (mut client, id) = rig.up_with("slow");
    client.write_block(0, id);
    client.close(2, id);
    client.open(1, "slow", AccessMode::ReadWrite);
    for msg_id in [0, 2, 1] {
        let answer = rig.answer(&mut client);
        assert_eq!((answer.msg_id, answer.status), (msg_id, Ok(())));
    }
    assert_ne!(client.open_rsp(1).device_id, id, "another life");
}

#[test]
fn a_device_that_is_being_taken_away_can_be_opened_again_under_its_id() {
    let mut rig = Rig::sim(Options::default());
    let (mut client, id) = rig.up_with("slow");
    client.write_block(0, id);
    rig.steps(6, &mut [&mut client]);
    let device = DeviceSelector::Id(id);
    rig.ask(|handle, reply| handle.close_device("clt1", &device, reply))
        .unwrap();
    client.open(1, "slow", AccessMode::ReadWrite);
    rig.expect(&mut client, Ok(()));
    rig.expect(&mut client, Ok(()));
    assert_eq!(client.open_rsp(1).device_id, id);
}

#[test]
fn an_open_that_waits_too_long_for_a_close_is_told_so() {
    let mut rig = Rig::sim(Options::default());
    let options = rig.services.exports.options();
    rig.services.exports.set_options(ServiceOptions {
        open_timeout: Nanos::from_millis(100),
        ..options
    });
    let (mut client, id) = rig.up_with("slow");
    client.write_block(0, id);
    client.close(2, id);
    client.open(1, "slow", AccessMode::ReadWrite);
    let answer = rig.answer(&mut client);
    assert_eq!((answer.msg_id, answer.status), (1, Err(Errno::BUSY)));
}

#[test]
fn two_opens_of_one_device_are_both_answered() {
    let (mut rig, late) = rig_with_files();
    let mut client = rig.up(Identity::new("clt1", 1));
    client.open(1, "a", AccessMode::ReadWrite);
    client.open(2, "a", AccessMode::ReadWrite);
    rig.run(&mut client, |_| !late.asked.lock().unwrap().is_empty());
    rig.steps(50, &mut [&mut client]);
    let (_, reply) = late.asked.lock().unwrap().remove(0);
    reply(Ok("Malloc0".to_owned()));
    rig.expect(&mut client, Ok(()));
    rig.expect(&mut client, Ok(()));
    let ids = [1, 2].map(|msg_id| client.open_rsp(msg_id).device_id);
    assert_eq!(ids[0], ids[1]);
    assert!(late.asked.lock().unwrap().is_empty(), "asked once");
}
