//! Clients that break the rules harm themselves only.

use proptest::prelude::*;
use rnbd_base::Errno;
use rnbd_bdev::RateLimits;
use rnbd_fabric::sim::{Device, FaultPlan, Injection, Side};
use rnbd_wire::Imm;
use rnbd_wire::rnbd::Op;

use crate::client::{Client, Identity, Image, io};
use crate::rig::{BLOCK, CHUNK, Options, Rig, Sim, World, new_rkey};

/// What a client does; its path is to be closed for it.
type Crime<F> = fn(&mut Client<F>);

fn is_closed_for(crime: Crime<<Sim as World>::Fabric>) {
    for options in [Options::default(), new_rkey()] {
        let mut rig = Rig::sim(options);
        let mut honest = rig.client_on(3, Identity::new("honest", 9));
        rig.bring_up(&mut honest);
        let mut client = rig.up(Identity::new("clt1", 1));
        rig.open_rw(&mut client, "disk");
        crime(&mut client);
        rig.run(&mut client, |client| client.closed.len() == 3);
        assert_eq!(rig.stats()[0].violations, 1);
        let sessions = rig.sessions();
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions[0].sessname, "honest");
        rig.open_rw(&mut honest, "disk");
    }
}

/// As Linux does (protocol.md section 4); more of them than the connection has receives.
#[test]
fn immediates_that_no_client_sends_are_ignored() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.up(Identity::new("clt1", 1));
    for _ in 0..300 {
        client.send_imm(1, Imm::response(0, Ok(()), false));
        client.send_imm(1, 0xf000_0000);
        rig.step(&mut [&mut client]);
    }
    rig.open_rw(&mut client, "disk");
    assert_eq!(rig.sessions()[0].paths[0].counters.ignored, 600);
}

#[test]
fn an_immediate_that_names_no_chunk_is_a_violation() {
    is_closed_for(|client| client.send_imm(1, 0x0fff_ffff));
}

#[test]
fn an_unknown_message_is_a_violation() {
    is_closed_for(|client| {
        let image = Image {
            at: 0,
            bytes: vec![9; 8],
            header_at: 4,
        };
        client.post_image(1, 0, &image);
    });
}

#[test]
fn a_second_request_in_a_chunk_is_a_violation() {
    is_closed_for(|client| {
        let message = io(0, Op::Write, 0, BLOCK).to_bytes();
        client.write(0, 0, &[1; BLOCK], &message);
        // In NEW_RKEY mode the chunk is closed by then: only the immediate gets through.
        client.send_imm(0, 32);
    });
}

#[test]
fn a_send_after_the_handshake_fits_nowhere() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.up(Identity::new("clt1", 1));
    client.send_message(1, &[1, 2, 3]);
    rig.run(&mut client, |client| client.closed.len() == 3);
    assert!(rig.sessions().is_empty());
}

#[test]
fn info_req_before_all_connections_is_a_violation() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.client(Identity::new("clt1", 1));
    client.connect(rig.addr, rig.now);
    rig.run(&mut client, |client| client.connected == 1);
    client.send_info_req();
    rig.run(&mut client, |client| client.closed.len() == 1);
    assert_eq!(rig.stats()[0].violations, 1);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
}

#[test]
fn a_handshake_that_stops_frees_its_memory() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.client(Identity::new("clt1", 1));
    client.connect(rig.addr, rig.now);
    rig.run(&mut client, |client| client.connected == 1);
    rig.run(&mut client, |client| client.closed.len() == 1);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    assert!(rig.sessions().is_empty());
}

/// CVE-2026-97413, CVE-2026-64269: refused, and nothing of the chunk goes out.
#[test]
fn headers_that_contradict_themselves_are_answered() {
    for options in [Options::default(), new_rkey()] {
        let mut rig = Rig::sim(options);
        let mut client = rig.up(Identity::new("clt1", 1));
        let underflow = Image {
            at: 0,
            bytes: vec![2, 0, 0xff, 0xff],
            header_at: 0,
        };
        client.post_image(1, 0, &underflow);
        rig.expect(&mut client, Err(Errno::INVAL));
        let message = io(0, Op::Read, 0, BLOCK).to_bytes();
        client.read(1, 0, BLOCK, &message);
        rig.expect(&mut client, Err(Errno::NOTCONN));
        assert!(rig.sessions()[0].connected);
    }
}

/// Devices whose windows are closed at once, and by work that takes a while.
const DEVICES: [Device; 2] = [Device::SOFTWARE, Device::HARDWARE];

/// The most that a WRITE brings for its data to be copied out of the chunk.
const COPIED: usize = 4096;

/// In `NEW_RKEY` mode, with the export `slow` open.
fn up_with_new_rkey(device: Device) -> (Rig<Sim>, Client<<Sim as World>::Fabric>, u32) {
    let plan = FaultPlan {
        device,
        ..FaultPlan::default()
    };
    let mut rig = Rig::new(Sim::new(plan), new_rkey());
    let (client, id) = rig.up_with("slow");
    (rig, client, id)
}

/// In `NEW_RKEY` mode the key of a request is worth nothing once that is answered.
#[test]
fn a_late_write_fails_on_the_wire() {
    let ways = DEVICES.map(|device| [(device, Op::Write), (device, Op::Read)]);
    for (device, op) in ways.into_iter().flatten() {
        let (mut rig, mut client, id) = up_with_new_rkey(device);
        let message = io(id, op, 0, BLOCK).to_bytes();
        let old = client.chunks[0];
        match op {
            Op::Read => client.read(1, 0, BLOCK, &message),
            _ => client.write(1, 0, &[1; BLOCK], &message),
        }
        rig.expect(&mut client, Ok(()));
        assert_ne!(client.chunks[0].key, old.key);
        client.chunks[0] = old;
        client.write_into_chunk(1, 0, &[2; BLOCK]);
        rig.run(&mut client, |client| client.closed.len() == 3);
        assert!(rig.sessions().is_empty());
    }
}

/// What a WRITE brought stays as it is while it is served.
#[test]
fn with_new_rkey_the_data_of_a_write_cannot_be_changed() {
    for (device, len) in [
        (Device::SOFTWARE, BLOCK),
        (Device::HARDWARE, COPIED + BLOCK),
    ] {
        let (mut rig, mut client, id) = up_with_new_rkey(device);
        client.write(1, 0, &vec![1; len], &io(id, Op::Write, 0, len).to_bytes());
        rig.run_with(&mut client, |rig| rig.sessions()[0].inflight == 1);
        client.write_into_chunk(1, 0, &[2; BLOCK]);
        rig.run(&mut client, |client| client.closed.len() == 3);
    }
}

/// What a small WRITE brought is copied where closing the chunk takes a while; the disk gets the copy.
#[test]
fn with_new_rkey_what_comes_after_a_small_write_is_not_written() {
    let (mut rig, mut client, id) = up_with_new_rkey(Device::HARDWARE);
    let one_a_second = RateLimits {
        rw_ios_per_sec: 1,
        ..RateLimits::default()
    };
    let registry = &rig.services.registry;
    registry.set_limits("Delay0", one_a_second).unwrap();
    client.write(1, 1, &[0; BLOCK], &io(id, Op::Write, 0, BLOCK).to_bytes());
    rig.expect(&mut client, Ok(()));
    // The disk takes the data when its second comes.
    client.write(1, 0, &[1; COPIED], &io(id, Op::Write, 0, COPIED).to_bytes());
    rig.run_with(&mut client, |rig| rig.sessions()[0].inflight == 1);
    client.write_into_chunk(1, 0, &[2; COPIED]);
    rig.expect(&mut client, Ok(()));
    client.read(1, 0, COPIED, &io(id, Op::Read, 0, COPIED).to_bytes());
    rig.expect(&mut client, Ok(()));
    assert_eq!(client.data(0, COPIED), [1; COPIED]);
}

/// The next request in the chunk of a small WRITE is served from the chunk, if it is a large one.
#[test]
fn with_new_rkey_a_large_write_follows_a_small_one() {
    let (mut rig, mut client, id) = up_with_new_rkey(Device::HARDWARE);
    for (byte, len) in [(1, COPIED), (2, COPIED + BLOCK), (3, BLOCK)] {
        client.write(
            1,
            0,
            &vec![byte; len],
            &io(id, Op::Write, 0, len).to_bytes(),
        );
        rig.expect(&mut client, Ok(()));
        client.read(1, 0, len, &io(id, Op::Read, 0, len).to_bytes());
        rig.expect(&mut client, Ok(()));
        assert_eq!(client.data(0, len), vec![byte; len]);
    }
}

/// A READ has nothing in its chunk that could be changed, so it does not wait until that is closed.
#[test]
fn with_new_rkey_the_chunk_of_a_read_stays_open_where_closing_takes_a_while() {
    let (mut rig, mut client, id) = up_with_new_rkey(Device::HARDWARE);
    client.read(1, 0, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
    rig.run_with(&mut client, |rig| rig.sessions()[0].inflight == 1);
    client.write_into_chunk(1, 0, &[2; BLOCK]);
    rig.expect(&mut client, Ok(()));
    assert!(client.closed.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is injected behind an honest handshake: no panic, no leak, others are served.
    #[test]
    fn no_client_harms_others(
        images in proptest::collection::vec(
            (
                0..4_u16,
                0..3_usize,
                proptest::collection::vec(any::<u8>(), 4..80),
                0..CHUNK,
                any::<Option<u32>>(),
            ),
            1..20,
        ),
        with_new_rkey: bool,
    ) {
        let options = if with_new_rkey { new_rkey() } else { Options::default() };
        let mut rig = Rig::sim(options);
        let mut honest = rig.client_on(3, Identity::new("honest", 9));
        rig.bring_up(&mut honest);
        let bytes_of_honest = rig.chunk_memory();
        let mut client = rig.up(Identity::new("clt1", 1));
        rig.open_rw(&mut client, "disk");
        let wires = rig.world.0.connections();
        let wires: Vec<_> = wires.iter().filter(|wire| wire.client.ip() == crate::rig::host(2)).collect();
        for (msg_id, cid, mut bytes, at, imm) in images {
            bytes[0] %= 6;
            bytes[1] = 0;
            let at = at.min(CHUNK - u32::try_from(bytes.len()).unwrap());
            let chunk = client.chunks[usize::from(msg_id)];
            let remote = rnbd_fabric::RemoteAddr { addr: chunk.addr + u64::from(at), rkey: chunk.key };
            let layout = rnbd_wire::ImmLayout::new(crate::rig::DEPTH).unwrap();
            let imm = imm.unwrap_or_else(|| layout.request(msg_id, at));
            let injection = Injection::Write { remote, bytes, imm };
            rig.world.0.inject(wires[cid].wire, Side::Client, injection);
            rig.steps(8, &mut [&mut client, &mut honest]);
        }
        client.disconnect();
        rig.steps(1000, &mut [&mut client, &mut honest]);
        prop_assert_eq!(rig.chunk_memory(), bytes_of_honest);
        prop_assert_eq!(rig.sessions().len(), 1);
        let id = rig.open_rw(&mut honest, "disk");
        honest.read(1, 0, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
        rig.expect(&mut honest, Ok(()));
    }
}
