//! What goes wrong when, and how it is put right.

use std::net::IpAddr;

use fastrand::Rng;
use rnbd_base::Nanos;
use rnbd_bdev::ErrorType;
use rnbd_fabric::sim::{Connection, Crash, FaultPlan, Injection, PerMillion, Side, WireId};

use crate::initiator::InitiatorHost;
use crate::net;
use crate::scenario::FaultKind;
use crate::world::World;

/// What ends a fault, when its time has come.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Heal(IpAddr, IpAddr),
    StartTarget,
    StartInitiator(usize),
    ReturnDevice(IpAddr),
    RestoreExport(usize),
    FeedReceiver(WireId, Side),
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
            FaultKind::PathCycled => self.some_initiator().disconnect_path(),
            FaultKind::PathRemoved => self.some_initiator().remove_path(),
            FaultKind::PolicyChanged => self.some_initiator().change_policy(),
            FaultKind::DiskCycled => self.cycle_disk(),
            FaultKind::Reattached => self.some_initiator().reattach(),
            FaultKind::DiskClosed => self.close_disk(),
            FaultKind::ExportRemoved => self.remove_export(),
            FaultKind::DiskGrown => self.grow_disk(),
            FaultKind::ReceivesWithheld => self.withhold_receives(),
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
                (0..self.disks.len()).for_each(|disk| self.is_exported(disk));
            }
            Repair::StartInitiator(nth) => {
                let seed = self.rng.u64(..);
                let host = &mut self.initiators[nth];
                self.network.restart(host.ip);
                host.start(&self.network, seed, self.now);
            }
            Repair::ReturnDevice(ip) => self.network.return_device(ip),
            Repair::RestoreExport(disk) => {
                self.target.restore_export(disk);
                self.is_exported(disk);
            }
            Repair::FeedReceiver(wire, from) => self.network.starve(wire, from, false),
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

    /// Some path of some client: its address and the target's.
    fn some_way(&mut self) -> (IpAddr, IpAddr) {
        let nth = self.rng.usize(..self.initiators.len());
        let path = usize::from(self.rng.u8(..self.initiators[nth].spec.paths));
        (net::client_ip(nth, path), net::target_ip(path))
    }

    fn cut(&mut self, both_ways: bool) {
        let (client, target) = self.some_way();
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
            for disk in 0..self.disks.len() {
                if crash == Crash::Power && self.scenario.is_cached(disk) {
                    self.disks[disk].lose_power();
                }
            }
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
        let (client, target) = self.some_way();
        let ip = if self.rng.bool() { client } else { target };
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

    fn some_initiator(&mut self) -> &mut InitiatorHost {
        let nth = self.rng.usize(..self.initiators.len());
        &mut self.initiators[nth]
    }

    fn cycle_disk(&mut self) {
        let nth = self.rng.usize(..self.initiators.len());
        let disk = self.rng.usize(..self.initiators[nth].spec.disks.len());
        self.initiators[nth].unmap(disk);
    }

    fn close_disk(&mut self) {
        let nth = self.rng.usize(..self.initiators.len());
        let host = &self.initiators[nth];
        if let Some(disk) = self.rng.choice(host.spec.disks.clone()) {
            self.target.close_device(&host.name, disk);
        }
    }

    fn remove_export(&mut self) {
        let disk = self.rng.usize(..self.disks.len());
        self.closing[disk] = self.target.remove_export(disk);
        self.later(10..4_000, Repair::RestoreExport(disk));
    }

    fn is_exported(&mut self, disk: usize) {
        self.closing[disk] = None;
        self.closed_since[disk] = None;
    }

    /// Notes which exports are closed by now.
    pub(crate) fn note_closed(&mut self) {
        for (disk, closing) in self.closing.iter_mut().enumerate() {
            if closing.take_if(|answer| answer.take().is_some()).is_some() {
                self.closed_since[disk] = Some(self.now);
            }
        }
    }

    /// Some users are told, others find out later.
    fn grow_disk(&mut self) {
        let disk = self.rng.usize(..self.disks.len());
        self.target.grow(disk);
        if self.rng.bool() {
            self.some_initiator().rescan();
        }
    }

    fn withhold_receives(&mut self) {
        let from = self.some_side();
        if let Some(connection) = self.some_connection(|connection| connection.up) {
            self.network.starve(connection.wire, from, true);
            self.later(10..6_000, Repair::FeedReceiver(connection.wire, from));
        }
    }

    fn some_side(&mut self) -> Side {
        if self.rng.bool() {
            Side::Client
        } else {
            Side::Server
        }
    }

    fn worsen_network(&mut self) {
        let plan = bad_plan(&mut self.rng, &self.scenario.plan);
        self.network.set_plan(plan);
        self.later(10..5_000, Repair::GoodNetwork);
    }

    fn fail_disks(&mut self) {
        let num = self.rng.u32(1..10);
        if self.rng.bool() {
            self.target.inject(ErrorType::Failure, num);
        } else {
            self.target.cut_short(num);
        }
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
        let from = self.some_side();
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
