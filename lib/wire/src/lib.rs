//! Byte layouts of RTRS and RNBD messages and of the immediate.
//!
//! Every message is a `Copy` value with the field's own names and types. `to_bytes` (or `encode`,
//! where the length varies) gives its bytes on the wire; `decode` takes bytes of a peer and either
//! gives the value or a [`DecodeError`] that names the field and its limit. A decoder reads only
//! its input, ignores padding, reserved fields and what follows a name's NUL (Linux clients send
//! whatever was on their stack there), and never panics.
//!
//! Integers are little endian and unaligned. The immediate is an ordinary number here; the fabric
//! puts it on the wire in network order.
//!
//! Layouts: protocol.md sections 2 to 5.1 and 9.2 to 9.7, as of kernels 6.1 to 7.0. This crate
//! allocates nothing and knows no I/O and no state: what is legal *now* is for the state machines.

#![forbid(unsafe_code)]

mod error;
pub mod extension;
mod imm;
pub mod limits;
mod name;
pub mod rnbd;
pub mod rtrs;

pub use error::DecodeError;
pub use imm::{Imm, ImmLayout};
pub use name::{Name, NameError};

/// Runs every decoder over `bytes`, for fuzzers: none may panic or read past the end.
pub fn decode_any(bytes: &[u8]) {
    let _ = rtrs::ConReq::decode(bytes);
    let _ = rtrs::ConRsp::decode(bytes);
    let _ = rtrs::InfoReq::decode(bytes);
    let _ = rtrs::InfoRsp::decode(bytes).map(|info| info.descriptors().count());
    let _ = rtrs::RkeyRsp::decode(bytes);
    let _ = rtrs::Request::decode(bytes);
    let _ = rnbd::Request::decode(bytes);
    let _ = rnbd::SessInfoRsp::decode(bytes);
    let _ = rnbd::OpenRsp::decode(bytes);
    if let Some((value, rest)) = bytes.split_first_chunk() {
        let queue_depth = rest
            .first_chunk()
            .map_or(1, |depth| u16::from_le_bytes(*depth));
        if let Some(layout) = ImmLayout::new(queue_depth) {
            let _ = layout.decode(u32::from_be_bytes(*value));
        }
    }
}
