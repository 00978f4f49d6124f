//! What goes wrong when, and how it is put right.

use std::net::IpAddr;

use fastrand::Rng;
use rnbd_base::Nanos;
use rnbd_bdev::ErrorType;
use rnbd_fabric::sim::{Connection, Crash, FaultPlan, Injection, PerMillion, Side, WireId};

use crate::scenario::FaultKind;
use crate::world::World;

/// What ends a fault, when its time has come.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Heal(IpAddr, IpAddr),
    StartTarget,
    StartInitiator(usize),
    ReturnDevice(IpAddr),
    ReconnectPath(usize),
    Resume(Actor),
    GoodNetwork,
    ResumeDisks,
    MendDisks,
}

/// Something that is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// A core of the target.
    Target(usize),
    /// A core of an initiator.
    Initiator(usize, usize),
}

impl World<'_> {
    /// Lets one fault happen.
    pub(crate) fn strike(&mut self, kind: FaultKind) {
        match kind {
            FaultKind::CutOneWay => self.cut(false),
            FaultKind::CutBothWays => self.cut(true),
            FaultKind::SilentDrop => self.on_some_wire(|world, wire| {
                world.network.drop_silently(wire);
            }),
            FaultKind::Reset => self.on_some_wire(|world, wire| world.network.reset(wire)),
            FaultKind::TargetKilled => self.crash_target(Crash::Process),
            FaultKind::TargetPowerLost => self.crash_target(Crash::Power),
            FaultKind::InitiatorKilled => self.crash_initiator(Crash::Process),
            FaultKind::InitiatorPowerLost => self.crash_initiator(Crash::Power),
            FaultKind::DeviceRemoved => self.remove_device(),
            FaultKind::Stall => self.stall(),
            FaultKind::ClockJump => self.now += Nanos::from_millis(self.rng.u64(100..20_000)),
            FaultKind::SessionDisconnected => self.disconnect_session(),
            FaultKind::PathCycled => self.cycle_path(),
            FaultKind::BadNetwork => self.worsen_network(),
            FaultKind::DiskErrors => self.fail_disks(),
            FaultKind::DiskHangs => self.hang_disks(),
            FaultKind::RudePeer => self.be_rude(),
            FaultKind::HostileClient => self.corrupt(Side::Client),
            FaultKind::HostileTarget => self.corrupt(Side::Server),
        }
    }

    /// Puts one thing right.
    pub(crate) fn repair(&mut self, repair: &Repair) {
        match *repair {
            Repair::Heal(src, dst) => self.network.heal(src, dst),
            Repair::StartTarget => {
                self.network.restart(self.target.ip);
                self.target.start(&self.network);
            }
            Repair::StartInitiator(nth) => {
                let seed = self.rng.u64(..);
                let host = &mut self.initiators[nth];
                self.network.restart(host.ip);
                host.start(&self.network, seed, self.now);
            }
            Repair::ReturnDevice(ip) => self.network.return_device(ip),
            Repair::ReconnectPath(nth) => self.initiators[nth].reconnect_path(self.now),
            Repair::Resume(actor) => self.stalled.retain(|stalled| *stalled != actor),
            Repair::GoodNetwork => self.network.set_plan(self.scenario.plan.clone()),
            Repair::ResumeDisks => self.target.resume(),
            Repair::MendDisks => self.target.mend(),
        }
    }

    fn later(&mut self, span_ms: std::ops::Range<u64>, repair: Repair) {
        let at = self.now + Nanos::from_millis(self.rng.u64(span_ms));
        self.repairs.push((at, repair));
    }

    fn cut(&mut self, both_ways: bool) {
        let client = self.initiators[self.rng.usize(..self.initiators.len())].ip;
        let target = self.target.ip;
        let mut ways = vec![(client, target), (target, client)];
        self.rng.shuffle(&mut ways);
        ways.truncate(if both_ways { 2 } else { 1 });
        for (src, dst) in ways {
            self.network.cut(src, dst);
            self.later(1..8_000, Repair::Heal(src, dst));
        }
    }

    fn some_connection(&mut self, which: impl Fn(&Connection) -> bool) -> Option<Connection> {
        let mut connections = self.network.connections();
        connections.retain(which);
        self.rng.choice(connections)
    }

    fn on_some_wire(&mut self, act: impl FnOnce(&mut Self, WireId)) {
        if let Some(connection) = self.some_connection(|_| true) {
            act(self, connection.wire);
        }
    }

    fn crash_target(&mut self, crash: Crash) {
        if self.target.is_running() {
            self.target.crash(&self.network, crash);
            self.later(10..5_000, Repair::StartTarget);
        }
    }

    fn crash_initiator(&mut self, crash: Crash) {
        let nth = self.rng.usize(..self.initiators.len());
        if self.initiators[nth].is_running() {
            self.count_jobs(nth);
            self.initiators[nth].crash(&self.network, crash, &mut self.disks);
            self.later(10..5_000, Repair::StartInitiator(nth));
        }
    }

    fn remove_device(&mut self) {
        let nth = self.rng.usize(..=self.initiators.len());
        let ip = self
            .initiators
            .get(nth)
            .map_or(self.target.ip, |host| host.ip);
        self.network.remove_device(ip);
        self.later(10..5_000, Repair::ReturnDevice(ip));
    }

    fn stall(&mut self) {
        let nth = self.rng.usize(..=self.initiators.len());
        let host = self.initiators.get(nth);
        let cores = host.map_or(self.scenario.target_cores, |host| host.spec.cores);
        let actor = |core| match host {
            None => Actor::Target(core),
            Some(_) => Actor::Initiator(nth, core),
        };
        let mut actors: Vec<_> = (0..usize::from(cores)).map(actor).collect();
        if self.rng.bool() {
            let only = self.rng.usize(..actors.len());
            actors = vec![actors[only]];
        }
        for actor in actors {
            self.stalled.push(actor);
            self.later(1..8_000, Repair::Resume(actor));
        }
    }

    fn disconnect_session(&mut self) {
        let nth = self.rng.usize(..self.initiators.len());
        self.target.disconnect(&self.initiators[nth].name);
    }

    fn cycle_path(&mut self) {
        let nth = self.rng.usize(..self.initiators.len());
        if self.initiators[nth].is_mapped() {
            self.initiators[nth].disconnect_path();
            self.later(1..3_000, Repair::ReconnectPath(nth));
        }
    }

    fn worsen_network(&mut self) {
        let plan = bad_plan(&mut self.rng, &self.scenario.plan);
        self.network.set_plan(plan);
        self.later(10..5_000, Repair::GoodNetwork);
    }

    fn fail_disks(&mut self) {
        let num = self.rng.u32(1..10);
        self.target.inject(ErrorType::Failure, num);
        self.later(10..3_000, Repair::MendDisks);
    }

    fn hang_disks(&mut self) {
        let num = self.rng.u32(1..10);
        self.target.inject(ErrorType::Pending, num);
        self.later(10..5_000, Repair::ResumeDisks);
        self.later(5_000..6_000, Repair::MendDisks);
    }

    /// What the protocol says is ignored, or ends the path, and can do nothing else.
    fn be_rude(&mut self) {
        let Some(connection) = self.some_connection(|connection| connection.up) else {
            return;
        };
        let injection = match self.rng.u8(..4) {
            0 => Injection::Imm(0x7000_0000 | self.rng.u32(..1 << 28)),
            1 => Injection::Imm(0x0FFF_FFFF),
            2 => Injection::Imm(0x1007_FFFF),
            _ => Injection::Send {
                bytes: vec![0xFF; self.rng.usize(9..300)],
                imm: None,
            },
        };
        let from = if self.rng.bool() {
            Side::Client
        } else {
            Side::Server
        };
        self.network.inject(connection.wire, from, injection);
    }

    fn corrupt(&mut self, from: Side) {
        let hostile = self.initiators.iter().find(|host| host.spec.is_hostile);
        let Some(ip) = hostile.map(|host| host.ip) else {
            return;
        };
        if let Some(connection) = self.some_connection(|wire| wire.client.ip() == ip) {
            let messages = self.rng.u32(1..5);
            self.network.corrupt(connection.wire, from, messages);
        }
    }
}

fn bad_plan(rng: &mut Rng, plan: &FaultPlan) -> FaultPlan {
    let mut bad = plan.clone();
    let often = PerMillion(rng.u32(1..200_000));
    match rng.u8(..6) {
        0 => bad.latency_ns = 1_000_000..=rng.u64(2_000_000..400_000_000),
        1 => bad.completion_delay_ns = 0..=rng.u64(1_000_000..100_000_000),
        2 => bad.in_flight_bytes_max = rng.usize(1..20_000),
        3 => bad.connect_reject = often,
        4 => bad.connect_loss = often,
        _ => {
            bad.reset = PerMillion(rng.u32(1..5_000));
            bad.silent_drop = PerMillion(rng.u32(1..5_000));
        }
    }
    bad
}
