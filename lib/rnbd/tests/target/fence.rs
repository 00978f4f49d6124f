//! The end of a path, confirmed over another (docs/fencing.md).

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_fabric::sim::{Crash, SimFabric};
use rnbd_rtrs::HeartbeatConfig;
use rnbd_rtrs::srv::ExtensionConfig;
use rnbd_wire::extension::PathToken;
use rnbd_wire::rnbd::Op;
use rnbd_wire::{Imm, limits};

use crate::client::{Client, Identity, io};
use crate::rig::{BLOCK, Options, Rig, Sim, host};

type SimClient = Client<SimFabric>;

fn options() -> Options {
    let mut options = Options::default();
    options.rtrs.extension = Some(ExtensionConfig {
        instance: 0x5eed,
        heartbeat: HeartbeatConfig::PEER,
    });
    options
}

impl Rig<Sim> {
    /// A client that knows the extension, with `slow` open, and the device's id.
    fn peer(&mut self) -> (SimClient, u32) {
        let mut client = self.up(Identity::new("clt1", 1).peer());
        let id = self.open_rw(&mut client, "slow");
        (client, id)
    }

    fn peer_path(&mut self, number: u8) -> SimClient {
        let mut client = self.client_on(number, Identity::added(number).peer());
        self.bring_up(&mut client);
        client
    }

    fn inflight(&mut self) -> u32 {
        self.sessions().iter().map(|session| session.inflight).sum()
    }

    /// Steps until the end of the path is confirmed; returns whether its I/O was done by then.
    fn confirmed_after_io(&mut self, asker: &mut SimClient, token: PathToken) -> bool {
        self.run(asker, |asker| asker.fenced(token) == 1);
        self.inflight() == 0
    }
}

#[test]
fn the_end_of_a_path_is_confirmed_when_its_io_is_done() {
    let mut rig = Rig::sim(options());
    let (mut lost, id) = rig.peer();
    let mut other = rig.peer_path(3);
    lost.write_block(0, id);
    rig.steps(6, &mut [&mut lost, &mut other]);
    rig.world.0.cut(host(1), host(2));
    let token = lost.token();
    other.fence(token);
    let asked_at = rig.now;
    assert!(rig.confirmed_after_io(&mut other, token));
    assert!(
        rig.now.since(asked_at) > Nanos::from_millis(400),
        "the device takes half a second"
    );
    let paths = &rig.sessions()[0].paths;
    assert_eq!(paths.len(), 1, "the lost path is gone");
}

/// The ghost write: the network keeps a write of the lost path until newer data is there.
#[test]
fn nothing_of_a_fenced_path_lands_after_the_confirmation() {
    let mut rig = Rig::sim(options());
    let (mut lost, id) = rig.peer();
    let mut other = rig.peer_path(3);
    rig.world.0.cut(host(1), host(2));
    lost.write_block(0, id);
    rig.steps(10, &mut [&mut lost, &mut other]);
    let token = lost.token();
    other.fence(token);
    assert!(rig.confirmed_after_io(&mut other, token));
    other.fill_block(1, id, 2);
    rig.expect(&mut other, Ok(()));
    rig.world.0.heal_all();
    rig.steps(400, &mut [&mut lost, &mut other]);
    other.read(1, 2, BLOCK, &io(id, Op::Read, 0, BLOCK).to_bytes());
    rig.expect(&mut other, Ok(()));
    assert_eq!(other.data(2, BLOCK), [2; BLOCK]);
}

#[test]
fn a_path_that_nobody_knows_is_confirmed_at_once() {
    let mut rig = Rig::sim(options());
    let (mut client, _) = rig.peer();
    client.fence(PathToken::LAST);
    rig.run(&mut client, |client| client.fenced(PathToken::LAST) == 1);
    assert!(rig.sessions()[0].connected);
}

#[test]
fn all_who_ask_for_one_path_are_answered() {
    let mut rig = Rig::sim(options());
    let (mut lost, id) = rig.peer();
    let mut second = rig.peer_path(3);
    let mut third = rig.peer_path(4);
    lost.write_block(0, id);
    rig.steps(6, &mut [&mut lost, &mut second, &mut third]);
    let token = lost.token();
    for asker in [&mut second, &mut third] {
        asker.fence(token);
        asker.fence(token);
    }
    rig.world.0.crash(host(2), Crash::Power);
    drop(lost);
    rig.steps(400, &mut [&mut second, &mut third]);
    assert_eq!((second.fenced(token), third.fenced(token)), (1, 1));
}

#[test]
fn an_asker_that_dies_is_not_missed() {
    let mut rig = Rig::sim(options());
    let (mut lost, id) = rig.peer();
    let mut second = rig.peer_path(3);
    let mut third = rig.peer_path(4);
    lost.write_block(0, id);
    rig.steps(6, &mut [&mut lost, &mut second, &mut third]);
    let token = lost.token();
    second.fence(token);
    rig.steps(6, &mut [&mut lost, &mut second, &mut third]);
    rig.world.0.crash(host(3), Crash::Process);
    drop(second);
    rig.steps(6, &mut [&mut lost, &mut third]);
    assert_eq!(third.fenced(token), 0);
    third.fence(token);
    assert!(rig.confirmed_after_io(&mut third, token));
}

#[test]
fn a_path_that_fences_itself_is_closed() {
    let mut rig = Rig::sim(options());
    let (mut client, _) = rig.peer();
    client.fence(client.token());
    rig.run(&mut client, |client| client.closed.len() == 3);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
}

#[test]
fn a_path_comes_again_with_another_token_once_its_old_life_is_over() {
    let mut rig = Rig::sim(options());
    let (mut client, id) = rig.peer();
    let token = client.token();
    client.write_block(0, id);
    rig.steps(6, &mut [&mut client]);
    rig.world.0.crash(host(2), Crash::Process);
    drop(client);
    let again = Identity::new("clt1", 1).peer().again();
    let mut early = rig.client_on(3, again.clone());
    let conn = early.connect(rig.addr, rig.now);
    rig.run(&mut early, |early| !early.closed.is_empty());
    assert_eq!(early.rejected(conn), Some(Errno::BUSY));
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    let mut late = rig.client_on(4, again);
    rig.bring_up(&mut late);
    assert_ne!(late.token(), token);
}

#[test]
fn a_kernel_client_sees_nothing_of_the_extension() {
    let mut rig = Rig::sim(options());
    let (mut client, _) = rig.up_with("disk");
    assert_eq!(client.parameters.unwrap().extension, None);
    client.fence(PathToken::FIRST);
    client.sess_info(0);
    rig.expect(&mut client, Ok(()));
    assert_eq!(client.fenced(PathToken::FIRST), 0);
    assert_eq!(rig.sessions()[0].paths[0].counters.ignored, 1);
}

/// Fills connection 0 with answers that the client does not take, until some wait.
fn stuff(rig: &mut Rig<Sim>, client: &mut SimClient, id: u32) {
    for _ in 0..2000 {
        if rig.inflight() > 0 {
            return;
        }
        client.write(0, 0, &[], &io(id + 1, Op::Flush, 0, 0).to_bytes());
        client.fabric.flush(rig.now);
        rig.steps(10, &mut []);
    }
    panic!("answers never wait");
}

#[test]
fn what_cannot_be_said_now_is_said_when_there_is_room_again() {
    let mut rig = Rig::sim(options());
    let (mut client, id) = rig.peer();
    stuff(&mut rig, &mut client, id);
    client.send_imm(0, Imm::HEARTBEAT);
    client.fence(PathToken::LAST);
    client.fabric.flush(rig.now);
    rig.steps(10, &mut []);
    rig.run(&mut client, |client| {
        client.others.contains(&Imm::HEARTBEAT_ACK) && client.fenced(PathToken::LAST) == 1
    });
}

#[test]
fn a_client_that_asks_without_end_and_takes_no_answer_is_given_up() {
    let mut rig = Rig::sim(options());
    let (mut client, id) = rig.peer();
    stuff(&mut rig, &mut client, id);
    for token in 0..=u32::try_from(limits::PATHS_PER_SESSION).unwrap() + 2 {
        client.fence(PathToken::new(1000 + token).unwrap());
        client.fabric.flush(rig.now);
        rig.steps(2, &mut []);
    }
    rig.run(&mut client, |client| client.closed.len() == 3);
    assert_eq!(rig.stats()[0].violations, 1);
}

#[test]
fn a_peer_that_falls_silent_is_given_up_within_ten_seconds() {
    let mut rig = Rig::sim(options());
    let (client, _) = rig.peer();
    let alive_at = rig.now;
    rig.world.0.crash(host(2), Crash::Power);
    drop(client);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    assert!(rig.now.since(alive_at) <= Nanos::from_secs(10));
}

#[test]
fn a_path_that_comes_up_says_whether_devices_are_open_as_before() {
    let mut rig = Rig::sim(options());
    let (mut first, _) = rig.peer();
    let mut second = rig.peer_path(3);
    assert!(first.service.is_some());
    assert_eq!(second.service, first.service);
    let mut late = rig.client_on(4, Identity::added(4).peer());
    rig.connect(&mut late);
    first.disconnect();
    second.disconnect();
    while !rig.services.exports.opens().is_empty() {
        rig.steps(1, &mut [&mut first, &mut second, &mut late]);
    }
    assert_eq!(rig.sessions().len(), 1, "one path has its connections");
    late.send_info_req();
    rig.run(&mut late, |late| !late.chunks.is_empty());
    let (before, after) = (first.service.unwrap(), late.service.unwrap());
    assert!(after.is_after(before), "{after:?} {before:?}");
}

#[test]
fn a_client_without_the_extension_is_not_told_its_service() {
    let mut rig = Rig::sim(options());
    assert_eq!(rig.up(Identity::new("clt1", 1)).service, None);
}
