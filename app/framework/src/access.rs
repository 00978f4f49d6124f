use rnbd_wire::rnbd::AccessMode;
use serde::Deserialize;

/// An access mode as RPC writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Access {
    Ro,
    Rw,
    Migration,
}

impl From<Access> for AccessMode {
    fn from(access: Access) -> Self {
        match access {
            Access::Ro => Self::ReadOnly,
            Access::Rw => Self::ReadWrite,
            Access::Migration => Self::Migration,
        }
    }
}
