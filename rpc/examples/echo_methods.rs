//! Serves every method of the schema; each answers its own name and the parameters it was given,
//! with defaults filled in. For trying and testing clients.
//!
//! `cargo run -p rnbd-rpc --example echo_methods -- SOCKET`

use std::path::PathBuf;

use rnbd_rpc::{ControlLoop, Params, Registry, Rpc, RpcServer, Schema, State};
use serde_json::json;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args_os()
        .nth(1)
        .ok_or("usage: echo_methods SOCKET")?;
    let control = ControlLoop::new()?;
    let handle = control.handle();
    let rpc = Rpc::new(&handle, registry())?;
    rpc.set_state(State::Runtime);
    let _server = RpcServer::listen(&rpc, &PathBuf::from(socket))?;
    let mut signals = handle.signals(&[SIGINT, SIGTERM])?;
    control.run(signals.next());
    Ok(())
}

fn registry() -> Registry {
    let schema = Schema::builtin();
    let mut registry = Registry::new(schema);
    let others = schema.methods.iter().map(|method| method.name.as_str());
    for name in others.filter(|&name| name != "rpc_get_methods") {
        registry.register(name, move |params: Params| async move {
            Ok(json!({"method": name, "params": params.members()}))
        });
    }
    registry
}
