//! The server side of a session.
//!
//! [`Sessions`] holds what one core serves: it decides about connection requests and owns every
//! [`Path`], the machine that follows one client's path from its first connection to its end.
//! Both answer at once and by value: the caller tells what arrived, gets back what to do, and does
//! it on a fabric. Nothing here allocates per request.
//!
//! ```text
//!  request arrives     Path::handle_imm      -> Inbound::Request   (plain)
//!                                            -> Inbound::Revoke    (NEW_RKEY) ... handle_revoked
//!                                               or handle_open_header, if it may stay open
//!  its header copied   Path::handle_header   -> Request, or an errno to answer
//!  I/O done            Path::answer          -> Answer: what to post, and where
//! ```

mod answer;
mod config;
mod counters;
mod fence;
mod path;
mod refusal;
mod sessions;
mod slot;
mod state;
mod table;
mod violation;

pub use answer::{Answer, DataWrite};
pub use config::{Config, ConfigError, ExtensionConfig};
pub use counters::PathCounters;
pub use fence::{Confirmation, Fence, Tokens};
pub use path::{Inbound, Path, TimerAction};
pub use refusal::Refusal;
pub use sessions::{
    Accepted, Decision, InfoAccepted, PathKey, Removed, Route, Session, SessionKey, Sessions,
};
pub use slot::{Direction, Request};
pub use state::PathState;
pub use violation::{CloseCause, Violation};

#[cfg(test)]
mod tests;
