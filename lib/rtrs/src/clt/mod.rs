//! The client side: a [`Session`] on its home core, and a [`Channel`] on every core that does I/O.
//!
//! ```text
//!        home core                                   every core that does I/O
//!  ┌───────────────────────┐   ToChannel         ┌───────────────────────────┐
//!  │ Session               │ ──────────────────> │ Channel                   │
//!  │  paths: handshake,    │   FromChannel       │  its connection per path  │
//!  │  heartbeat, reconnect │ <────────────────── │  its share of the permits │
//!  │  connection 0,        │                     │  its chunks, requests     │
//!  │  control requests     │                     │                           │
//!  └───────────────────────┘                     └───────────────────────────┘
//! ```
//!
//! The session decides, the channel does I/O; no request ever crosses cores. The connection with
//! `cid` k + 1 of a path belongs to channel k. Chunk indices (permits) are split once per session:
//! see [`PermitPlan`].
//!
//! # What becomes of the requests of a lost path
//!
//! A channel hands them back only when the connection's end is final, so that nothing can touch
//! their buffers any more: see [`Ended`]. What was sent and not answered may or may not have been
//! executed, and may even still be executing. The user may send it again only after the path came
//! up again: our own target accepts the same path only when the I/O of its previous incarnation has
//! ended, so the repetition cannot be overtaken by the original. A Linux server gives the same
//! guarantee, because it refuses a path uuid until the old incarnation was drained.

mod channel;
mod config;
mod context;
mod credit;
mod error;
mod fence;
mod lane;
mod messages;
mod outputs;
mod params;
mod path;
mod path_state;
mod permits;
mod policy;
mod reconnect;
mod request;
mod session;
mod wr_id;

pub use channel::{Channel, ChannelAction};
pub use config::{ReconnectPolicy, SessionConfig};
pub use error::{PathError, Violation};
pub use fence::{FenceCounters, FencedBy};
pub use lane::{Arrival, BeginError, Ended, Step};
pub use messages::{Attempt, FromChannel, PathIndex, ServerId, ToChannel};
pub use outputs::{PathInfo, QueueSizes, SessionAction, SessionEvent};
pub use params::{Chunk, ChunkTable, PathParams};
pub use path_state::PathState;
pub use permits::{PermitPlan, PermitRange, QueueTooShallow};
pub use policy::{PathPolicy, Policy};
pub use request::{Direction, Done, Exposure, Invalidation, Post, Request};
pub use session::{Session, TooManyPaths};
pub use wr_id::WrId;

#[cfg(test)]
mod tests;
