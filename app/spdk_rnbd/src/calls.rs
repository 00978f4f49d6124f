//! Calls of our methods.

use rnbd_base::Errno;
use rnbd_rpc::{RpcError, RpcResult};
use rnbd_spdk::Thread;
use rnbd_spdk::rpc::{Failure, Request};
use serde_json::{Value, json};

use crate::runtime;

/// SPDK's server got a call.
pub(crate) fn on_call(method: &'static str, params: Option<Value>, request: Request) {
    let begun = runtime::with_started(|hosted, _| {
        hosted.call(method, params, move |result| {
            // What the call did to bdevs was sent to this thread before; it comes first.
            if let Some(app) = Thread::app() {
                app.send(move || settle(result, request));
            }
        });
    });
    if let Err(error) = begun {
        log::error!("RNBD cannot be started: {error:#}");
    }
}

/// Answers when SPDK has the bdevs that were made, and has no longer those that were removed.
fn settle(result: RpcResult, request: Request) {
    let mut pending = Some((result, request));
    runtime::with(|_, faces| {
        if let Some((result, request)) = pending.take() {
            let refused = result.as_ref().ok().and_then(|value| faces.refused(value));
            let answer = match refused {
                Some((name, errno)) => {
                    undo(&name);
                    Err(refusal(&name, errno))
                }
                None => result,
            };
            faces.when_settled(move || request.answer(answer.map_err(failure)));
        }
    });
}

fn refusal(name: &str, errno: Errno) -> RpcError {
    RpcError::errno(errno, format!("SPDK does not take bdev {name}: {errno}"))
}

/// Unmaps a device that SPDK has refused.
fn undo(name: &str) {
    let (name, params) = (name.to_owned(), json!({ "name": name, "mode": "force" }));
    if let Some(app) = Thread::app() {
        app.send(move || {
            runtime::with(|hosted, _| {
                hosted.call("bdev_rnbd_unmap_device", Some(params), move |result| {
                    if let Err(error) = result {
                        log::error!("{name} was not unmapped: {}", error.message);
                    }
                });
            });
        });
    }
}

fn failure(error: RpcError) -> Failure {
    Failure {
        // All codes in use are small.
        code: i32::try_from(error.code).unwrap_or(-32603),
        message: error.message,
    }
}
