//! Commands: what an administrator can do to a target that serves.

use std::sync::{Arc, Mutex};

use rnbd_base::{Errno, Nanos};
use rnbd_bdev::{MallocBdev, MallocOptions};
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_proto::srv::{Export, OpenPath, ServiceOptions};
use rnbd_proto::target::{DeviceOpener, DeviceSelector, Reply, Selector, TargetHandle};
use rnbd_wire::rnbd::AccessMode;

use crate::client::{Client, Identity};
use crate::rig::{Options, Rig, Sim, World};

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
    assert_eq!(write(&mut rig, &mut client, id), Ok(()));
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
    let (mut rig, mut client, _) = up_with("disk");
    let export = Export {
        allow_any_host: true,
        ..Export::new("later", "Malloc9")
    };
    rig.services.exports.create(export).unwrap();
    let absent = rig.open(&mut client, "later", AccessMode::ReadWrite);
    assert_eq!(absent.unwrap_err(), Errno::NODEV);
    let malloc = MallocOptions {
        name: Some("Malloc9".to_owned()),
        num_blocks: 8,
        block_size: 512,
        ..MallocOptions::default()
    };
    let memory = Memory::new(MemoryConfig::default());
    MallocBdev::create(&rig.services.registry, &memory, malloc).unwrap();
    let opened = rig
        .open(&mut client, "later", AccessMode::ReadWrite)
        .unwrap();
    assert_eq!(opened.nsectors, 8);
}
