use rnbd_rpc::RpcResult;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Methods, NoParams};
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("rdma_set_options", |system, params: Value| {
        system.rdma.set_options(params)?;
        Ok(json!(true))
    });
    methods.add_sync("rdma_get_devices", |system, NoParams {}| {
        system.rdma.devices()
    });
    methods.add_sync("rdma_reset_device", reset_device);
}

#[derive(Deserialize)]
struct Device {
    name: String,
}

fn reset_device(system: &System, params: Device) -> RpcResult {
    system.rdma.reset(&params.name)?;
    Ok(json!(true))
}
