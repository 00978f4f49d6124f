//! What the log says of the end of a path, and how loud.

use std::cell::RefCell;

use log::{Level, LevelFilter, Log, Metadata, Record};
use rnbd_wire::rnbd::AccessMode;

use crate::client::Identity;
use crate::rig::{Options, Rig};

thread_local! {
    /// What this thread logged; every test has a thread of its own.
    static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Keeper;

impl Log for Keeper {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = (record.level(), record.args().to_string());
        LINES.with_borrow_mut(|lines| lines.push(line));
    }

    fn flush(&self) {}
}

/// How a path is said to close after its client opened a device and then closed, with or without
/// the device before.
fn farewell(closes_device: bool) -> (Level, String) {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.up(Identity::new("clt1", 1));
    let opened = rig.open(&mut client, "disk", AccessMode::ReadWrite);
    if closes_device {
        client.close(2, opened.unwrap().device_id);
        rig.expect(&mut client, Ok(()));
    }
    client.disconnect();
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    let lines = LINES.take();
    let mut of_path = lines.into_iter().filter(|line| line.1.contains("closes"));
    of_path.next().unwrap()
}

#[test]
fn only_a_client_that_closed_its_devices_goes_without_a_warning() {
    log::set_logger(&Keeper).unwrap();
    log::set_max_level(LevelFilter::Info);
    let text = "session clt1: path ip:10.0.0.2@ip:10.0.0.1 closes: closed by the client";
    assert_eq!(farewell(true), (Level::Info, text.to_owned()));
    assert_eq!(farewell(false), (Level::Warn, text.to_owned()));
}
