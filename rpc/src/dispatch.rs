//! Finding and starting a method, by `jsonrpc-core`.
//!
//! This is all that knows that crate. It wants handlers and their futures to be `Send`, while ours
//! share the control thread's state. So what is registered with it is a stub, which leaves a job
//! in a queue and returns the receiving end of a channel; the job is carried out by a task of the
//! control loop. Its `Id` holds unsigned integers and strings only, so ids do not pass through it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use jsonrpc_core as jsonrpc;
use serde_json::Value;

use crate::registry::{Handler, Params, Registered, RpcResult};
use crate::{Handle, RpcError};

pub(crate) struct Dispatcher {
    stubs: jsonrpc::MetaIoHandler<()>,
    handlers: Vec<Handler>,
    jobs: Arc<Mutex<Vec<Job>>>,
}

/// A call that a stub took.
struct Job {
    index: usize,
    params: jsonrpc::Params,
    reply: oneshot::Sender<RpcResult>,
}

impl Dispatcher {
    pub(crate) fn new(methods: &[Registered]) -> Self {
        let mut dispatcher = Self {
            stubs: jsonrpc::MetaIoHandler::default(),
            handlers: Vec::new(),
            jobs: Arc::default(),
        };
        for (index, registered) in methods.iter().enumerate() {
            dispatcher.handlers.push(registered.handler.clone());
            dispatcher.add_stub(index, &registered.method.name);
            if let Some(alias) = &registered.method.alias {
                dispatcher.stubs.add_alias(alias, &registered.method.name);
            }
        }
        dispatcher
    }

    fn add_stub(&mut self, index: usize, name: &str) {
        let jobs = Arc::clone(&self.jobs);
        self.stubs.add_method(name, move |params| {
            let (reply, answer) = oneshot::channel();
            let job = Job {
                index,
                params,
                reply,
            };
            lock(&jobs).push(job);
            async move {
                let answer = answer.await.map_err(|_| jsonrpc::Error::internal_error())?;
                answer.map_err(to_jsonrpc)
            }
        });
    }

    /// Starts `method` as a task of the loop: a method that waits for nothing is done when this
    /// returns, as its caller may count on (see `Connection::read`). The future only waits for it: dropping it does not
    /// stop the method.
    pub(crate) fn start(
        &self,
        handle: &Handle,
        method: &str,
        params: Params,
    ) -> impl Future<Output = RpcResult> + use<> {
        let call = jsonrpc::Call::MethodCall(jsonrpc::MethodCall {
            jsonrpc: Some(jsonrpc::Version::V2),
            method: method.to_owned(),
            params: jsonrpc::Params::Map(params.members().clone()),
            id: jsonrpc::Id::Null,
        });
        let output = self.stubs.handle_call(call, ());
        for job in lock(&self.jobs).drain(..) {
            self.carry_out(handle, job);
        }
        async move { output.await.map_or_else(unanswered, from_jsonrpc) }
    }

    fn carry_out(&self, handle: &Handle, job: Job) {
        let params = match job.params {
            jsonrpc::Params::Map(members) => Params::new(members),
            _ => Params::default(),
        };
        let running = self.handlers[job.index](params);
        handle.spawn_now(async move {
            // Nobody listens any more if the connection is gone.
            let _ = job.reply.send(running.await);
        });
    }
}

fn lock(jobs: &Mutex<Vec<Job>>) -> std::sync::MutexGuard<'_, Vec<Job>> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_jsonrpc(error: RpcError) -> jsonrpc::Error {
    jsonrpc::Error {
        code: error.code.into(),
        message: error.message,
        data: None,
    }
}

fn from_jsonrpc(output: jsonrpc::Output) -> Result<Value, RpcError> {
    match output {
        jsonrpc::Output::Success(success) => Ok(success.result),
        jsonrpc::Output::Failure(failure) => Err(RpcError::new(
            failure.error.code.code(),
            failure.error.message,
        )),
    }
}

/// Only notifications go unanswered, and none are passed on as such.
fn unanswered() -> RpcResult {
    Err(RpcError::internal("Internal error"))
}
