use super::*;
use crate::testing::{Driver, Rig, flush, read, write};
use rnbd_mem::Buffer;

struct DelayRig {
    rig: Rig,
    driver: Driver,
    buffer: Buffer,
}

fn options() -> DelayOptions {
    DelayOptions {
        name: "D0".to_owned(),
        base_bdev_name: "N0".to_owned(),
        avg_read_latency: 100,
        p99_read_latency: 900,
        avg_write_latency: 50,
        p99_write_latency: 60,
        uuid: None,
    }
}

impl DelayRig {
    fn new() -> Self {
        let rig = Rig::new();
        rig.null("N0", 16);
        DelayBdev::create(&rig.registry, options()).unwrap();
        let (_desc, driver) = rig.open("D0", 4);
        let buffer = rig.buffer(512);
        Self {
            rig,
            driver,
            buffer,
        }
    }

    /// How long an I/O takes.
    fn time(&mut self, io: &BdevIo) -> Nanos {
        let before = self.driver.now;
        self.driver.run(io).unwrap();
        self.driver.now - before
    }
}

#[test]
fn every_hundredth_takes_the_p99_latency_and_the_rest_the_average() {
    let mut rig = DelayRig::new();
    let block = rig.buffer.span().slice(0, 512).unwrap();
    for round in 1..=200 {
        let expected = if round % 100 == 0 { 900 } else { 100 };
        assert_eq!(
            rig.time(&read(0, 1, block)),
            Nanos::from_micros(expected),
            "{round}"
        );
    }
    assert_eq!(rig.time(&write(0, 1, block)), Nanos::from_micros(50));
    assert_eq!(rig.time(&flush()), Nanos::ZERO);
}

#[test]
fn nothing_ends_before_its_time_and_the_deadline_says_when() {
    let mut rig = DelayRig::new();
    let block = rig.buffer.span().slice(0, 512).unwrap();
    rig.driver.submit(&read(1, 1, block)).unwrap();
    rig.driver.submit(&write(2, 1, block)).unwrap();
    assert!(rig.driver.poll().is_empty());
    let start = rig.driver.now;
    let write_due = start + Nanos::from_micros(50);
    assert_eq!(rig.driver.channel.next_deadline(), Some(write_due));
    rig.driver.now = write_due - Nanos(1);
    assert!(rig.driver.poll().is_empty());
    rig.driver.now = write_due;
    assert_eq!(rig.driver.poll()[0].tag, 2);
    assert_eq!(
        rig.driver.channel.next_deadline(),
        Some(start + Nanos::from_micros(100))
    );
}

#[test]
fn changed_latencies_hold_at_once_and_are_saved() {
    let mut rig = DelayRig::new();
    let block = rig.buffer.span().slice(0, 512).unwrap();
    let slower = |bdev: &DelayBdev| bdev.update_latency(LatencyType::AvgRead, 777);
    rig.rig.registry.find::<DelayBdev, _>("D0", slower).unwrap();
    assert_eq!(rig.time(&read(0, 1, block)), Nanos::from_micros(777));
    assert!(rig.rig.saved().contains(r#""avg_read_latency":777"#));
}

#[test]
fn a_p99_below_the_average_is_refused() {
    let rig = Rig::new();
    rig.null("N0", 16);
    let options = DelayOptions {
        p99_write_latency: 49,
        ..options()
    };
    let error = DelayBdev::create(&rig.registry, options).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL);
    rig.registry.open("N0", true).unwrap();
}
