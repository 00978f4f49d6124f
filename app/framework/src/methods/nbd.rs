use std::rc::Rc;

use rnbd_rpc::RpcResult;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Methods, NoParams};
use crate::nbd::{Export, NbdExports, NbdParams};
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add("nbd_start_export", |system, params: NbdParams| async move {
        Ok(json!(NbdExports::start(&system, params)?))
    });
    methods.add("nbd_stop_export", stop_export);
    methods.add_sync("nbd_get_exports", |system, NoParams {}| Ok(exports(system)));
}

#[derive(Deserialize)]
struct StopExport {
    address: String,
}

async fn stop_export(system: Rc<System>, params: StopExport) -> RpcResult {
    system.nbd.stop(&params.address).await?;
    Ok(json!(true))
}

fn exports(system: &System) -> Value {
    let describe = |export: &Rc<Export>| {
        let handle = &export.handle;
        json!({
            "address": handle.address().to_string(),
            "uri": handle.uri(),
            "name": handle.export_name(),
            "bdev_name": handle.bdev_name(),
            "read_only": handle.read_only(),
            "connections": handle.connections(),
        })
    };
    system.nbd.list().iter().map(describe).collect()
}
