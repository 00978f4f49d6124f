use std::future::poll_fn;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::Poll;

use anyhow::Context;
use futures_util::future::{Either, select};
use futures_util::pin_mut;
use rnbd_rpc::{ControlLoop, Registry, Rpc, RpcServer, Schema, State};
use rustix::process::Signal;

use crate::config::Config;
use crate::env::Env;
use crate::logging::{Level, Logger};
use crate::methods;
use crate::options::Options;
use crate::subsystem::SUBSYSTEMS;
use crate::system::System;

/// Starts everything, runs `program` on the control thread, stops everything.
///
/// The program's future ends by itself, soon after [`Env::stopped`] returns. Its exit code is that
/// of the process; an error of its own, or one while starting, is logged and makes it 1. With the
/// latter it is not called at all.
pub fn run<F>(options: Options, program: F) -> ExitCode
where
    F: AsyncFnOnce(Env) -> anyhow::Result<ExitCode>,
{
    set_up_log(&options);
    try_run(&options, program).unwrap_or_else(|error| {
        log::error!("{error:#}");
        ExitCode::FAILURE
    })
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

fn try_run<F>(options: &Options, program: F) -> anyhow::Result<ExitCode>
where
    F: AsyncFnOnce(Env) -> anyhow::Result<ExitCode>,
{
    let control = ControlLoop::new().context("cannot start the control thread")?;
    let handle = control.handle();
    let system = Rc::new(System::new(options, handle.clone())?);
    watch_signals(&system)?;
    let mut registry = Registry::new(Schema::builtin());
    methods::register(&mut registry, &system);
    let rpc = Rpc::new(&handle, registry)?;
    if let Some(names) = &options.rpcs_allowed {
        rpc.set_allowed(names.iter().cloned());
    }
    control.run(live(options, Rc::clone(&system), rpc, program))
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
