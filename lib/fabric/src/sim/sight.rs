use super::wire::{Side, WireId};
use crate::types::PrivateData;

/// Something that happened on a connection, for an observer who knows the protocol above.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// On which connection.
    pub wire: WireId,
    /// What.
    pub what: Seen,
}

/// What can be seen of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Seen {
    /// It was asked for, with this private data.
    Requested(PrivateData),
    /// This side handed an operation with an immediate to the network.
    Sent {
        /// Who.
        from: Side,
        /// The immediate.
        imm: u32,
    },
    /// What this side sent, and did not only have injected, was executed at the other.
    Taken {
        /// Who sent it.
        from: Side,
        /// The immediate.
        imm: u32,
    },
    /// This side ended it, or has learned of its end.
    Closed(Side),
}
