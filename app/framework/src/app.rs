use std::fmt;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::process::ExitCode;
use std::rc::Rc;
use std::task::Poll;

use anyhow::Context;
use futures_util::future::{Either, select};
use futures_util::pin_mut;
use rnbd_rpc::{ControlLoop, Params, Registry, Rpc, RpcResult, RpcServer, Schema, State};
use rustix::process::Signal;

use crate::config::Config;
use crate::env::Env;
use crate::logging::{Level, Logger};
use crate::methods;
use crate::options::Options;
use crate::rdma;
use crate::rpc_log;
use crate::subsystem::SUBSYSTEMS;
use crate::system::System;

/// Runs `program` with what every program has: [`App::run`].
pub fn run<F>(options: Options, program: F) -> ExitCode
where
    F: AsyncFnOnce(Env) -> anyhow::Result<ExitCode>,
{
    App::new(options).run(program)
}

type Registration = Box<dyn FnOnce(&mut Registry)>;

/// A program that is about to start, and what it has beside what every program has.
pub struct App {
    options: Options,
    methods: Vec<Registration>,
    rpc_log: Option<File>,
}

impl App {
    /// With nothing of its own.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            methods: Vec::new(),
            rpc_log: None,
        }
    }

    /// Serves an RPC method of the program's own, which the schema describes like any other. The
    /// handler runs on the control thread, as the program's future does.
    #[must_use]
    pub fn method<F, R>(mut self, name: &'static str, handler: F) -> Self
    where
        F: Fn(Params) -> R + 'static,
        R: Future<Output = RpcResult> + 'static,
    {
        let register = move |registry: &mut Registry| registry.register(name, handler);
        self.methods.push(Box::new(register));
        self
    }

    /// Writes every request and reply of the RPC server to `file`.
    #[must_use]
    pub fn rpc_log(mut self, file: File) -> Self {
        self.rpc_log = Some(file);
        self
    }

    /// Starts everything, runs `program` on the control thread, stops everything.
    ///
    /// The program's future ends by itself, soon after [`Env::stopped`] returns. Its exit code is
    /// that of the process; an error of its own, or one while starting, is logged and makes it 1.
    /// With the latter it is not called at all.
    pub fn run<F>(self, program: F) -> ExitCode
    where
        F: AsyncFnOnce(Env) -> anyhow::Result<ExitCode>,
    {
        set_up_log(&self.options);
        self.try_run(program).unwrap_or_else(|error| {
            log::error!("{error:#}");
            ExitCode::FAILURE
        })
    }

    fn try_run<F>(self, program: F) -> anyhow::Result<ExitCode>
    where
        F: AsyncFnOnce(Env) -> anyhow::Result<ExitCode>,
    {
        rdma::prepare_process();
        let options = self.options;
        let control = ControlLoop::new().context("cannot start the control thread")?;
        let handle = control.handle();
        let system = Rc::new(System::new(&options, handle.clone())?);
        rdma::listen(&system);
        watch_signals(&system)?;
        let mut registry = Registry::new(Schema::builtin());
        methods::register(&mut registry, &system);
        for register in self.methods {
            register(&mut registry);
        }
        let rpc = Rpc::new(&handle, registry)?;
        if let Some(names) = &options.rpcs_allowed {
            rpc.set_allowed(names.iter().cloned());
        }
        if let Some(file) = self.rpc_log {
            rpc.observe(rpc_log::to_file(file));
        }
        control.run(live(&options, Rc::clone(&system), rpc, program))
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn set_up_log(options: &Options) {
    let logger = Logger::get();
    for name in &options.logflag {
        if !logger.set_flag(name, true) {
            log::warn!("there is no log flag {name}; see log_get_flags");
        }
    }
    if !options.logflag.is_empty() {
        logger.set_print_level(Level::Debug);
    }
    if options.silence_noticelog {
        logger.set_print_level(Level::Warning);
    }
}

/// The first SIGINT or SIGTERM asks the program to end; later ones change nothing.
fn watch_signals(system: &Rc<System>) -> anyhow::Result<()> {
    let wanted = [Signal::INT, Signal::TERM].map(Signal::as_raw);
    let mut signals = system
        .handle
        .signals(&wanted)
        .context("cannot watch signals")?;
    let system = Rc::clone(system);
    let handle = system.handle.clone();
    handle.spawn(async move {
        loop {
            let signal = signals.next().await;
            if system.stop.raise() {
                log::info!("signal {signal}: stopping");
            }
        }
    });
    Ok(())
}

async fn live<F>(
    options: &Options,
    system: Rc<System>,
    rpc: Rpc,
    program: F,
) -> anyhow::Result<ExitCode>
where
    F: AsyncFnOnce(Env) -> anyhow::Result<ExitCode>,
{
    let outcome = {
        let start = start(options, &system, &rpc);
        let stop = system.stop.raised();
        pin_mut!(start, stop);
        match select(start, stop).await {
            Either::Left((server, _)) => Some(server),
            Either::Right(_) => None,
        }
    };
    let result = match outcome {
        None => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(error),
        Some(Ok(_server)) => program(Env::new(Rc::clone(&system), rpc)).await,
    };
    system.shut_down().await;
    result
}

/// Configures and initializes; returns the RPC server, if there is to be one.
async fn start(options: &Options, system: &System, rpc: &Rpc) -> anyhow::Result<Option<RpcServer>> {
    let config = options.config.as_deref().map(Config::read).transpose()?;
    apply(config.as_ref(), options, rpc, State::Startup).await?;
    let server = match options.no_rpc_server {
        true => None,
        false => Some(RpcServer::listen(rpc, &options.rpc_socket)?),
    };
    if options.wait_for_rpc {
        log::info!("waiting for framework_start_init");
        system.init_wanted.raised().await;
    } else if let Some(server) = &server {
        server.pause();
    }
    rpc.set_state(State::Runtime);
    let applied = apply(config.as_ref(), options, rpc, State::Runtime).await;
    if applied.is_err() {
        system.init_failed.raise();
    }
    system.init_done.raise();
    if applied.is_err() {
        let_replies_leave().await;
    }
    applied?;
    if let Some(server) = &server {
        server.resume();
        log::info!("listening for RPC on {}", options.rpc_socket.display());
    }
    Ok(server)
}

/// Lets those who wait for the initialization be told how it ended before the server goes: the
/// method returns, its reply is queued, its connection writes it, each in a round of its own.
async fn let_replies_leave() {
    const ROUNDS: usize = 8;
    for _ in 0..ROUNDS {
        next_round().await;
    }
}

/// Returns when all tasks that are ready now have run.
async fn next_round() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn apply(
    config: Option<&Config>,
    options: &Options,
    rpc: &Rpc,
    pass: State,
) -> anyhow::Result<()> {
    let Some(config) = config else {
        return Ok(());
    };
    let known: Vec<&str> = SUBSYSTEMS.iter().map(|subsystem| subsystem.name).collect();
    config
        .apply(rpc, pass, &known, options.json_ignore_init_errors)
        .await
}
