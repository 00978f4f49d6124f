//! Reliable connections in the words of RDMA verbs.
//!
//! RTRS speaks of RDMA writes with immediate, sends with invalidate and memory windows, so that is
//! the vocabulary of [`Fabric`], and everything above is written once. `tcp` carries each
//! operation as a frame; `sim` is in memory, on virtual time, with faults by seed. No protocol
//! logic lives in a fabric.
//!
//! One value of a fabric belongs to one core and owns that core's completion queue and all
//! connections on it. Nothing blocks: connecting, accepting and closing are asked for and
//! answered later by an [`Event`].

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod domains;
mod fabric;
pub mod sim;
pub mod slab;
pub mod tcp;
mod types;

pub use fabric::Fabric;
pub use types::{
    Access, Addr, Caps, CloseReason, Completion, CompletionKind, ConnId, ConnectParams, DomainId,
    Event, FabricError, FabricStats, ListenOptions, ListenerId, MemoryKey, MrId, PostError,
    PrivateData, QpLimits, RemoteAddr, Sge, WindowId, WindowKind, WorkRequest, WrOp,
};
