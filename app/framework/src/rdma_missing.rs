//! What `rdma` is where this program was built without it.

use std::rc::Rc;

use rnbd_bdev::ConfigCall;
use rnbd_rpc::RpcError;
use serde_json::Value;

use crate::address::TrType;
use crate::system::System;

#[derive(Debug, Default)]
pub(crate) struct Rdma;

impl Rdma {
    pub(crate) fn set_options(&self, _params: Value) -> Result<(), RpcError> {
        TrType::Rdma.check_available()
    }

    pub(crate) fn devices(&self) -> Result<Value, RpcError> {
        TrType::Rdma.check_available().map(|()| Value::Null)
    }

    pub(crate) fn reset(&self, _name: &str) -> Result<(), RpcError> {
        TrType::Rdma.check_available()
    }

    pub(crate) fn config(&self) -> Option<ConfigCall> {
        None
    }
}

pub(crate) fn listen(_system: &Rc<System>) {}
