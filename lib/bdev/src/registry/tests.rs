use std::sync::atomic::{AtomicUsize, Ordering};

use rnbd_base::CoreIndex;

use super::*;
use crate::testing::{Removed, Rig, read};
use crate::{DelayBdev, DelayOptions, IoKind, NullBdev, NullOptions};

fn delay(name: &str, base: &str) -> DelayOptions {
    DelayOptions {
        name: name.to_owned(),
        base_bdev_name: base.to_owned(),
        ..DelayOptions::default()
    }
}

#[test]
fn names_and_uuids_are_unique() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let uuid = rig.registry.get("N0").unwrap().bdev.uuid();
    let again = |name: &str, uuid| NullOptions {
        name: name.to_owned(),
        num_blocks: 8,
        block_size: 512,
        uuid,
        ..NullOptions::default()
    };
    let same_name = NullBdev::create(&rig.registry, again("N0", None)).unwrap_err();
    assert_eq!(same_name.errno(), Errno::EXIST);
    let same_uuid = NullBdev::create(&rig.registry, again("N1", Some(uuid))).unwrap_err();
    assert_eq!(same_uuid.errno(), Errno::EXIST);
    let uuid_as_name = NullBdev::create(&rig.registry, again(&uuid.to_string(), None));
    assert_eq!(uuid_as_name.unwrap_err().errno(), Errno::EXIST);
}

#[test]
fn a_device_refused_for_its_name_gives_its_base_back() {
    let rig = Rig::new();
    rig.null("N0", 8);
    rig.null("N1", 8);
    let error = DelayBdev::create(&rig.registry, delay("N1", "N0")).unwrap_err();
    assert_eq!(error.errno(), Errno::EXIST);
    rig.registry.open("N0", true).unwrap();
}

#[test]
fn devices_are_found_by_name_uuid_and_module() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let uuid = rig.registry.get("N0").unwrap().bdev.uuid().to_string();
    assert_eq!(rig.registry.open(&uuid, false).unwrap().bdev().name(), "N0");
    assert!(rig.registry.find::<NullBdev, _>("N0", |_| ()).is_ok());
    let other = rig.registry.find::<DelayBdev, _>("N0", |_| ()).unwrap_err();
    assert_eq!(other.to_string(), "bdev N0 is a Null disk");
    assert_eq!(other.errno(), Errno::NODEV);
    assert_eq!(rig.registry.free_name("N"), "N1");
}

#[test]
fn removal_waits_for_the_last_holder_and_hands_over_the_last_reference() {
    let rig = Rig::new();
    rig.malloc("M0", 8);
    let (desc, driver) = rig.open("M0", 1);
    let removed = Removed::default();
    rig.registry.unregister("M0", removed.catch()).unwrap();
    assert!(desc.is_removed());
    assert_eq!(
        rig.registry.open("M0", false).unwrap_err().errno(),
        Errno::NODEV
    );
    let twice = rig.registry.unregister("M0", removed.catch()).unwrap_err();
    assert_eq!(twice.errno(), Errno::BUSY);
    drop(desc);
    assert!(removed.take().is_empty());
    drop(driver);
    let bdevs = removed.take();
    assert_eq!(bdevs.len(), 1);
    assert_eq!(Arc::strong_count(&bdevs[0]), 1);
    assert!(rig.registry.list().is_empty());
    rig.malloc("M0", 8);
}

#[test]
fn a_removed_device_takes_no_new_io_but_ends_the_old() {
    let rig = Rig::new();
    rig.malloc("M0", 8);
    let (_desc, mut driver) = rig.open("M0", 2);
    let buffer = rig.buffer(512);
    let span = buffer.span().slice(0, 512).unwrap();
    driver.submit(&read(0, 1, span)).unwrap();
    rig.registry.unregister("M0", Box::new(drop)).unwrap();
    assert_eq!(driver.submit(&read(1, 1, span)), Err(Errno::NODEV));
    assert_eq!(driver.finish().len(), 1);
}

#[test]
fn a_device_goes_and_grows_with_its_base() {
    let rig = Rig::new();
    rig.null("N0", 2048);
    DelayBdev::create(&rig.registry, delay("D0", "N0")).unwrap();
    DelayBdev::create(&rig.registry, delay("D1", "D0")).unwrap();
    let desc = rig.registry.open("D1", true).unwrap();
    let before = desc.resize_generation();
    rig.registry
        .find::<NullBdev, _>("N0", |null| null.resize(2))
        .unwrap()
        .unwrap();
    rig.registry.notify_resized("N0").unwrap();
    assert_ne!(desc.resize_generation(), before);
    assert_eq!(desc.geometry().num_blocks, 4096);

    let removed = Removed::default();
    rig.registry.unregister("N0", removed.catch()).unwrap();
    assert!(desc.is_removed());
    assert!(removed.take().is_empty());
    drop(desc);
    assert_eq!(removed.take().len(), 1);
    assert!(rig.registry.list().is_empty());
}

#[test]
fn a_claim_keeps_other_writers_out_and_names_the_claimer() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let mut desc = rig.registry.open("N0", true).unwrap();
    desc.claim(ClaimType::ReadManyWriteOne, "export disk1")
        .unwrap();
    let refused = rig.registry.open("N0", true).unwrap_err();
    assert_eq!(refused.errno(), Errno::PERM);
    assert_eq!(
        refused.to_string(),
        "bdev N0 is claimed by export disk1 (read_many_write_one)"
    );
    let mut reader = rig.registry.open("N0", false).unwrap();
    assert!(
        reader
            .claim(ClaimType::ReadManyWriteNone, "reader")
            .is_err()
    );
    let info = rig.registry.get("N0").unwrap();
    assert_eq!((info.descriptors, info.writers), (2, 1));
    assert_eq!(info.to_json()["claim_type"], "read_many_write_one");
    drop(desc);
    assert!(rig.registry.get("N0").unwrap().claim.is_none());
    rig.registry.open("N0", true).unwrap();
}

#[test]
fn a_claim_is_refused_while_others_may_write() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let _writer = rig.registry.open("N0", true).unwrap();
    let mut desc = rig.registry.open("N0", false).unwrap();
    for claim_type in [ClaimType::ExclusiveWrite, ClaimType::ReadManyWriteNone] {
        let error = desc.claim(claim_type, "second").unwrap_err();
        assert_eq!(error.errno(), Errno::PERM);
    }
}

#[test]
fn writers_share_a_claim_with_the_same_key_only() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let mut descs: Vec<Desc> = (0..3)
        .map(|_| rig.registry.open("N0", false).unwrap())
        .collect();
    descs[0]
        .claim(ClaimType::ReadManyWriteShared { key: 7 }, "a")
        .unwrap();
    descs[1]
        .claim(ClaimType::ReadManyWriteShared { key: 7 }, "b")
        .unwrap();
    assert!(descs[1].may_write());
    let other = descs[2]
        .claim(ClaimType::ReadManyWriteShared { key: 8 }, "c")
        .unwrap_err();
    assert!(other.to_string().contains("claimed by a, b"), "{other}");
    assert!(!descs[2].may_write());
    assert!(rig.registry.open("N0", true).is_err());
}

#[test]
fn waiting_for_a_name_ends_once_or_is_cancelled() {
    let rig = Rig::new();
    let arrivals = Arc::new(AtomicUsize::new(0));
    let count = || {
        let arrivals = Arc::clone(&arrivals);
        Box::new(move || {
            arrivals.fetch_add(1, Ordering::Relaxed);
        })
    };
    let waits = [
        rig.registry.wait_for("N0", count()),
        rig.registry.wait_for("N0", count()),
    ];
    assert!(rig.registry.cancel_wait(waits[0]));
    rig.null("N1", 8);
    assert_eq!(arrivals.load(Ordering::Relaxed), 0);
    rig.null("N0", 8);
    assert_eq!(arrivals.load(Ordering::Relaxed), 1);
    assert!(!rig.registry.cancel_wait(waits[1]));
    rig.registry.wait_for("N0", count());
    assert_eq!(arrivals.load(Ordering::Relaxed), 2);
}

#[test]
fn subscribers_hear_of_coming_growing_and_going() {
    let rig = Rig::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    rig.registry.subscribe(move |event| {
        let line = format!("{} {}", event.kind.notification_type(), event.name);
        sink.lock().unwrap().push(line);
    });
    rig.null("N0", 8);
    rig.registry.notify_resized("N0").unwrap();
    let desc = rig.registry.open("N0", false).unwrap();
    rig.registry.unregister("N0", Box::new(drop)).unwrap();
    assert_eq!(
        *heard.lock().unwrap(),
        ["bdev_register N0", "bdev_resize N0"]
    );
    drop(desc);
    assert_eq!(heard.lock().unwrap().last().unwrap(), "bdev_unregister N0");
}

#[test]
fn statistics_survive_their_channels_and_can_be_reset() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let (desc, mut driver) = rig.open("N0", 1);
    let buffer = rig.buffer(1024);
    let span = buffer.span().slice(0, 1024).unwrap();
    driver.submit(&read(0, 2, span)).unwrap();
    driver.now += rnbd_base::Nanos(250);
    driver.finish();
    let stats = rig.registry.stats("N0").unwrap();
    assert_eq!(stats.channels[0].core, CoreIndex(0));
    assert_eq!(stats.channels[0].stats, stats.total);
    drop(driver);
    let stats = rig.registry.stats("N0").unwrap();
    let reads = stats.total.kind(IoKind::Read);
    assert!(stats.channels.is_empty());
    assert_eq!((reads.ops, reads.bytes, reads.latency_ns), (1, 1024, 250));
    assert_eq!((reads.min_latency_ns, reads.max_latency_ns), (250, 250));

    let channel = desc.open_channel(CoreIndex(1), 1).unwrap();
    rig.registry.reset_stats("N0", ResetMode::MaxMin).unwrap();
    let reads = rig.registry.stats("N0").unwrap().total.kind(IoKind::Read);
    assert_eq!((reads.ops, reads.max_latency_ns), (1, 0));
    rig.registry.reset_stats("N0", ResetMode::All).unwrap();
    let reads = rig.registry.stats("N0").unwrap().total.kind(IoKind::Read);
    assert_eq!((reads.ops, reads.bytes, reads.latency_ns), (0, 0, 0));
    drop(channel);
}

#[test]
fn a_histogram_counts_open_and_closed_channels() {
    let rig = Rig::new();
    rig.null("N0", 8);
    let (_desc, mut driver) = rig.open("N0", 1);
    let (_other, mut other) = rig.open("N0", 1);
    assert_eq!(rig.registry.histogram("N0").unwrap(), None);
    rig.registry
        .set_histogram("N0", Some(HistogramOptions::default()))
        .unwrap();
    let buffer = rig.buffer(512);
    let span = buffer.span().slice(0, 512).unwrap();
    driver.run(&read(0, 1, span)).unwrap();
    other.run(&read(0, 1, span)).unwrap();
    drop(other);
    let histogram = rig.registry.histogram("N0").unwrap().unwrap();
    assert_eq!(histogram.buckets.iter().sum::<u64>(), 2);
    rig.registry.set_histogram("N0", None).unwrap();
    assert_eq!(rig.registry.histogram("N0").unwrap(), None);
}
