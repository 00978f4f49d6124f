use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::Nanos;

use super::conn::{Conn, Core};
use super::fabric::SimFabric;
use super::net::{FabricId, Net, Timer};
use super::plan::FaultPlan;
use super::sight::{Seen, Sight};
use super::wire::{Body, End, OpMessage, Payload, RemoteOp, Side, Wire, WireId};
use crate::types::{Addr, CloseReason, ConnId, RemoteAddr};

/// How a host's software ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies; its operating system tells the peers.
    Process,
    /// The power fails; nobody is told.
    Power,
}

/// A connection, for faults to aim at.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Which.
    pub wire: WireId,
    /// Where it comes from.
    pub client: Addr,
    /// Where it goes.
    pub server: Addr,
    /// Whether it was accepted and that is known to the client.
    pub up: bool,
}

/// What a hostile peer sends that its software never would.
#[derive(Clone, Debug)]
pub enum Injection {
    /// A write without bytes with this immediate.
    Imm(u32),
    /// A write with immediate.
    Write {
        /// Where to.
        remote: RemoteAddr,
        /// What.
        bytes: Vec<u8>,
        /// With which immediate.
        imm: u32,
    },
    /// A send, with or without immediate.
    Send {
        /// What.
        bytes: Vec<u8>,
        /// With which immediate.
        imm: Option<u32>,
    },
}

/// Hosts, the network between them, and what goes wrong there. Clones are handles to the same.
#[derive(Clone)]
pub struct SimNetwork {
    shared: Arc<Mutex<Net>>,
}

impl SimNetwork {
    /// A network without hosts, whose every choice follows from `seed`.
    #[must_use]
    pub fn new(seed: u64, plan: FaultPlan) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Net::new(seed, plan))),
        }
    }

    /// A new fabric on the host `ip`, which may have several.
    #[must_use]
    pub fn fabric(&self, ip: IpAddr) -> SimFabric {
        let mut net = self.lock();
        net.host(ip);
        let id = FabricId(net.next_id());
        net.cores.insert(id, Core::new(ip));
        SimFabric::new(self.clone(), id)
    }

    /// Gives the host `ip` a further address, on a network device of its own.
    pub fn add_address(&self, ip: IpAddr, further: IpAddr) {
        let mut net = self.lock();
        net.host(ip);
        net.host(further);
        let first = net.owner(ip);
        net.aliases.insert(further, first);
    }

    /// From now on messages from `src` to `dst` take so much longer.
    pub fn set_delay(&self, src: IpAddr, dst: IpAddr, delay: Nanos) {
        self.lock().delays.insert((src, dst), delay);
    }

    /// Whether to remember what happens, for [`SimNetwork::take_sights`].
    pub fn watch(&self, on: bool) {
        self.lock().watch(on);
    }

    /// What has happened since this was last asked, in its order.
    #[must_use]
    pub fn take_sights(&self) -> Vec<Sight> {
        self.lock().take_sights()
    }

    /// When something happens next in the network.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        self.lock().next_event()
    }

    /// Lets everything happen in the network that is due, whether or not a fabric is polled.
    pub fn advance(&self, now: Nanos) {
        self.lock().run_until(now);
    }

    /// From now on this goes wrong by itself.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.lock().plan = plan;
    }

    /// Nothing passes from `src` to `dst` until [`SimNetwork::heal`]; it waits, or its sender
    /// gives up.
    pub fn cut(&self, src: IpAddr, dst: IpAddr) {
        self.lock().cuts.insert((src, dst));
    }

    /// Ends a cut.
    pub fn heal(&self, src: IpAddr, dst: IpAddr) {
        let mut net = self.lock();
        net.cuts.remove(&(src, dst));
        net.kick(|wire| wire.host(Side::Client) == dst || wire.host(Side::Server) == dst);
    }

    /// Ends all cuts.
    pub fn heal_all(&self) {
        let mut net = self.lock();
        net.cuts.clear();
        net.kick(|_| true);
    }

    /// All connections that somebody holds.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let describe = |(id, wire): (&WireId, &Wire)| Connection {
            wire: *id,
            client: wire.addr(Side::Client),
            server: wire.addr(Side::Server),
            up: wire.up,
        };
        self.lock().wires.iter().map(describe).collect()
    }

    /// From now on nothing passes on the connection in either direction, and nobody is told.
    pub fn drop_silently(&self, wire: WireId) {
        self.lock().drop_silently(wire);
    }

    /// Both ends learn that the connection broke.
    pub fn reset(&self, wire: WireId) {
        self.lock().reset(wire);
    }

    /// Sends something to the peer of `from`, in its name, behind what it has sent.
    pub fn inject(&self, wire: WireId, from: Side, injection: Injection) {
        let (op, bytes) = match injection {
            Injection::Imm(imm) => (RemoteOp::WriteImm(RemoteAddr::NONE, imm), Vec::new()),
            Injection::Write { remote, bytes, imm } => (RemoteOp::WriteImm(remote, imm), bytes),
            Injection::Send { bytes, imm } => {
                let invalidate = None;
                (RemoteOp::Send { imm, invalidate }, bytes)
            }
        };
        let message = OpMessage {
            seq: None,
            op,
            payload: Payload::Copied(bytes),
        };
        self.lock().send(wire, from, Body::Op(message));
    }

    /// Whether what `from` sends finds no receives, as at a peer that does not post them again:
    /// it waits, for as long as it takes.
    pub fn starve(&self, wire: WireId, from: Side, is_starved: bool) {
        let mut net = self.lock();
        if let Some(wire) = net.wires.get_mut(&wire) {
            wire.direction(from).starved = is_starved;
        }
        net.after(Nanos::ZERO, Timer::Deliver(wire, from));
    }

    /// The next `messages` with bytes that `from` sends arrive with some of them changed, as from
    /// software that means harm.
    pub fn corrupt(&self, wire: WireId, from: Side, messages: u32) {
        if let Some(wire) = self.lock().wires.get_mut(&wire) {
            wire.direction(from).corrupted = messages;
        }
    }

    /// The software of a host ends: its fabrics, connections and keys are gone. The fabrics'
    /// values do nothing any more. With [`Crash::Power`] the host is down until
    /// [`SimNetwork::restart`].
    pub fn crash(&self, ip: IpAddr, crash: Crash) {
        let mut net = self.lock();
        for fabric in net.fabrics_of(ip) {
            net.end_fabric(fabric, crash);
        }
        for ip in net.addresses(ip) {
            net.host(ip).is_up = crash == Crash::Process;
        }
    }

    /// The host is up again; new fabrics are to be made for it.
    pub fn restart(&self, ip: IpAddr) {
        let mut net = self.lock();
        for ip in net.addresses(ip) {
            net.host(ip).is_up = true;
            net.kick(|wire| wire.host(Side::Client) == ip || wire.host(Side::Server) == ip);
        }
    }

    /// The network device of an address goes away, with all connections over it. Listeners stay
    /// as intentions.
    pub fn remove_device(&self, ip: IpAddr) {
        let mut net = self.lock();
        net.host(ip).has_device = false;
        for (fabric, conn) in net.connections_over(ip) {
            net.close(fabric, conn, CloseReason::Failed("the device was removed"));
        }
    }

    /// The device is back.
    pub fn return_device(&self, ip: IpAddr) {
        let mut net = self.lock();
        net.host(ip).has_device = true;
        net.kick(|wire| wire.host(Side::Client) == ip || wire.host(Side::Server) == ip);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Net> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Net {
    fn fabrics_of(&self, ip: IpAddr) -> Vec<FabricId> {
        let host = self.owner(ip);
        let of_host = |(id, core): (&FabricId, &Core)| (core.host == host).then_some(*id);
        self.cores.iter().filter_map(of_host).collect()
    }

    /// The ends that the host of an address has of the connections to and from that address.
    fn connections_over(&self, ip: IpAddr) -> Vec<(FabricId, ConnId)> {
        let is_over = |conn: &Conn| {
            let wire = self.wires.get(&conn.wire);
            wire.is_none_or(|wire| wire.host(conn.side) == ip)
        };
        let fabrics = self.fabrics_of(ip).into_iter();
        let conns = fabrics.flat_map(|fabric| {
            let conns = self.cores[&fabric].conns();
            conns.map(move |(id, conn)| (fabric, id, conn))
        });
        conns
            .filter(|(_, _, conn)| is_over(conn))
            .map(|(fabric, id, _)| (fabric, id))
            .collect()
    }

    /// A fabric ends with all that it has.
    pub(super) fn end_fabric(&mut self, fabric: FabricId, crash: Crash) {
        if self.cores.remove(&fabric).is_none() {
            return;
        }
        let side_of = |wire: &Wire| {
            [Side::Client, Side::Server]
                .into_iter()
                .find(|side| matches!(wire.end(*side), End::At(at, _) if at == fabric))
        };
        let ends: Vec<_> = self
            .wires
            .iter()
            .filter_map(|(id, wire)| Some((*id, side_of(wire)?)))
            .collect();
        for (id, side) in ends {
            self.note(id, Seen::Closed(side));
            self.capture(id, side);
            match crash {
                Crash::Process => {
                    self.set_end(id, side, End::Gone);
                    self.send(id, side, Body::Close);
                }
                Crash::Power => self.set_end(id, side, End::Vanished),
            }
            self.drop_if_over(id);
        }
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.lock();
        write!(
            f,
            "SimNetwork({} fabrics, {} connections, {:?})",
            net.cores.len(),
            net.wires.len(),
            net.now
        )
    }
}
