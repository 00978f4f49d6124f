//! The state of the network and its agenda.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use fastrand::Rng;
use rnbd_base::Nanos;

use super::conn::{Conn, Core};
use super::plan::FaultPlan;
use super::sight::{Seen, Sight};
use super::wire::{Body, Message, Side, Wire, WireId};
use crate::types::ConnId;

/// One fabric of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FabricId(pub(super) u64);

/// What happens when its time comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    /// The oldest message that this side sent arrives.
    Deliver(WireId, Side),
    /// The oldest acknowledgement for what this side sent arrives.
    Acknowledge(WireId, Side),
    /// This side has heard nothing for long.
    Retry(WireId, Side),
    ConnectTimeout(WireId),
    AnswerTimeout(WireId),
    /// A key of a fabric closes, and the operation that asked for it completes.
    Invalidate(FabricId, ConnId, u64, Option<u32>),
    /// A completion shows.
    Show,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub(super) is_up: bool,
    pub(super) has_device: bool,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) rng: Rng,
    pub(super) plan: FaultPlan,
    pub(super) now: Nanos,
    agenda: BTreeMap<(Nanos, u64), Timer>,
    ids: u64,
    /// By address.
    pub(super) hosts: BTreeMap<IpAddr, Host>,
    /// Further addresses of hosts, and the first of each.
    pub(super) aliases: BTreeMap<IpAddr, IpAddr>,
    pub(super) cores: BTreeMap<FabricId, Core>,
    pub(super) wires: BTreeMap<WireId, Wire>,
    pub(super) cuts: BTreeSet<(IpAddr, IpAddr)>,
    /// How much longer than the plan says a message takes between two addresses.
    pub(super) delays: BTreeMap<(IpAddr, IpAddr), Nanos>,
    /// What went over the network, if somebody wants to know.
    sights: Option<Vec<Sight>>,
}

impl Net {
    pub(super) fn new(seed: u64, plan: FaultPlan) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            plan,
            now: Nanos::ZERO,
            agenda: BTreeMap::new(),
            ids: 0,
            hosts: BTreeMap::new(),
            aliases: BTreeMap::new(),
            cores: BTreeMap::new(),
            wires: BTreeMap::new(),
            cuts: BTreeSet::new(),
            delays: BTreeMap::new(),
            sights: None,
        }
    }

    /// A number that was not given out before.
    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn host(&mut self, ip: IpAddr) -> &mut Host {
        self.hosts.entry(ip).or_insert(Host {
            is_up: true,
            has_device: true,
        })
    }

    /// The first address of the host that has this one.
    pub(super) fn owner(&self, ip: IpAddr) -> IpAddr {
        self.aliases.get(&ip).copied().unwrap_or(ip)
    }

    /// All addresses of a host.
    pub(super) fn addresses(&self, ip: IpAddr) -> Vec<IpAddr> {
        let first = self.owner(ip);
        let further = self.aliases.iter().filter(|(_, of)| **of == first);
        std::iter::once(first)
            .chain(further.map(|(ip, _)| *ip))
            .collect()
    }

    /// Whether packets can reach the host by this address.
    pub(super) fn is_reachable(&self, ip: IpAddr) -> bool {
        let host = self.hosts.get(&ip);
        host.is_some_and(|host| host.is_up && host.has_device)
    }

    pub(super) fn conn_mut(&mut self, fabric: FabricId, id: ConnId) -> Option<&mut Conn> {
        self.cores.get_mut(&fabric)?.conn_mut(id)
    }

    pub(super) fn next_event(&self) -> Option<Nanos> {
        self.agenda.keys().next().map(|&(at, _)| at)
    }

    /// Lets everything happen that is due at `now`, in the order of its time.
    pub(super) fn run_until(&mut self, now: Nanos) {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= now
        {
            let ((at, _), timer) = entry.remove_entry();
            self.now = self.now.max(at);
            self.on_timer(timer);
        }
        self.now = self.now.max(now);
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Deliver(wire, from) => self.deliver(wire, from),
            Timer::Acknowledge(wire, to) => self.acknowledge(wire, to),
            Timer::Retry(wire, from) => self.on_retry_timeout(wire, from),
            Timer::ConnectTimeout(wire) => self.on_connect_timeout(wire),
            Timer::AnswerTimeout(wire) => self.on_answer_timeout(wire),
            Timer::Invalidate(fabric, conn, seq, rkey) => {
                self.on_invalidated(fabric, conn, seq, rkey);
            }
            Timer::Show => (),
        }
    }

    pub(super) fn at(&mut self, time: Nanos, timer: Timer) {
        let id = self.next_id();
        self.agenda.insert((time, id), timer);
    }

    pub(super) fn after(&mut self, span: Nanos, timer: Timer) {
        self.at(self.now + span, timer);
    }

    fn draw(&mut self, range: RangeInclusive<u64>) -> Nanos {
        Nanos(self.rng.u64(range))
    }

    pub(super) fn latency(&mut self) -> Nanos {
        let range = self.plan.latency_ns.clone();
        self.draw(range)
    }

    /// How long something takes on this wire.
    pub(super) fn latency_from(&mut self, id: WireId, from: Side) -> Nanos {
        let ends = |wire: &Wire| (wire.host(from), wire.host(from.other()));
        let way = self.wires.get(&id).map(ends);
        let extra = way.and_then(|way| self.delays.get(&way));
        extra.copied().unwrap_or(Nanos::ZERO) + self.latency()
    }

    pub(super) fn completion_delay(&mut self) -> Nanos {
        let range = self.plan.completion_delay_ns.clone();
        self.draw(range)
    }

    /// From now on, or no more, what happens is remembered.
    pub(super) fn watch(&mut self, on: bool) {
        self.sights = on.then(Vec::new);
    }

    pub(super) fn take_sights(&mut self) -> Vec<Sight> {
        self.sights.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn note(&mut self, wire: WireId, what: Seen) {
        if let Some(sights) = &mut self.sights {
            sights.push(Sight { wire, what });
        }
    }

    /// Puts something onto a wire, behind what `from` sent before.
    pub(super) fn send(&mut self, id: WireId, from: Side, body: Body) {
        let arrival = self.now + self.latency_from(id, from);
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let direction = wire.direction(from);
        let arrives = arrival.max(direction.last_arrival);
        direction.last_arrival = arrives;
        direction.queue.push_back(Message { arrives, body });
        self.at(arrives, Timer::Deliver(id, from));
    }

    /// Whether the network lets something pass on the wire from this side to the other.
    pub(super) fn passes(&self, wire: &Wire, from: Side) -> bool {
        let (src, dst) = (wire.host(from), wire.host(from.other()));
        !wire.dead && self.is_reachable(dst) && !self.cuts.contains(&(src, dst))
    }

    /// Tries again whatever waits on wires for which `which` holds.
    pub(super) fn kick(&mut self, which: impl Fn(&Wire) -> bool) {
        let wires: Vec<_> = self
            .wires
            .iter()
            .filter(|(_, wire)| which(wire))
            .map(|(id, _)| *id)
            .collect();
        for id in wires {
            for side in [Side::Client, Side::Server] {
                let latency = self.latency();
                self.after(latency, Timer::Deliver(id, side));
                self.after(latency, Timer::Acknowledge(id, side));
            }
        }
    }
}
