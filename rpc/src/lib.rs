//! JSON-RPC over a Unix socket with SPDK's framing and rules.
//!
//! [`ControlLoop`] is the executor of the control thread. A [`Registry`] holds the handlers; every
//! one belongs to a method of the [`Schema`], which says what parameters it has and when it may be
//! called. [`Rpc`] calls methods, for the program itself and for the connections of an
//! [`RpcServer`]. [`Client`] is the other side.
//!
//! This crate knows nothing of what the methods do.
//!
//! ```no_run
//! use rnbd_rpc::{ControlLoop, Registry, Rpc, RpcServer, Schema};
//! use serde_json::json;
//!
//! let control = ControlLoop::new()?;
//! let mut registry = Registry::new(Schema::builtin());
//! registry.register("framework_start_init", |_params| async { Ok(json!(true)) });
//! let rpc = Rpc::new(&control.handle(), registry)?;
//! let server = RpcServer::listen(&rpc, "/var/tmp/spdk.sock".as_ref())?;
//! control.run(async { rpc.call("framework_start_init", None).await })?;
//! # drop(server);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod client;
mod connection;
mod control_loop;
mod dispatch;
mod envelope;
mod error;
mod framing;
mod gate;
mod notifications;
mod outbox;
mod registry;
mod rpc;
mod schema;
mod server;
mod strict_json;
mod traffic;

pub use client::{Client, ClientError};
pub use control_loop::{ControlLoop, Handle, Interest, Signals, Sleep, Watch};
pub use error::RpcError;
pub use notifications::{Notification, Notifications};
pub use registry::{Params, RegisterError, Registry, RpcResult};
pub use rpc::Rpc;
pub use schema::{Array, Enum, EnumField, Method, MethodError, Object, Param, Schema, State, Type};
pub use server::{ListenError, RpcServer};
pub use traffic::Traffic;
