//! The fabrics that a program can be built with, each for one core.

use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
use rnbd_rpc::RpcError;

use crate::target::fabric_error;

pub(crate) fn tcp() -> Result<TcpFabric, RpcError> {
    TcpFabric::new(TcpConfig::default()).map_err(|error| fabric_error(&error))
}
