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

pub(crate) fn prepare_process() {}

pub(crate) fn listen(_system: &Rc<System>) {}

/// Nothing can be said of devices.
#[cfg(test)]
pub(crate) fn example() -> Option<Value> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_says_what_is_missing() {
        let rdma = Rdma;
        let answers = [
            rdma.set_options(Value::Null),
            rdma.devices().map(|_| ()),
            rdma.reset("rxe0"),
        ];
        for answer in answers {
            let error = answer.expect_err("there is no RDMA here");
            assert_eq!(error.code, -95);
            assert!(error.message.contains("libibverbs-dev"), "{error}");
        }
    }
}
