use std::net::{IpAddr, Ipv4Addr};

use rnbd_base::Nanos;

use super::{Crash, Device, FaultPlan, Injection, PerMillion, Seen, Side, SimFabric, SimNetwork};
use crate::conformance::Testbed;
use crate::conformance::rig::{Link, Rig, linked};
use crate::{Access, Addr, CloseReason, Fabric, ListenOptions, RemoteAddr, WorkRequest, WrOp};

fn host(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

/// A network of software devices or, if `HARDWARE`, of others.
#[derive(Debug)]
struct BedOf<const HARDWARE: bool>(SimNetwork);

type Bed = BedOf<false>;

impl<const HARDWARE: bool> Testbed for BedOf<HARDWARE> {
    type Fabric = SimFabric;

    fn new() -> Self {
        let device = if HARDWARE {
            Device::HARDWARE
        } else {
            Device::SOFTWARE
        };
        let plan = FaultPlan {
            device,
            ..FaultPlan::default()
        };
        Self(SimNetwork::new(1, plan))
    }

    fn fabric(&mut self, of: u8) -> SimFabric {
        self.0.fabric(host(of))
    }

    fn listen_addr(&mut self, of: u8) -> Addr {
        Addr::Ip((host(of), 0).into())
    }

    fn unused_addr(&mut self) -> Addr {
        drop(self.0.fabric(host(200)));
        Addr::Ip((host(200), 1).into())
    }

    fn silent_addr(&mut self) -> Addr {
        self.0.crash(host(201), Crash::Power);
        Addr::Ip((host(201), 1).into())
    }

    fn pass_time(&mut self, now: Nanos, deadline: Option<Nanos>) -> Nanos {
        let soon = now + Nanos::from_millis(1);
        deadline.map_or(soon, |at| at.clamp(now + Nanos(1), soon))
    }
}

mod software {
    crate::conformance_tests!(super::BedOf<false>);
}

mod hardware {
    crate::conformance_tests!(super::BedOf<true>);
}

/// Two linked hosts, 0 and 1, and their network.
fn faulty(change: impl FnOnce(&mut FaultPlan)) -> (Rig<Bed>, Link, SimNetwork) {
    let (mut rig, link) = linked::<Bed>();
    let network = rig.bed().0.clone();
    let mut plan = FaultPlan::default();
    change(&mut plan);
    network.set_plan(plan);
    (rig, link, network)
}

fn say(rig: &mut Rig<Bed>, link: &Link, imm: u32) {
    rig.post(link.client, WrOp::WriteImm(RemoteAddr::NONE, imm));
}

#[test]
fn a_cut_holds_messages_back_until_it_heals() {
    let (mut rig, link, network) = faulty(|_| ());
    rig.post_empty_recvs(link.server, 1);
    network.cut(host(0), host(1));
    say(&mut rig, &link, 5);
    rig.settle();
    assert!(rig.is_silent(1));
    network.heal(host(0), host(1));
    assert_eq!(rig.write_imm(link.server), 5);
    rig.assert_alive(&link);
}

#[test]
fn a_sender_cut_off_from_acknowledgements_fails_though_its_message_arrived() {
    let (mut rig, link, network) = faulty(|_| ());
    rig.post_empty_recvs(link.server, 1);
    network.cut(host(1), host(0));
    say(&mut rig, &link, 5);
    assert_eq!(rig.write_imm(link.server), 5);
    let reason = rig.closed(0, link.client.conn);
    assert_eq!(reason, CloseReason::Failed("no acknowledgement"));
}

#[test]
fn a_silent_drop_is_noticed_only_by_who_sends() {
    let (mut rig, link, network) = faulty(|_| ());
    network.drop_silently(network.connections()[0].wire);
    let patience = FaultPlan::default().retry_timeout;
    let deadline = rig.now() + patience + patience;
    rig.until("time", |rig| (rig.now() > deadline).then_some(()));
    assert!(rig.is_silent(0) && rig.is_silent(1));
    say(&mut rig, &link, 1);
    rig.closed(0, link.client.conn);
    rig.settle();
    assert!(rig.is_silent(1));
}

#[test]
fn a_process_that_dies_is_reported_and_a_power_failure_is_not() {
    let (mut rig, link, network) = faulty(|_| ());
    network.crash(host(1), Crash::Process);
    assert_eq!(rig.closed(0, link.client.conn), CloseReason::PeerClosed);

    let (mut rig, link, network) = faulty(|_| ());
    network.crash(host(1), Crash::Power);
    rig.settle();
    assert!(rig.is_silent(0));
    say(&mut rig, &link, 1);
    let reason = rig.closed(0, link.client.conn);
    assert_eq!(reason, CloseReason::Failed("no acknowledgement"));
}

#[test]
fn a_host_that_is_back_resets_what_it_does_not_know() {
    let (mut rig, link, network) = faulty(|_| ());
    network.crash(host(1), Crash::Power);
    say(&mut rig, &link, 1);
    rig.settle();
    network.restart(host(1));
    assert_eq!(rig.closed(0, link.client.conn), CloseReason::PeerClosed);
}

#[test]
fn what_a_dead_sender_sent_still_lands() {
    let (mut rig, link, network) = faulty(|_| ());
    let region = rig.region(link.server, 64, Access::RemoteWrite);
    let source = rig.source(link.client, &[7; 64]);
    rig.post_empty_recvs(link.server, 1);
    let wr = WorkRequest::new(WrOp::WriteImm(region.remote(0), 3)).with_sge(source.sge(0, 64));
    rig.post_wr(link.client, &wr);
    let now = rig.now();
    rig.fabric(0).flush(now);
    network.crash(host(0), Crash::Power);
    source.span.fill(0);
    assert_eq!(rig.write_imm(link.server), 3);
    assert_eq!(region.bytes(0, 64), [7; 64]);
}

#[test]
fn a_buffer_reused_too_early_sends_wrong_bytes() {
    let (mut rig, link, _) = faulty(|_| ());
    let region = rig.region(link.server, 64, Access::RemoteWrite);
    let source = rig.source(link.client, &[7; 64]);
    rig.post_empty_recvs(link.server, 1);
    let wr = WorkRequest::new(WrOp::WriteImm(region.remote(0), 3)).with_sge(source.sge(0, 64));
    rig.post_wr(link.client, &wr);
    source.span.fill(8);
    rig.write_imm(link.server);
    assert_eq!(region.bytes(0, 64), [8; 64]);
}

#[test]
fn a_late_write_through_a_key_that_has_closed_is_refused() {
    let (mut rig, link, _) = faulty(|_| ());
    let region = rig.region(link.server, 64, Access::RemoteWrite);
    let source = rig.source(link.client, &[7; 64]);
    rig.post_empty_recvs(link.server, 1);
    let wr = WorkRequest::new(WrOp::WriteImm(region.remote(0), 3)).with_sge(source.sge(0, 64));
    rig.post_wr(link.client, &wr);
    let now = rig.now();
    rig.fabric(0).flush(now);
    rig.fabric(1).deregister(region.key.mr);
    rig.assert_violated(&link);
    assert!(region.span.is_zeroed());
}

#[test]
fn a_removed_device_closes_all_and_listens_again_when_it_is_back() {
    let mut rig = Rig::<Bed>::new(&[0, 1]);
    let network = rig.bed().0.clone();
    let (_, addr) = rig.listen(1, 1);
    let link = rig.link(addr);
    network.remove_device(host(1));
    let reason = rig.both_closed(&link);
    assert_eq!(reason, CloseReason::Failed("the device was removed"));
    network.return_device(host(1));
    let again = rig.link(addr);
    rig.assert_alive(&again);
}

#[test]
fn a_host_with_two_addresses_loses_only_what_goes_over_a_removed_device() {
    let mut rig = Rig::<Bed>::new(&[0, 1]);
    let network = rig.bed().0.clone();
    network.add_address(host(1), host(101));
    let (_, first) = rig.listen(1, 1);
    let link = rig.link(first);
    let second = Addr::Ip((host(101), 7).into());
    let listening = rig.fabric(1).listen(&second, &ListenOptions::default());
    assert!(listening.is_ok());
    let other = rig.link(second);
    network.remove_device(host(101));
    let reason = rig.both_closed(&other);
    assert_eq!(reason, CloseReason::Failed("the device was removed"));
    rig.assert_alive(&link);
}

#[test]
fn without_a_local_device_nothing_is_reachable() {
    let mut rig = Rig::<Bed>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    rig.bed().0.remove_device(host(0));
    let client = rig.connect(0, addr, b"");
    assert_eq!(rig.closed(0, client), CloseReason::Unreachable);
}

#[test]
fn requests_are_refused_and_lost_as_planned() {
    let mut rig = Rig::<Bed>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let mut plan = FaultPlan {
        connect_reject: PerMillion::ALWAYS,
        ..FaultPlan::default()
    };
    rig.bed().0.set_plan(plan.clone());
    let client = rig.connect(0, addr, b"");
    let reason = rig.closed(0, client);
    assert!(matches!(reason, CloseReason::Rejected(_)), "{reason:?}");
    plan.connect_loss = PerMillion::ALWAYS;
    rig.bed().0.set_plan(plan);
    let client = rig.connect(0, addr, b"");
    assert_eq!(rig.closed(0, client), CloseReason::TimedOut);
    assert!(rig.is_silent(1));
}

#[test]
fn few_bytes_in_flight_slow_down_and_lose_nothing() {
    let (mut rig, link, _) = faulty(|plan| plan.in_flight_bytes_max = 100);
    let region = rig.region(link.server, 64, Access::RemoteWrite);
    let source = rig.source(link.client, &[7; 64]);
    rig.post_empty_recvs(link.server, 50);
    for n in 0..50 {
        let wr = WorkRequest::new(WrOp::WriteImm(region.remote(0), n));
        rig.post_wr(link.client, &wr.with_sge(source.sge(0, 64)));
    }
    for n in 0..50 {
        assert_eq!(rig.write_imm(link.server), n);
    }
}

#[test]
fn local_bytes_without_their_key_break_the_connection_of_strict_hardware() {
    let (mut rig, link, _) = faulty(|plan| plan.device = Device::HARDWARE);
    let source = rig.source(link.client, &[7; 64]);
    rig.post_empty_recvs(link.server, 1);
    let mut sge = source.sge(0, 64);
    sge.lkey ^= 1;
    rig.post_wr(link.client, &WorkRequest::new(WrOp::Send).with_sge(sge));
    let reason = rig.closed(0, link.client.conn);
    assert!(matches!(reason, CloseReason::Failed(_)), "{reason:?}");
}

#[test]
fn a_hostile_peer_says_what_its_software_would_not() {
    let (mut rig, link, network) = faulty(|_| ());
    rig.post_empty_recvs(link.server, 1);
    let wire = network.connections()[0].wire;
    network.inject(wire, Side::Client, Injection::Imm(0xFFFF_FFFF));
    assert_eq!(rig.write_imm(link.server), 0xFFFF_FFFF);
    rig.assert_alive(&link);
}

#[test]
fn corruption_changes_as_many_messages_as_asked() {
    let (mut rig, link, network) = faulty(|_| ());
    let region = rig.region(link.server, 4096, Access::RemoteWrite);
    let source = rig.source(link.client, &[7; 4096]);
    rig.post_empty_recvs(link.server, 2);
    network.corrupt(network.connections()[0].wire, Side::Client, 1);
    for is_intact in [false, true] {
        let wr = WorkRequest::new(WrOp::WriteImm(region.remote(0), 3));
        rig.post_wr(link.client, &wr.with_sge(source.sge(0, 4096)));
        rig.write_imm(link.server);
        assert_eq!(region.bytes(0, 4096) == [7; 4096], is_intact);
    }
}

#[test]
fn what_finds_no_receive_waits_while_the_other_direction_goes_on() {
    let (mut rig, link, network) = faulty(|_| ());
    rig.post_empty_recvs(link.server, 1);
    rig.post_empty_recvs(link.client, 1);
    let wire = network.connections()[0].wire;
    network.starve(wire, Side::Client, true);
    say(&mut rig, &link, 5);
    rig.settle();
    assert!(rig.is_silent(1));
    rig.post(link.server, WrOp::WriteImm(RemoteAddr::NONE, 6));
    assert_eq!(rig.write_imm(link.client), 6);
    network.starve(wire, Side::Client, false);
    assert_eq!(rig.write_imm(link.server), 5);
    rig.assert_alive(&link);
}

#[test]
fn an_observer_sees_an_immediate_leave_and_arrive() {
    let (mut rig, link, network) = faulty(|_| ());
    rig.post_empty_recvs(link.server, 1);
    network.watch(true);
    say(&mut rig, &link, 5);
    rig.write_imm(link.server);
    let seen: Vec<_> = network
        .take_sights()
        .iter()
        .map(|sight| sight.what)
        .collect();
    let from = Side::Client;
    assert!(
        matches!(seen[0], Seen::Sent { from: f, imm: 5 } if f == from),
        "{seen:?}"
    );
    assert!(
        matches!(seen[1], Seen::Taken { from: f, imm: 5 } if f == from),
        "{seen:?}"
    );
    assert!(network.take_sights().is_empty());
}

#[test]
fn a_delay_is_of_one_way_between_two_addresses() {
    let delay = Nanos::from_millis(500);
    let (mut rig, link, network) = faulty(|_| ());
    rig.post_empty_recvs(link.server, 1);
    rig.post_empty_recvs(link.client, 1);
    network.set_delay(host(0), host(1), delay);
    let start = rig.now();
    rig.post(link.server, WrOp::WriteImm(RemoteAddr::NONE, 6));
    rig.write_imm(link.client);
    assert!(rig.now() < start + delay);
    say(&mut rig, &link, 5);
    rig.write_imm(link.server);
    assert!(rig.now() > start + delay);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let network = SimNetwork::new(seed, FaultPlan::default());
        let _fabrics = [network.fabric(host(0)), network.fabric(host(1))];
        let mut net = network.lock();
        (0..20).map(|_| net.latency().0).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
