//! Data goes where it belongs, in both modes and on every fabric.

use std::sync::Arc;

use rnbd_base::Errno;
use rnbd_bdev::{NullBdev, NullOptions};
use rnbd_fabric::sim::{Device, FaultPlan};
use rnbd_proto::srv::Export;
use rnbd_wire::rnbd::{AccessMode, IoFlags, Op};

use crate::client::{Client, Identity, Image, io};
use crate::rig::{BLOCK, BLOCKS, DEPTH, Loopback, Options, Rig, Sim, World, new_rkey};

/// Of a disk that is memory, a large answer is not copied on its way: the client sees what was
/// written after the target was done with its read.
#[test]
fn large_reads_are_lent_to_the_socket() {
    const BYTES: usize = 64 << 10;
    let mut options = Options::default();
    options.rtrs.chunk_bytes = 128 << 10;
    let mut rig = Rig::new(Loopback::new(), options);
    let (mut client, id) = rig.up_with("disk");
    client.read(1, 0, BYTES, &io(id, Op::Read, 0, BYTES).to_bytes());
    client.poll(rig.now);
    let posted = rig.stats()[0].fabric.send_wrs;
    rig.steps(1000, &mut []);
    assert!(rig.stats()[0].fabric.send_wrs > posted, "no answer yet");
    let desc = rig.services.registry.open("Malloc0", true).unwrap();
    desc.bdev().memory().unwrap().fill(9);
    rig.expect(&mut client, Ok(()));
    assert!(client.data(0, BYTES) == vec![9; BYTES], "it was copied");
}

/// Random writes and reads over all connections and chunks against a model of the disk.
fn data_is_kept<W: World>(world: W, options: Options) {
    let mut rig = Rig::new(world, options);
    let (mut client, id) = rig.up_with("disk");
    let mut model = vec![0_u8; usize::try_from(BLOCKS).unwrap() * BLOCK];
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..100 {
        let mut ranges = Vec::new();
        for msg_id in 0..DEPTH {
            // Each chunk has its own part of the disk, so that order does not matter.
            let blocks = random.usize(1..16);
            let block = usize::from(msg_id) * 256 + random.usize(0..256 - blocks);
            let (start, len) = (block * BLOCK, blocks * BLOCK);
            let cid = random.usize(0..3);
            let message = |op| io(id, op, block as u64, len).to_bytes();
            if round % 2 == 0 {
                random.fill(&mut model[start..start + len]);
                client.write(cid, msg_id, &model[start..start + len], &message(Op::Write));
            } else {
                client.read(cid, msg_id, len, &message(Op::Read));
            }
            ranges.push((cid, start, len));
        }
        rig.run(&mut client, |client| {
            client.answers.len() == usize::from(DEPTH)
        });
        for answer in std::mem::take(&mut client.answers) {
            let (cid, start, len) = ranges[answer.msg_id as usize];
            assert_eq!((answer.status, answer.cid), (Ok(()), cid));
            if round % 2 == 1 {
                let data = client.data(u16::try_from(answer.msg_id).unwrap(), len);
                assert!(
                    data == model[start..start + len],
                    "round {round} at {start}"
                );
            }
        }
    }
    let session = &rig.sessions()[0];
    let device = &session.devices[0].counters;
    assert_eq!((device.reads.ops, device.writes.ops), (400, 400));
    assert_eq!(session.inflight, 0);
}

#[test]
fn data_is_kept_in_plain_mode() {
    data_is_kept(Sim::new(FaultPlan::default()), Options::default());
}

#[test]
fn data_is_kept_with_new_rkeys() {
    data_is_kept(Sim::new(FaultPlan::default()), new_rkey());
}

#[test]
fn data_is_kept_where_local_bytes_need_keys() {
    let plan = FaultPlan {
        device: Device::HARDWARE,
        ..FaultPlan::default()
    };
    data_is_kept(Sim::new(plan.clone()), Options::default());
    data_is_kept(Sim::new(plan), new_rkey());
}

#[test]
fn data_is_kept_over_tcp() {
    data_is_kept(Loopback::new(), Options::default());
    data_is_kept(Loopback::new(), new_rkey());
}

fn keys_are_invalidated_as_asked(options: Options) {
    let mut rig = Rig::sim(options);
    let (mut client, id) = rig.up_with("disk");
    let good = io(id, Op::Read, 8, BLOCK).to_bytes();
    let beyond = io(id, Op::Read, BLOCKS, BLOCK).to_bytes();
    for (message, status) in [(good, Ok(())), (beyond, Err(Errno::IO))] {
        let rkey = client.read_with_window(1, 3, BLOCK, &message);
        let answer = rig.answer(&mut client);
        assert_eq!((answer.status, answer.invalidated), (status, vec![rkey]));
    }
}

#[test]
fn a_client_key_is_invalidated_before_the_answer() {
    keys_are_invalidated_as_asked(Options::default());
    keys_are_invalidated_as_asked(new_rkey());
}

/// A session with `disk` open.
fn disk(options: Options, mode: AccessMode) -> (Rig<Sim>, Client<<Sim as World>::Fabric>, u32) {
    let mut rig = Rig::sim(options);
    let mut client = rig.up(Identity::new("clt1", 1));
    let id = rig.open(&mut client, "disk", mode).unwrap().device_id;
    (rig, client, id)
}

#[test]
fn a_vector_of_a_kernel_client_is_served_byte_for_byte() {
    let (mut rig, mut client, id) = disk(Options::default(), AccessMode::ReadWrite);
    assert_eq!(id, 0, "the vectors' device");
    // Vector wire_flush: chunk image and header offset.
    let mut bytes = vec![4, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([0xff; 8]);
    bytes.extend([2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([3, 0, 0x20, 0, 0, 0, 0, 0]);
    let flush = Image {
        at: 0,
        bytes,
        header_at: 32,
    };
    client.post_image(1, 7, &flush);
    rig.expect(&mut client, Ok(()));
    // Vector wire_close.
    let close = Image {
        at: 0,
        bytes: vec![5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 8, 0],
        header_at: 8,
    };
    client.post_image(0, 2, &close);
    rig.expect(&mut client, Ok(()));
    assert!(rig.sessions()[0].devices.is_empty());
}

#[test]
fn every_operation_does_what_it_says() {
    let (mut rig, mut client, id) = disk(Options::default(), AccessMode::ReadWrite);
    let data = [0x5a; 4 * BLOCK];
    let mut write = io(id, Op::Write, 8, data.len());
    write.flags = IoFlags::FUA | IoFlags::PREFLUSH;
    client.write(1, 0, &data, &write.to_bytes());
    rig.expect(&mut client, Ok(()));
    client.write(1, 0, &[], &io(id, Op::WriteZeroes, 9, BLOCK).to_bytes());
    rig.expect(&mut client, Ok(()));
    client.write(1, 0, &[], &io(id, Op::Discard, 10, BLOCK).to_bytes());
    rig.expect(&mut client, Ok(()));
    client.write(1, 0, &[], &io(id, Op::Flush, 0, 0).to_bytes());
    rig.expect(&mut client, Ok(()));
    client.read(1, 0, 4 * BLOCK, &io(id, Op::Read, 8, 4 * BLOCK).to_bytes());
    rig.expect(&mut client, Ok(()));
    let read = client.data(0, 4 * BLOCK);
    assert_eq!(read[..BLOCK], data[..BLOCK]);
    assert_eq!(read[BLOCK..2 * BLOCK], [0; BLOCK]);
    assert_eq!(read[3 * BLOCK..], data[..BLOCK]);
    client.write(1, 0, &[], &io(id, Op::SecureErase, 8, BLOCK).to_bytes());
    rig.expect(&mut client, Err(Errno::OPNOTSUPP));
}

#[test]
fn a_read_only_opener_cannot_change_anything() {
    let (mut rig, mut client, id) = disk(Options::default(), AccessMode::ReadOnly);
    client.write_block(0, id);
    rig.expect(&mut client, Err(Errno::ROFS));
    client.read(1, 0, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
    rig.expect(&mut client, Ok(()));
    assert_eq!(client.data(0, BLOCK), [0; BLOCK]);
}

#[test]
fn what_does_not_fit_the_device_is_refused_and_the_path_stays() {
    let (mut rig, mut client, id) = disk(Options::default(), AccessMode::ReadWrite);
    for (message, data, errno) in [
        (io(id, Op::Write, BLOCKS, BLOCK), BLOCK, Errno::NOSPC),
        (io(id, Op::Write, u64::MAX, BLOCK), BLOCK, Errno::NOSPC),
        (io(id, Op::Write, 0, 100), 100, Errno::INVAL),
        (io(id, Op::Write, 0, 2 * BLOCK), BLOCK, Errno::INVAL),
        (io(id + 1, Op::Write, 0, BLOCK), BLOCK, Errno::NOTCONN),
    ] {
        client.write(1, 0, &vec![1; data], &message.to_bytes());
        rig.expect(&mut client, Err(errno));
    }
    assert!(rig.sessions()[0].connected);
}

/// There is no message for a new size: the client's administrator tells the client.
#[test]
fn a_device_that_has_grown_can_be_used_to_its_new_end() {
    let mut rig = Rig::sim(Options::default());
    let null = Arc::new(NullBdev::new(one_mib("Null0")).unwrap());
    rig.services.registry.register(null.clone()).unwrap();
    let export = Export {
        allow_any_host: true,
        ..Export::new("growing", "Null0")
    };
    rig.services.exports.create(export).unwrap();
    let mut client = rig.up(Identity::new("clt1", 1));
    let opened = rig.open(&mut client, "growing", AccessMode::ReadWrite);
    let message = io(opened.unwrap().device_id, Op::Write, 2048, BLOCK).to_bytes();

    client.write(1, 0, &[1; BLOCK], &message);
    rig.expect(&mut client, Err(Errno::NOSPC));
    null.resize(2).unwrap();
    client.write(1, 0, &[1; BLOCK], &message);
    rig.expect(&mut client, Ok(()));
}

fn one_mib(name: &str) -> NullOptions {
    NullOptions {
        name: name.to_owned(),
        num_blocks: 2048,
        block_size: 512,
        ..NullOptions::default()
    }
}

/// CVE-2026-43184.
#[test]
fn an_answer_carries_no_old_content_of_its_chunk() {
    for options in [Options::default(), new_rkey()] {
        let (mut rig, mut client, id) = disk(options, AccessMode::ReadWrite);
        client.write(1, 4, &[0xee; 1024], &io(id, Op::Write, 0, 1024).to_bytes());
        rig.expect(&mut client, Ok(()));
        client.read(0, 4, 600, &rnbd_wire::rnbd::SessInfo { ver: 2 }.to_bytes());
        rig.expect(&mut client, Ok(()));
        let data = client.data(4, 600);
        assert_eq!(data[..5], [1, 0, 0, 0, 2]);
        assert!(data[5..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_close_that_asks_for_data_gets_none() {
    let (mut rig, mut client, id) = disk(Options::default(), AccessMode::ReadWrite);
    client.write(1, 4, &[0xee; 512], &io(id, Op::Write, 0, 512).to_bytes());
    rig.expect(&mut client, Ok(()));
    let close = rnbd_wire::rnbd::Close { device_id: id + 1 };
    client.read(0, 4, 512, &close.to_bytes());
    rig.expect(&mut client, Err(Errno::INVAL));
    assert_eq!(client.data(4, 512), [0; 512]);
}

#[test]
fn devices_that_take_their_time_are_answered_when_they_are_done() {
    let mut rig = Rig::sim(Options::default());
    let (mut client, id) = rig.up_with("slow");
    let before = rig.now;
    client.write(0, 0, &[3; BLOCK], &io(id, Op::Write, 0, BLOCK).to_bytes());
    client.close(1, id);
    let first = rig.answer(&mut client);
    assert_eq!((first.msg_id, first.status), (0, Ok(())));
    assert!(rig.now.since(before).0 >= 1_000_000);
    let second = rig.answer(&mut client);
    assert_eq!(
        (second.msg_id, second.status),
        (1, Ok(())),
        "CLOSE waits for it"
    );
}
