//! The protocol of the server: exports, access, sessions, devices, I/O.
//!
//! [`Exports`] is what may be opened and who has what open; all cores share it and touch it only
//! when devices are opened and closed. A [`Session`] belongs to one core: it turns each user
//! message into a [`Command`] that needs no further check, and knows which devices its client has.
//! Neither does any I/O.

mod acl;
mod exports;
mod io;
mod open_rsp;
mod search_path;
mod session;

pub use acl::{Cidr, HostRule, ParseCidrError, permits};
pub use exports::{
    Export, ExportError, ExportInfo, ExportView, Exports, Grant, Lookup, OpenInfo, OpenRequest,
    ServiceOptions, Ticket,
};
pub use io::{DeviceView, Plan};
pub use open_rsp::describe;
pub use search_path::{OpenPath, SearchPathError, resolve};
pub use session::{Closing, Command, Device, DeviceState, Session, StartOpen};

#[cfg(test)]
mod tests;
