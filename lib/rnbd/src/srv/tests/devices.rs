//! Devices of a session, from OPEN to CLOSE.

use rnbd_base::Errno;
use rnbd_bdev::{Features, Geometry};
use rnbd_wire::Name;
use rnbd_wire::rnbd::{AccessMode, CachePolicy, Open};

use super::requests::{VIEW, flush_of};
use crate::srv::*;

fn open_msg(name: &str) -> Open {
    Open {
        access_mode: AccessMode::ReadWrite,
        dev_name: Name::new(name).unwrap(),
    }
}

fn ticket() -> Ticket {
    let exports = Exports::default();
    exports
        .create(Export {
            allow_any_host: true,
            ..Export::new("d", "b")
        })
        .unwrap();
    let request = OpenRequest {
        sessname: "s",
        client: "192.0.2.1".parse().unwrap(),
        dev_name: "d",
        mode: AccessMode::ReadOnly,
        device_id: 0,
    };
    match exports.open(&request) {
        Ok(Lookup::Granted(grant)) => grant.ticket,
        other => panic!("{other:?}"),
    }
}

pub(super) fn opened(session: &mut Session, name: &str) -> (usize, u32) {
    let StartOpen::New(place) = session.start_open(&open_msg(name)).unwrap() else {
        panic!("{name} is open already");
    };
    session.finish_open(place, ticket(), VIEW);
    (place, session.device(place).unwrap().id)
}

#[test]
fn the_first_device_is_0_and_opening_it_again_finds_it() {
    let mut session = Session::new(16);
    let (place, id) = opened(&mut session, "disk");
    assert_eq!(id, 0, "as Linux counts");
    let again = session.start_open(&open_msg("disk"));
    assert_eq!(again, Ok(StartOpen::Existing(place)));
    assert_eq!(opened(&mut session, "other").1, 1);
}

#[test]
fn a_closed_id_is_not_given_to_another_device() {
    let mut session = Session::new(16);
    let (place, old) = opened(&mut session, "disk");
    assert_eq!(session.close(old), Closing::Device(place));
    assert!(session.take_drained(place).is_some());
    let (same_place, new) = opened(&mut session, "other");
    assert_eq!(same_place, place);
    assert_ne!(new, old);
    let late = flush_of(&mut session, old);
    assert_eq!(late, Command::Answer(Err(Errno::NOTCONN)));
}

#[test]
fn close_waits_for_io_and_may_be_repeated() {
    let mut session = Session::new(16);
    let (place, id) = opened(&mut session, "disk");
    session.on_io_started(place);
    assert_eq!(session.close(id), Closing::Device(place));
    assert_eq!(session.close(id), Closing::Device(place));
    assert_eq!(session.take_drained(place), None);
    assert_eq!(
        flush_of(&mut session, id),
        Command::Answer(Err(Errno::NOTCONN))
    );
    assert!(session.on_io_done(place));
    assert!(session.take_drained(place).is_some());
    assert_eq!(session.close(id), Closing::Nothing, "unknown ids are fine");
}

#[test]
fn a_device_that_was_taken_away_keeps_its_id_until_the_client_lets_go() {
    let mut session = Session::new(16);
    let (place, id) = opened(&mut session, "disk");
    assert!(session.revoke(place));
    assert!(!session.revoke(place), "once");
    assert!(session.take_drained(place).is_some());
    assert_eq!(
        flush_of(&mut session, id),
        Command::Answer(Err(Errno::NOTCONN))
    );
    assert_ne!(opened(&mut session, "other").0, place);

    let (same_place, same_id) = opened(&mut session, "disk");
    assert_eq!((same_place, same_id), (place, id), "remapped");
    assert!(session.revoke(place));
    assert!(session.take_drained(place).is_some());
    assert_eq!(session.close(id), Closing::Nothing);
    assert!(session.device(place).is_none());
}

#[test]
fn a_session_opens_as_many_devices_as_allowed() {
    let mut session = Session::new(1);
    opened(&mut session, "one");
    assert_eq!(session.start_open(&open_msg("two")), Err(Errno::NOSPC));
}

#[test]
fn a_device_that_fails_to_open_leaves_nothing() {
    let mut session = Session::new(1);
    assert!(matches!(
        session.start_open(&open_msg("one")),
        Ok(StartOpen::New(0))
    ));
    assert_eq!(session.start_open(&open_msg("one")), Ok(StartOpen::Later));
    session.fail_open(0);
    assert_eq!(session.devices().count(), 0);
    opened(&mut session, "two");
}

#[test]
fn an_id_stays_reserved_when_its_device_cannot_be_opened_again() {
    let mut session = Session::new(4);
    let (place, id) = opened(&mut session, "disk");
    session.revoke(place);
    session.take_drained(place);
    for _ in 0..2 {
        let again = session.start_open(&open_msg("disk"));
        assert_eq!(again, Ok(StartOpen::New(place)));
        session.fail_open(place);
        assert_eq!(session.device(place).unwrap().state, DeviceState::Reserved);
    }
    assert_eq!(opened(&mut session, "disk"), (place, id));
}

#[test]
fn the_end_of_the_session_closes_all() {
    let mut session = Session::new(4);
    opened(&mut session, "one");
    opened(&mut session, "two");
    session.close_all();
    assert!(session.take_drained(0).is_some() && session.take_drained(1).is_some());
    assert_eq!(session.devices().count(), 0);
}

const DISK: Geometry = Geometry {
    block_size: 512,
    physical_block_size: 4096,
    num_blocks: 2 << 20,
};

#[test]
fn an_opener_is_told_what_the_vector_says() {
    let features = Features {
        write_cache: true,
        unmap_granularity: 4096,
        ..Features::default()
    };
    let (rsp, view) = describe(0, DISK, &features, &ExportView::default(), 126_976).unwrap();
    assert_eq!(
        (rsp.nsectors, rsp.max_discard_sectors),
        (0x0020_0000, 8_388_607)
    );
    assert_eq!(rsp.max_write_zeroes_sectors, 8_388_607);
    assert_eq!(
        (rsp.logical_block_size, rsp.physical_block_size),
        (512, 4096)
    );
    assert_eq!((rsp.discard_granularity, rsp.discard_alignment), (4096, 0));
    assert_eq!(rsp.cache_policy, CachePolicy::FUA | CachePolicy::WRITE_BACK);
    assert_eq!((rsp.secure_discard, rsp.rotational), (0, 0));
    assert_eq!(view.num_blocks, 2 << 20);
}

#[test]
fn a_read_only_opener_is_offered_no_changes() {
    let export = ExportView {
        read_only: true,
        ..ExportView::default()
    };
    let (rsp, view) = describe(0, DISK, &Features::default(), &export, 126_976).unwrap();
    assert_eq!(
        (rsp.max_discard_sectors, rsp.max_write_zeroes_sectors),
        (0, 0)
    );
    assert!(view.read_only);
}

#[test]
fn blocks_that_clients_cannot_use_are_not_offered() {
    for block_size in [0, 256, 520, 8192] {
        let geometry = Geometry { block_size, ..DISK };
        let described = describe(
            0,
            geometry,
            &Features::default(),
            &ExportView::default(),
            4096,
        );
        assert_eq!(described.unwrap_err(), Errno::INVAL, "{block_size}");
    }
}
