//! The nouns of the fabric vocabulary. All are plain values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use rnbd_base::{Gid, Host};
use rnbd_mem::Span;
use thiserror::Error;

/// Declares a handle: a slot index and the generation of that slot, so that an old handle never
/// reaches what took its place.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name {
            /// Slot in the fabric's table; small and dense, so callers may index by it.
            pub index: u32,
            /// How often the slot was taken.
            pub generation: u32,
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}.{})"), self.index, self.generation)
            }
        }
    };
}

handle! {
    /// A connection of this fabric, in whatever state.
    ConnId
}
handle! {
    /// A listening address.
    ListenerId
}
handle! {
    /// A protection domain: connections, memory regions and windows of one domain can reach each
    /// other, and nothing else can.
    DomainId
}
handle! {
    /// A registered memory region.
    MrId
}
handle! {
    /// A memory window: a key that opens a part of a region, until it is invalidated.
    WindowId
}

/// Where a fabric connects to or listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addr {
    /// IPv4 or IPv6 with a port (`tcp`, `verbs`; the simulator uses it as a name).
    Ip(SocketAddr),
    /// An address of `InfiniBand` itself (`verbs`, where the device is `InfiniBand`).
    Gid {
        /// Of a port of the device.
        gid: Gid,
        /// The lower bits of the service id, which are chosen like an IP port.
        port: u16,
    },
}

impl Addr {
    /// A port of a host.
    #[must_use]
    pub fn new(host: Host, port: u16) -> Self {
        match host {
            Host::Ip(ip) => Self::Ip(SocketAddr::new(ip, port)),
            Host::Gid(gid) => Self::Gid { gid, port },
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(addr) => addr.port(),
            Self::Gid { port, .. } => *port,
        }
    }

    /// The address without the port.
    #[must_use]
    pub fn host(&self) -> Host {
        match self {
            Self::Ip(addr) => Host::Ip(addr.ip()),
            Self::Gid { gid, .. } => Host::Gid(*gid),
        }
    }

    /// The address without the port, for those who have no GIDs: one becomes an IPv6 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Ip(addr) => addr.ip(),
            Self::Gid { gid, .. } => gid.as_ipv6().into(),
        }
    }

    /// Whether it is one of `InfiniBand` itself.
    #[must_use]
    pub fn is_gid(&self) -> bool {
        matches!(self, Self::Gid { .. })
    }

    /// The IP address and port.
    ///
    /// # Errors
    /// [`FabricError::Unsupported`] if it is a GID.
    pub fn socket_addr(&self) -> Result<SocketAddr, FabricError> {
        match self {
            Self::Ip(addr) => Ok(*addr),
            Self::Gid { .. } => Err(FabricError::Unsupported(
                "a GID, an address of InfiniBand itself,",
            )),
        }
    }

    /// With the port, for people: `192.0.2.1:1234`, `gid:fe80:… port 1234`.
    #[must_use]
    pub fn with_port(&self) -> String {
        match self {
            Self::Ip(addr) => addr.to_string(),
            Self::Gid { gid, port } => format!("{gid} port {port}"),
        }
    }
}

impl fmt::Display for Addr {
    /// As the kernel prints an address of a path, without the port: `ip:10.0.0.1`, `gid:fe80:…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host().in_path())
    }
}

/// What the connect, accept and reject calls carry to the peer, at most 196 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrivateData {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl PrivateData {
    /// Most bytes that a connection manager delivers.
    pub const MAX: usize = 196;
    /// Nothing.
    pub const EMPTY: Self = Self {
        bytes: [0; Self::MAX],
        len: 0,
    };

    /// A copy of `bytes`; `None` if there are more than [`PrivateData::MAX`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut data = Self {
            len: u8::try_from(bytes.len()).ok()?,
            ..Self::EMPTY
        };
        data.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(data)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateData({} bytes)", self.len)
    }
}

/// How many work requests a connection may have outstanding in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpLimits {
    /// Posted with [`crate::Fabric::post`] and not yet known to be executed.
    pub send_wrs: u32,
    /// Posted with [`crate::Fabric::post_recv`] and not yet consumed.
    pub recv_wrs: u32,
}

/// What to connect to, and how.
#[derive(Clone, Copy, Debug)]
pub struct ConnectParams {
    /// The listener's address.
    pub dst: Addr,
    /// The local address to connect from; `None` lets the routing decide.
    pub src: Option<Addr>,
    /// For the listener.
    pub private_data: PrivateData,
    /// The domain of the path's first connection, so that all share its registrations; `None`
    /// makes a new one on the device that reaches `dst`.
    pub domain: Option<DomainId>,
    /// Queue sizes.
    pub limits: QpLimits,
    /// After how many nanoseconds without an answer the attempt is given up.
    pub timeout_ns: u64,
}

/// Options of a listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted.
    pub backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 128 }
    }
}

/// What may be done to registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only local operations read and write it; windows may open parts of it.
    Local,
    /// The peer may also write it with the region's own key.
    RemoteWrite,
}

/// Kinds of memory window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// Opens memory to every connection of the domain (verbs: type 1).
    Domain,
    /// Opens memory to the connection it is bound on, and may be invalidated by the peer's send
    /// with invalidate (verbs: type 2).
    Connection,
}

/// The result of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryKey {
    /// For deregistering and for binding windows.
    pub mr: MrId,
    /// Local key, for [`Sge`].
    pub lkey: u32,
    /// Remote key; meaningful with [`Access::RemoteWrite`].
    pub rkey: u32,
}

/// Local memory of one work request.
#[derive(Clone, Copy, Debug)]
pub struct Sge {
    /// The bytes.
    pub span: Span,
    /// Local key of the region that the span lies in.
    pub lkey: u32,
}

impl Sge {
    /// No bytes.
    pub const EMPTY: Self = Self {
        span: Span::EMPTY,
        lkey: 0,
    };
}

/// Memory of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddr {
    /// Address as the peer gave it.
    pub addr: u64,
    /// Key as the peer gave it.
    pub rkey: u32,
}

impl RemoteAddr {
    /// For zero-length writes, which name no memory.
    pub const NONE: Self = Self { addr: 0, rkey: 0 };
}

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrOp {
    /// Writes the local bytes to the peer's memory; the peer is not told.
    Write(RemoteAddr),
    /// The same, then consumes one receive of the peer and delivers the immediate.
    WriteImm(RemoteAddr, u32),
    /// Fills one receive of the peer.
    Send,
    /// The same, with an immediate.
    SendImm(u32),
    /// Fills one receive of the peer and invalidates its window that has this rkey.
    SendInv(u32),
    /// Invalidates a window of ours; completes when no remote access through it can follow.
    /// Always signalled.
    Invalidate(WindowId),
}

/// One operation on a connection. Operations of a connection are executed in the order posted.
#[derive(Clone, Copy, Debug)]
pub struct WorkRequest {
    /// Returned in the completion.
    pub wr_id: u64,
    /// What to do.
    pub op: WrOp,
    /// Local bytes, one after the other; unused entries are empty.
    pub sges: [Sge; 2],
    /// Whether a completion is wanted.
    pub signaled: bool,
    /// Whether the completion of a later operation that has this too may stand for this one's: of
    /// several that are due together a fabric may report the last alone.
    pub cumulative: bool,
    /// Whether the local bytes may be taken even after the completion, whatever is in that memory
    /// then, because it is the content of a device. Lets a fabric send without a copy.
    pub lent: bool,
}

impl WorkRequest {
    /// An unsignalled operation without local bytes.
    #[must_use]
    pub fn new(op: WrOp) -> Self {
        Self {
            wr_id: 0,
            op,
            sges: [Sge::EMPTY; 2],
            signaled: false,
            cumulative: false,
            lent: false,
        }
    }

    /// With these local bytes.
    #[must_use]
    pub fn with_sge(mut self, sge: Sge) -> Self {
        self.sges[0] = sge;
        self
    }

    /// With these local bytes, `first` before `second`.
    #[must_use]
    pub fn with_sges(mut self, first: Sge, second: Sge) -> Self {
        self.sges = [first, second];
        self
    }

    /// With local bytes that may be taken at any later time ([`WorkRequest::lent`]).
    #[must_use]
    pub fn lent(mut self) -> Self {
        self.lent = true;
        self
    }

    /// With a completion that carries `wr_id`.
    #[must_use]
    pub fn signaled(mut self, wr_id: u64) -> Self {
        self.wr_id = wr_id;
        self.signaled = true;
        self
    }

    /// With a completion that may stand for others ([`WorkRequest::cumulative`]).
    #[must_use]
    pub fn cumulative(mut self) -> Self {
        self.cumulative = true;
        self
    }

    /// Bytes of all entries.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sges.iter().map(|sge| sge.span.len()).sum()
    }
}

/// What completed. Only successes are reported: whatever fails closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// On which connection.
    pub conn: ConnId,
    /// As given when posted; zero for empty receives.
    pub wr_id: u64,
    /// What it was.
    pub kind: CompletionKind,
}

/// What a completion reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionKind {
    /// A signalled operation of ours: its local bytes are free again.
    Sent,
    /// The peer's `WriteImm` arrived; its bytes are in our memory.
    WriteImm(u32),
    /// The peer's send arrived in the receive posted with this `wr_id`.
    Recv {
        /// How many bytes of the buffer it filled.
        bytes: u32,
        /// The immediate, if the send carried one.
        imm: Option<u32>,
        /// The rkey of our window that it invalidated, if any.
        invalidated: Option<u32>,
    },
}

/// What happened to a connection or a device.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A peer asks to connect. To be answered by accept or reject, by hand-over to another core's
    /// fabric, or by nothing, in which case it is closed after a time.
    ConnectRequest {
        /// Where it came in.
        listener: ListenerId,
        /// The connection to be.
        conn: ConnId,
        /// What the peer sent along.
        private_data: PrivateData,
        /// The peer's address.
        src: Addr,
        /// Our address.
        dst: Addr,
    },
    /// The connection is up. Only on the side that connected.
    Connected {
        /// Which.
        conn: ConnId,
        /// Its domain.
        domain: DomainId,
        /// What the peer's accept carried.
        private_data: PrivateData,
        /// Our address.
        src: Addr,
    },
    /// The connection is gone: nothing of it touches any memory any more, its handle is dead, and
    /// no completion or event of it follows. Exactly one per connection.
    Closed {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer said no, and why.
    Rejected(PrivateData),
    /// Nobody listens there.
    Refused,
    /// No route, or no such local address.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The peer closed it, or went away.
    PeerClosed,
    /// We closed it.
    Local,
    /// The peer broke the rules of the fabric: a key it does not have, a range outside its key,
    /// a send longer than the receive, a malformed frame. The text says which.
    Violation(&'static str),
    /// The device or the host's network failed.
    Failed(&'static str),
}

/// Why a control call failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FabricError {
    /// The address is in use.
    #[error("address {0} is in use")]
    AddrInUse(String),
    /// The address is not one of this host.
    #[error("address {0} is not available on this host")]
    AddrNotAvailable(String),
    /// The address is a GID, and no device that such addresses are for has it.
    #[error("no InfiniBand device of this host has {0}")]
    NoInfiniband(String),
    /// The handle is of nothing that exists.
    #[error("no such {0}")]
    Stale(&'static str),
    /// The fabric cannot do that.
    #[error("{0} is not supported by this transport")]
    Unsupported(&'static str),
    /// A limit was reached.
    #[error("limit of {limit} {what} reached")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u64,
    },
    /// The system refused.
    #[error("{what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        errno: rustix::io::Errno,
    },
}

/// Why a work request was not taken. Nothing of it was executed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PostError {
    /// The connection is not up; its [`Event::Closed`] follows or has been delivered.
    #[error("the connection is not up")]
    NotConnected,
    /// More work requests outstanding than [`QpLimits`] allow: a bug of the caller.
    #[error("more work requests outstanding than the connection allows")]
    OverLimit,
    /// The window is gone, or bound elsewhere.
    #[error("no such window")]
    NoWindow,
}

/// What a fabric can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// As in RPC: `TCP`, `RDMA`, `SHM`.
    pub trtype: &'static str,
    /// [`WindowKind::Domain`] works: a server can run in `NEW_RKEY` mode.
    pub domain_windows: bool,
    /// [`WindowKind::Connection`] works: a client can open a buffer per request.
    pub connection_windows: bool,
    /// Binding and invalidating windows are local and cost next to nothing.
    pub cheap_windows: bool,
    /// A client is to open each of its buffers by a window of the connection, which the peer's
    /// send closes, though that costs: its administrator wants it (protocol.md 5.11).
    pub prefers_windows: bool,
    /// Hugepages help: a device reads and writes the memory.
    pub prefers_hugepages: bool,
    /// Local bytes must lie in a region of the connection's domain. If not, any span will do as a
    /// source and the `lkey` of an [`Sge`] is ignored.
    pub needs_local_keys: bool,
}

impl Caps {
    /// Whether a client opens its buffers by windows, and not by the keys of their regions.
    #[must_use]
    pub fn opens_by_window(&self) -> bool {
        self.cheap_windows || self.prefers_windows
    }
}

/// Counters since the start, in the words of SPDK's transport statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FabricStats {
    /// Calls of poll.
    pub polls: u64,
    /// Those that found nothing.
    pub idle_polls: u64,
    /// Completions delivered.
    pub completions: u64,
    /// Work requests posted.
    pub send_wrs: u64,
    /// Times that posted work was handed to the device or the kernel.
    pub send_doorbells: u64,
    /// Receives posted.
    pub recv_wrs: u64,
    /// Times that the device or the kernel was asked for what arrived.
    pub recv_doorbells: u64,
    /// Connections closed because the peer broke the rules.
    pub violations: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_its_readers_expect() {
        let at = |host: &str| Addr::new(host.parse().unwrap(), 1234);
        let ip = at("2001:db8::1");
        assert_eq!(ip.to_string(), "ip:2001:db8::1");
        assert_eq!(ip.with_port(), "[2001:db8::1]:1234");
        let gid = at("gid:fe80::1");
        let text = "gid:fe80:0000:0000:0000:0000:0000:0000:0001";
        assert_eq!(gid.to_string(), text);
        assert_eq!(gid.with_port(), format!("{text} port 1234"));
        assert_eq!(Addr::new(gid.host(), gid.port()), gid);
    }

    #[test]
    fn who_has_no_gids_says_so() {
        let gid = Addr::new("gid:fe80::1".parse().unwrap(), 1);
        let error = gid.socket_addr().unwrap_err();
        let text = "a GID, an address of InfiniBand itself, is not supported by this transport";
        assert_eq!(error.to_string(), text);
        assert!(gid.is_gid());
    }
}
