mod modules;
mod options;
mod stats;

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::pin_mut;
use rnbd_base::Errno;
use rnbd_bdev::{BdevInfo, CreateError, RegistryError};
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::json;

use super::{Methods, NoParams};
use crate::reply::reply;
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add("bdev_get_bdevs", get_bdevs);
    methods.add_sync("bdev_wait_for_examine", |_, NoParams {}| Ok(json!(true)));
    modules::register(methods);
    options::register(methods);
    stats::register(methods);
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct GetBdevs {
    name: Option<String>,
    timeout: u32,
}

async fn get_bdevs(system: Rc<System>, params: GetBdevs) -> RpcResult {
    let Some(name) = params.name else {
        let all = system.bdevs.list();
        return Ok(all.iter().map(BdevInfo::to_json).collect());
    };
    if params.timeout > 0 {
        wait_for(&system, &name, Duration::from_millis(params.timeout.into())).await?;
    }
    let info = find(&system, &name)?;
    Ok(json!([info.to_json()]))
}

async fn wait_for(system: &System, name: &str, timeout: Duration) -> Result<(), RpcError> {
    let (callback, arrival) = reply();
    let wait = system.bdevs.wait_for(name, Box::new(move || callback(())));
    let timer = system.handle.sleep(timeout);
    pin_mut!(arrival, timer);
    match select(arrival, timer).await {
        Either::Left(_) => Ok(()),
        Either::Right(_) => {
            system.bdevs.cancel_wait(wait);
            let text = format!("bdev {name} did not come in time");
            Err(RpcError::errno(Errno::TIMEDOUT, text))
        }
    }
}

fn find(system: &System, name: &str) -> Result<BdevInfo, RpcError> {
    let missing = || no_bdev(&RegistryError::NotFound { name: name.into() });
    system.bdevs.get(name).ok_or_else(missing)
}

fn no_bdev(error: &RegistryError) -> RpcError {
    RpcError::errno(error.errno(), error.to_string())
}

fn not_created(error: &CreateError) -> RpcError {
    RpcError::errno(error.errno(), error.to_string())
}
