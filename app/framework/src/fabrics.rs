//! The fabrics that a program can be built with, each for one core.

use rnbd_fabric::FabricError;
use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
#[cfg(feature = "rdma")]
use rnbd_verbs::{VerbsConfig, VerbsFabric};

pub(crate) fn tcp() -> Result<TcpFabric, FabricError> {
    TcpFabric::new(TcpConfig::default())
}

/// Takes milliseconds for each device of the host.
#[cfg(feature = "rdma")]
pub(crate) fn rdma() -> Result<VerbsFabric, FabricError> {
    VerbsFabric::new(VerbsConfig::default())
}
