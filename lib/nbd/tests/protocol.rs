//! Requests, good and bad, as raw bytes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rnbd_base::{Nanos, Poll};
use rnbd_bdev::{
    ErrorBdev, ErrorOptions, ErrorType, InjectError, InjectIoType, NullBdev, NullOptions,
};
use rnbd_nbd::{Address, EndReason, ExportOptions, NbdError};
use support::{
    DF, DISCONNECT, DISK_BYTES, Export, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, Setup, TRIM, WRITE,
    WRITE_ZEROES, option, pattern, request,
};

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

#[test]
fn bad_requests_are_refused_by_number_and_good_ones_still_served() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    let refusals = [
        (0, READ, 1, 512, EINVAL),
        (0, READ, 0, 511, EINVAL),
        (0, READ, 0, 0, EINVAL),
        (0, READ, DISK_BYTES, 512, EINVAL),
        (0, READ, u64::MAX - 511, 512, EINVAL),
        (0, READ, 0, (32 << 20) + 512, EINVAL),
        (0, WRITE_ZEROES, DISK_BYTES - 512, 1024, ENOSPC),
        (0, TRIM, DISK_BYTES, 512, EINVAL),
        (FAST_ZERO, WRITE_ZEROES, 0, 512, EINVAL),
        (NO_HOLE, READ, 0, 512, EINVAL),
        (DF, READ, 0, 512, EINVAL),
        (0, 5, 0, 512, EINVAL),
        (0, 7, 0, 512, EINVAL),
        (0, 77, 0, 512, EINVAL),
    ];
    for (flags, command, offset, length, error) in refusals {
        let got = client.simple(flags, command, offset, length);
        assert_eq!(
            got, error,
            "flags {flags} command {command} at {offset}+{length}"
        );
    }
    assert_eq!(client.write(0, DISK_BYTES, &[1; 512]), ENOSPC);
    assert_eq!(client.write(0, 1, &[1; 512]), EINVAL);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn the_payload_of_a_refused_write_is_skipped_even_if_it_is_too_large() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    assert_eq!(client.write(0, 0, &vec![1; (32 << 20) + 512]), EINVAL);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn the_largest_payload_goes_both_ways() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    let data = pattern(3, 32 << 20);
    assert_eq!(client.write(FUA, 4096, &data), 0);
    assert!(client.read(4096, 32 << 20) == Ok(data));
}

#[test]
fn structured_reads_come_in_one_chunk_and_errors_as_one() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(true);
    let data = pattern(9, 8192);
    assert_eq!(client.write(0, 512, &data), 0);
    for flags in [0, DF, DF | FUA] {
        client.send(&request(flags, READ, 5, 512, 8192));
        let header = client.take(28);
        assert_eq!(header[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(header[16..20], 8200_u32.to_be_bytes());
        assert_eq!(header[20..], 512_u64.to_be_bytes());
        assert_eq!(client.take(8192), data);
    }
    client.send(&request(0, READ, 6, 1, 512));
    let error = client.take(26);
    assert_eq!(error[4..8], [0, 1, 0x80, 1]);
    assert_eq!(error[20..24], EINVAL.to_be_bytes());
}

#[test]
fn trim_and_zeroes_with_fua_are_answered_once() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    assert_eq!(client.write(0, 0, &[7; 4096]), 0);
    assert_eq!(client.simple(FUA, TRIM, 0, 1024), 0);
    assert_eq!(client.simple(FUA | NO_HOLE, WRITE_ZEROES, 1024, 1024), 0);
    assert_eq!(client.simple(FUA, FLUSH, 0, 0), 0);
    let expected = [vec![0; 2048], vec![7; 2048]].concat();
    assert_eq!(client.read(0, 4096), Ok(expected));
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let setup = Setup::new();
    let export = setup.export(ExportOptions {
        read_only: true,
        ..setup.options("Malloc0")
    });
    let mut client = export.client(false);
    assert_eq!(client.write(0, 0, &[7; 512]), EPERM);
    assert_eq!(client.simple(0, TRIM, 0, 512), EPERM);
    assert_eq!(client.simple(0, WRITE_ZEROES, 0, 512), EPERM);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    assert_eq!(client.simple(0, FLUSH, 0, 0), 0);
}

#[test]
fn errors_of_the_device_reach_the_client() {
    let setup = Setup::new();
    let export = failing_export(&setup, ErrorType::Failure);
    let mut client = export.client(false);
    assert_eq!(client.read(0, 512), Err(EIO));
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

/// An export whose next read meets `error_type`.
fn failing_export(setup: &Setup, error_type: ErrorType) -> Export {
    let options = ErrorOptions {
        base_name: "Malloc0".to_owned(),
        ..ErrorOptions::default()
    };
    let name = ErrorBdev::create(&setup.bdevs, options).unwrap();
    let error = InjectError {
        io_type: InjectIoType::Read,
        error_type,
        num: 1,
        queue_depth: 0,
        corrupt_offset: 0,
        corrupt_value: 0,
    };
    let inject = |bdev: &ErrorBdev| bdev.inject(&error);
    setup
        .bdevs
        .find::<ErrorBdev, _>(&name, inject)
        .unwrap()
        .unwrap();
    setup.export(setup.options(&name))
}

#[test]
fn strangers_are_dropped_and_harm_nobody() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        pattern(1, 100_000),
        vec![0; 4096],
        [&[0, 0, 0, 3][..], &option(1, b"no such export")].concat(),
    ] {
        let mut stranger = export.stranger();
        // The server may close before it has read all of it.
        let _ = std::io::Write::write_all(&mut stranger.stream, &bytes);
        assert!(stranger.is_closed());
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    let mut confused = export.client(false);
    confused.send(&[0x42; 28]);
    assert!(confused.is_closed());
    assert_eq!(client.write(0, 0, &[1; 512]), 0);
}

#[test]
fn a_client_that_vanishes_in_a_write_leaves_the_disk_as_it_was() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut other = export.client(false);
    for sent in [0, 1, 4096, 65536, 200_000] {
        let mut client = export.client(false);
        client.send(&request(0, WRITE, 1, 0, 1 << 20));
        client.send(&vec![0xee; sent]);
        drop(client);
        assert_eq!(other.read(0, 1024), Ok(vec![0; 1024]));
    }
}

#[test]
fn a_place_is_not_given_away_before_the_device_has_let_go_of_its_memory() {
    let setup = Setup::new();
    let export = failing_export(&setup, ErrorType::Pending);
    let mut gone = export.client(false);
    gone.send(&request(0, READ, 1, 0, 4096));
    gone.stream.shutdown(Shutdown::Both).unwrap();
    // The memory that the device still owns would be the first that the next client writes from.
    let mut next = export.client(false);
    let data = pattern(5, 4096);
    next.send(&request(0, WRITE, 2, 8192, 4096));
    next.send(&data[..2048]);
    let resume = |bdev: &ErrorBdev| bdev.resume_pending();
    setup
        .bdevs
        .find::<ErrorBdev, _>("EE_Malloc0", resume)
        .unwrap();
    assert_eq!(export.client(false).read(0, 512), Ok(vec![0; 512]));
    next.send(&data[2048..]);
    assert_eq!(next.simple_reply(2), 0);
    assert_eq!(next.read(8192, 4096), Ok(data));
}

#[test]
fn a_client_that_does_not_read_its_replies_blocks_only_itself() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let data = pattern(11, 1 << 20);
    let mut other = export.client(false);
    assert_eq!(other.write(0, 0, &data), 0);
    let mut slow = export.client(false);
    let reads = 500;
    for cookie in 0..reads {
        slow.send(&request(0, READ, cookie, 0, 1 << 20));
    }
    assert_eq!(other.read(0, 1 << 20).as_ref(), Ok(&data));
    for cookie in 0..reads {
        assert_eq!(slow.simple_reply(cookie), 0);
        assert!(slow.take(1 << 20) == data);
    }
}

#[test]
fn a_removed_device_ends_the_export_after_telling_its_clients() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    let (tx, removed) = std::sync::mpsc::channel();
    let on_removed = Box::new(move |_| tx.send(()).unwrap());
    setup.bdevs.unregister("Malloc0", on_removed).unwrap();
    assert_eq!(client.read(0, 512), Err(ESHUTDOWN));
    assert!(client.is_closed());
    assert_eq!(export.ended.recv(), Ok(EndReason::DeviceRemoved));
    removed.recv().unwrap();
    assert!(!setup.path("Malloc0.sock").exists());
}

#[test]
fn a_removed_device_is_kept_until_what_it_lends_has_been_sent() {
    let setup = Setup::new();
    let content = pattern(7, 16 << 20);
    let disk = setup.bdevs.get("Malloc0").unwrap().bdev;
    disk.memory().unwrap().write_at(0, &content);
    drop(disk);
    let (mut server, _handle, _ended) = setup.server(setup.options("Malloc0"));
    let mut stream = UnixStream::connect(setup.path("Malloc0.sock")).unwrap();
    let mut poll = || (0..100).for_each(|_| _ = server.poll(Nanos(1)));
    poll();
    stream.read_exact(&mut [0; 18]).unwrap();
    let asked = [
        3_u32.to_be_bytes().to_vec(),
        option(1, b""),
        request(0, READ, 1, 0, 16 << 20),
    ];
    stream.write_all(&asked.concat()).unwrap();
    poll();

    let (tx, removed) = std::sync::mpsc::channel();
    let on_removed = Box::new(move |_| tx.send(()).unwrap());
    setup.bdevs.unregister("Malloc0", on_removed).unwrap();
    poll();
    assert!(removed.try_recv().is_err(), "16 MiB do not fit a socket");
    stream.set_nonblocking(true).unwrap();
    let mut reply = vec![0; 10 + 16 + (16 << 20)];
    let mut got = 0;
    while got < reply.len() {
        poll();
        got += stream.read(&mut reply[got..]).unwrap();
    }
    assert!(reply[26..] == content, "other bytes than the disk's");
    poll();
    removed.try_recv().unwrap();
}

#[test]
fn a_stopped_export_answers_what_it_has_and_lets_go() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.client(false);
    let mut silent = export.stranger();
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    export.handle.stop();
    assert_eq!(export.ended.recv(), Ok(EndReason::Stopped));
    assert!(client.is_closed() && silent.is_closed());
    assert!(!setup.path("Malloc0.sock").exists());
    assert_eq!(setup.bdevs.get("Malloc0").unwrap().descriptors, 0);
}

#[test]
fn new_clients_see_the_new_size() {
    let setup = Setup::new();
    let options = NullOptions {
        name: "Null0".to_owned(),
        num_blocks: 256,
        block_size: 4096,
        ..NullOptions::default()
    };
    NullBdev::create(&setup.bdevs, options).unwrap();
    let export = setup.export(setup.options("Null0"));
    assert_eq!(export.stranger().enter(false).0, 1 << 20);
    let grow = |bdev: &NullBdev| bdev.resize(2);
    setup
        .bdevs
        .find::<NullBdev, _>("Null0", grow)
        .unwrap()
        .unwrap();
    setup.bdevs.notify_resized("Null0").unwrap();
    assert_eq!(export.stranger().enter(false).0, 2 << 20);
}

#[test]
fn no_more_clients_are_taken_than_allowed_until_one_leaves() {
    let setup = Setup::new();
    let export = setup.export(ExportOptions {
        max_connections: 1,
        ..setup.options("Malloc0")
    });
    let mut first = export.client(false);
    assert!(export.stranger().is_closed());
    first.send(&request(0, DISCONNECT, 1, 0, 0));
    assert!(first.is_closed());
    assert_eq!(export.client(false).read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn one_byte_at_a_time_is_as_good_as_all_at_once() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let mut client = export.stranger();
    client.take(18);
    let data = pattern(2, 512);
    let until_written = [
        &[0, 0, 0, 3][..],
        &option(1, b"Malloc0"),
        &request(0, WRITE, 1, 512, 512),
        &data,
    ];
    let until_end = [
        request(0, READ, 2, 512, 512),
        request(0, DISCONNECT, 3, 0, 0),
    ];
    client.send_bytewise(&until_written.concat());
    client.take(10);
    assert_eq!(client.simple_reply(1), 0);
    client.send_bytewise(&until_end.concat());
    assert_eq!(client.simple_reply(2), 0);
    assert_eq!(client.take(512), data);
    assert!(client.is_closed());
}

#[test]
fn what_cannot_be_exported_is_refused_with_its_reason() {
    let setup = Setup::new();
    let (_server, handle, _ended) = setup.server(setup.options("Malloc0"));
    let start = |options| {
        let (core, wake) = (
            rnbd_base::CoreIndex(0),
            std::sync::Arc::new(rnbd_base::NoWake),
        );
        let on_end = Box::new(|_| ());
        rnbd_nbd::NbdExport::start(&setup.bdevs, &setup.memory, core, wake, options, on_end)
            .map(|_| ())
            .unwrap_err()
    };
    let used = start(setup.options("Malloc0"));
    assert!(matches!(used, NbdError::InUse { .. }), "{used}");
    assert!(
        used.to_string().contains("Malloc0.sock is in use"),
        "{used}"
    );
    let missing = start(setup.options("Malloc7"));
    assert_eq!(missing.errno(), rnbd_base::Errno::NODEV, "{missing}");
    let nowhere = Address::Unix("/no/such/directory/a.sock".into());
    let unreachable = start(ExportOptions::new("Malloc0", nowhere));
    assert_eq!(
        unreachable.errno(),
        rnbd_base::Errno::NOENT,
        "{unreachable}"
    );
    assert_eq!(handle.connections(), 0);
}
