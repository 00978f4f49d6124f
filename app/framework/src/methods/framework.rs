use std::rc::Rc;

use rnbd_base::Errno;
use rnbd_reactor::{CoreLocks, CpuTimes, ReactorSnapshot, ThreadSnapshot};
use rnbd_rpc::{RpcError, RpcResult};
use rustix::process::{Signal, getpid, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};

use super::thread::snapshots;
use super::{Methods, NoParams};
use crate::context_switches;
use crate::poll_group::PollGroup;
use crate::subsystem::{SUBSYSTEMS, Subsystem};
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add("framework_start_init", |system, NoParams {}| {
        start_init(system)
    });
    methods.add("framework_wait_init", |system, NoParams {}| {
        wait_init(system)
    });
    methods.add_sync(
        "framework_get_subsystems",
        |_, NoParams {}| Ok(subsystems()),
    );
    methods.add_sync("framework_get_config", get_config);
    methods.add("framework_get_reactors", |system, NoParams {}| {
        get_reactors(system)
    });
    methods.add_sync("framework_get_scheduler", |system, NoParams {}| {
        Ok(scheduler(system))
    });
    methods.add("framework_monitor_context_switch", monitor_context_switch);
    methods.add_sync("framework_enable_cpumask_locks", |system, NoParams {}| {
        lock_cores(system)
    });
    methods.add_sync("framework_disable_cpumask_locks", |system, NoParams {}| {
        system.core_locks.take();
        Ok(json!(true))
    });
    methods.add_sync("framework_get_memory", |system, NoParams {}| {
        Ok(memory(system))
    });
    methods.add_sync("spdk_get_version", |_, NoParams {}| Ok(version()));
    methods.add_sync("spdk_kill_instance", kill_instance);
}

async fn start_init(system: Rc<System>) -> RpcResult {
    if !system.init_wanted.raise() {
        return Err(RpcError::errno(
            Errno::ALREADY,
            "initialization has begun already",
        ));
    }
    wait_init(system).await
}

async fn wait_init(system: Rc<System>) -> RpcResult {
    system.init_done.raised().await;
    match system.init_failed.is_raised() {
        true => Err(RpcError::internal("framework_initialization failed")),
        false => Ok(json!(true)),
    }
}

fn subsystems() -> Value {
    let describe = |subsystem: &Subsystem| json!({ "subsystem": subsystem.name, "depends_on": subsystem.depends_on });
    SUBSYSTEMS.iter().map(describe).collect()
}

#[derive(Deserialize)]
struct GetConfig {
    name: String,
}

fn get_config(system: &System, params: GetConfig) -> RpcResult {
    let subsystem = Subsystem::find(&params.name).ok_or_else(|| {
        RpcError::invalid_params(format!("Subsystem '{}' not found", params.name))
    })?;
    Ok(subsystem.config(system))
}

async fn get_reactors(system: Rc<System>) -> RpcResult {
    let snapshots = snapshots(&system).await?;
    let reactors = snapshots.iter().zip(&system.poll_groups);
    Ok(json!({
        "tick_rate": system.reactors.clock().tick_rate(),
        "pid": std::process::id(),
        "reactors": reactors.map(reactor_json).collect::<Vec<_>>(),
    }))
}

/// The shape is exactly SPDK's: its `spdk_top` takes no more and no less.
fn reactor_json((reactor, group): (&ReactorSnapshot, &PollGroup)) -> Value {
    let now = CpuTimes::read(reactor.lcore).unwrap_or(group.cpu_times);
    let times = now.since(group.cpu_times);
    let threads = reactor.threads.iter().map(thread_json);
    json!({
        "lcore": reactor.lcore,
        "numa_id": reactor.numa_id,
        "tid": reactor.tid,
        "busy": reactor.busy,
        "idle": reactor.idle,
        "in_interrupt": reactor.in_interrupt,
        "irq": times.irq,
        "sys": times.sys,
        "usr": times.usr,
        "lw_threads": threads.collect::<Vec<_>>(),
    })
}

fn thread_json(thread: &ThreadSnapshot) -> Value {
    json!({
        "name": thread.name,
        "id": thread.id,
        "cpumask": thread.cpumask,
        "elapsed": thread.elapsed,
    })
}

/// Threads never move, which is what SPDK's static scheduler does.
fn scheduler(system: &System) -> Value {
    let first = system.poll_groups.first();
    json!({
        "scheduler_name": "static",
        "scheduler_period": 0,
        "isolated_core_mask": "0x0",
        "scheduling_core": first.map_or(0, |group| system.reactors.lcore(group.core)),
    })
}

#[derive(Deserialize)]
struct MonitorContextSwitch {
    enabled: Option<bool>,
}

async fn monitor_context_switch(system: Rc<System>, params: MonitorContextSwitch) -> RpcResult {
    match params.enabled {
        Some(true) => context_switches::enable(&system, &snapshots(&system).await?),
        Some(false) => system.switch_monitor.disable(),
        None => {}
    }
    Ok(json!({ "enabled": system.switch_monitor.is_enabled() }))
}

fn lock_cores(system: &System) -> RpcResult {
    let mut locks = system.core_locks.borrow_mut();
    if locks.is_none() {
        let claimed = CoreLocks::claim(&system.cpumask);
        *locks = Some(claimed.map_err(|error| RpcError::errno(Errno::BUSY, error.to_string()))?);
    }
    Ok(json!(true))
}

fn memory(system: &System) -> Value {
    let usage = system.memory.usage();
    json!({
        "used_bytes": usage.used_bytes,
        "huge_bytes": usage.huge_bytes,
        "limit_bytes": (usage.limit_bytes != u64::MAX).then_some(usage.limit_bytes),
    })
}

/// Our version in SPDK's fields; the package's three numbers are major, minor and patch.
fn version() -> Value {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "version": concat!("rnbd v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        },
    })
}

#[derive(Deserialize)]
struct KillInstance {
    sig_name: String,
}

fn kill_instance(_: &System, params: KillInstance) -> RpcResult {
    let signal = match params.sig_name.as_str() {
        "SIGINT" => Signal::INT,
        "SIGTERM" => Signal::TERM,
        "SIGQUIT" => Signal::QUIT,
        "SIGHUP" => Signal::HUP,
        "SIGKILL" => Signal::KILL,
        "SIGUSR1" => Signal::USR1,
        other => {
            return Err(RpcError::invalid_params(format!(
                "cannot send signal {other}"
            )));
        }
    };
    kill_process(getpid(), signal)
        .map_err(|error| RpcError::from(Errno::from_raw(error.raw_os_error())))?;
    Ok(json!(true))
}
