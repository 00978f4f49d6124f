use super::*;
use crate::testing::{Driver, Removed, Rig, flush, io, read, write};
use rnbd_mem::{Buffer, Span};

struct ErrorRig {
    rig: Rig,
    driver: Driver,
    buffer: Buffer,
}

impl ErrorRig {
    fn new() -> Self {
        let rig = Rig::new();
        rig.malloc("M0", 16);
        let options = ErrorOptions {
            base_name: "M0".to_owned(),
            uuid: None,
        };
        assert_eq!(ErrorBdev::create(&rig.registry, options).unwrap(), "EE_M0");
        let (_desc, driver) = rig.open("EE_M0", 4);
        let buffer = rig.buffer(512);
        Self {
            rig,
            driver,
            buffer,
        }
    }

    /// `inject` is the parameters of the RPC.
    fn inject(&self, inject: &str) -> Result<(), CreateError> {
        let error: InjectError = serde_json::from_str(inject).unwrap();
        let registry = &self.rig.registry;
        registry
            .find::<ErrorBdev, _>("EE_M0", |bdev| bdev.inject(&error))
            .unwrap()
    }

    fn resume(&self) {
        self.rig
            .registry
            .find::<ErrorBdev, _>("EE_M0", ErrorBdev::resume_pending)
            .unwrap();
    }

    fn block(&self) -> Span {
        self.buffer.span().slice(0, 512).unwrap()
    }

    fn read(&mut self, at: u64) -> Result<(), Errno> {
        let block = self.block();
        self.driver.run(&read(at, 1, block))
    }

    fn write(&mut self, at: u64, byte: u8) -> Result<(), Errno> {
        let block = self.block();
        block.fill(byte);
        self.driver.run(&write(at, 1, block))
    }

    fn byte(&self, at: usize) -> u8 {
        let mut byte = [0];
        self.block().read_at(at, &mut byte);
        byte[0]
    }
}

#[test]
fn as_many_fail_as_asked_and_only_of_that_kind() {
    let mut rig = ErrorRig::new();
    rig.inject(r#"{"io_type":"read","error_type":"failure","num":2}"#)
        .unwrap();
    rig.write(0, 1).unwrap();
    assert_eq!(rig.read(0), Err(Errno::IO));
    assert_eq!(rig.read(0), Err(Errno::IO));
    rig.read(0).unwrap();
    rig.inject(r#"{"io_type":"all","error_type":"nomem"}"#)
        .unwrap();
    assert_eq!(rig.driver.run(&flush()), Err(Errno::NOMEM));
    let unmap = io(IoOp::Unmap, 0, 1, Span::EMPTY);
    assert_eq!(rig.driver.run(&unmap), Err(Errno::NOMEM));
    rig.driver.run(&flush()).unwrap();
}

#[test]
fn a_queue_depth_is_waited_for() {
    let mut rig = ErrorRig::new();
    rig.inject(r#"{"io_type":"flush","error_type":"failure","queue_depth":2}"#)
        .unwrap();
    rig.driver.run(&flush()).unwrap();
    for _ in 0..3 {
        rig.driver.submit(&flush()).unwrap();
    }
    let failed = rig
        .driver
        .finish()
        .iter()
        .filter(|done| done.result.is_err())
        .count();
    assert_eq!(failed, 1);
}

#[test]
fn held_io_goes_on_when_resumed() {
    let mut rig = ErrorRig::new();
    rig.inject(r#"{"io_type":"write","error_type":"pending"}"#)
        .unwrap();
    rig.block().fill(9);
    let block = rig.block();
    rig.driver.submit(&write(3, 1, block)).unwrap();
    assert!(rig.driver.poll().is_empty());
    let looks_again = rig.driver.channel.next_deadline();
    assert_eq!(looks_again, Some(rig.driver.now + HELD_POLL_INTERVAL));
    rig.resume();
    assert_eq!(rig.driver.finish()[0].result, Ok(()));
    assert_eq!(rig.driver.channel.next_deadline(), None);
    rig.read(3).unwrap();
    assert_eq!(rig.byte(0), 9);
}

#[test]
fn clearing_ends_injections_and_fails_what_is_held() {
    let mut rig = ErrorRig::new();
    rig.inject(r#"{"io_type":"all","error_type":"pending","num":1}"#)
        .unwrap();
    rig.driver.submit(&flush()).unwrap();
    assert!(rig.driver.poll().is_empty());
    rig.inject(r#"{"io_type":"clear","error_type":"failure"}"#)
        .unwrap();
    assert_eq!(rig.driver.finish()[0].result, Err(Errno::IO));
    rig.read(0).unwrap();
}

#[test]
fn corrupted_reads_differ_in_one_byte_and_the_device_does_not() {
    let mut rig = ErrorRig::new();
    rig.write(5, 0x0f).unwrap();
    rig.inject(
        r#"{"io_type":"read","error_type":"corrupt_data","corrupt_offset":100,"corrupt_value":255}"#,
    )
    .unwrap();
    rig.read(5).unwrap();
    assert_eq!(
        [rig.byte(99), rig.byte(100), rig.byte(101)],
        [0x0f, 0xf0, 0x0f]
    );
    rig.read(5).unwrap();
    assert_eq!(rig.byte(100), 0x0f);
}

#[test]
fn corrupted_writes_reach_the_device_and_leave_the_buffer_whole() {
    let mut rig = ErrorRig::new();
    rig.inject(r#"{"io_type":"write","error_type":"corrupt_data"}"#)
        .unwrap();
    rig.write(5, 0x0f).unwrap();
    assert_eq!(rig.byte(0), 0x0f);
    rig.read(5).unwrap();
    assert_ne!(rig.byte(0), 0x0f);
    assert_eq!(rig.byte(1), 0x0f);
    let senseless = rig.inject(r#"{"io_type":"flush","error_type":"corrupt_data"}"#);
    assert_eq!(senseless.unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn the_base_is_claimed_and_given_back() {
    let ErrorRig { rig, driver, .. } = ErrorRig::new();
    let error = rig.registry.open("M0", true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bdev M0 is claimed by EE_M0 (exclusive_write)"
    );
    drop(driver);
    let removed = Removed::default();
    rig.registry.unregister("EE_M0", removed.catch()).unwrap();
    drop(removed.take());
    rig.registry.open("M0", true).unwrap();
}
