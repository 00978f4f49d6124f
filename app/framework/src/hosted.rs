//! Target and initiator inside another program: its threads poll, its RPC server takes the calls.

use std::fmt;
use std::path::Path;
use std::rc::Rc;

use rnbd_bdev::Registry as Bdevs;
use rnbd_mem::Memory;
use rnbd_reactor::{CoreMask, Reactors};
use rnbd_rpc::{ControlLoop, Notifications, Registry, Rpc, RpcResult, Schema, State};
use serde_json::Value;

use crate::bdev_source::BdevSource;
use crate::config::Config;
use crate::methods;
use crate::rdma;
use crate::subsystem::{SUBSYSTEMS, Subsystem, call_json};
use crate::system::System;

/// The control side of target and initiator for a program that is its own framework.
///
/// It is driven by [`Hosted::turn`] and reached by [`Hosted::call`], both on one thread at a time;
/// the reactors are polled by the program ([`Reactors::hosted`]). There is no RPC server and no signal
/// handling: those are the program's. So is the configuration, unless it leaves that to
/// [`Hosted::configure`].
pub struct Hosted {
    control: ControlLoop,
    system: Rc<System>,
    rpc: Rpc,
}

impl Hosted {
    /// Target and initiator on these reactors. `source` has the bdevs that are not ours, and is
    /// told where ours are.
    ///
    /// # Errors
    /// The kernel refuses a descriptor.
    pub fn new(
        reactors: Reactors,
        memory: Memory,
        source: impl FnOnce(&Bdevs) -> Box<dyn BdevSource>,
    ) -> anyhow::Result<Self> {
        let control = ControlLoop::new()?;
        let handle = control.handle();
        let cores: Vec<String> = reactors
            .cores()
            .map(|core| reactors.lcore(core).to_string())
            .collect();
        let cpumask: CoreMask = format!("[{}]", cores.join(",")).parse()?;
        let system = Rc::new(System::on(reactors, memory, cpumask, handle.clone()));
        let unset = system.bdev_source.set(source(&system.bdevs)).is_ok();
        debug_assert!(unset, "the system is new");
        rdma::listen(&system);
        let mut registry = Registry::new(Schema::builtin());
        methods::register(&mut registry, &system);
        let rpc = Rpc::new(&handle, registry)?;
        Ok(Self {
            control,
            system,
            rpc,
        })
    }

    /// All bdevs of ours.
    #[must_use]
    pub fn bdevs(&self) -> &Bdevs {
        &self.system.bdevs
    }

    /// What has happened, for those who watch.
    #[must_use]
    pub fn notifications(&self) -> &Notifications {
        &self.system.notifications
    }

    /// From now on the methods of the running program may be called, and no longer those of its
    /// start.
    pub fn set_running(&self) {
        self.rpc.set_state(State::Runtime);
    }

    /// Applies a configuration file as `-c` of our own programs does, and calls `done` from a later
    /// turn. Calls of subsystems that are not here are left out. From then on, unless it failed, the
    /// methods of the running program may be called.
    pub fn configure(&self, file: &Path, done: impl FnOnce(anyhow::Result<()>) + 'static) {
        let (rpc, config) = (self.rpc.clone(), Config::read(file));
        self.control.handle().spawn(async move {
            done(match config {
                Ok(config) => apply(&config, &rpc).await,
                Err(error) => Err(error),
            });
        });
    }

    /// Goes on with what is ready; whether anything was. To be called every millisecond or so.
    pub fn turn(&self) -> bool {
        self.control.turn()
    }

    /// Calls a method; `reply` gets its answer from a later turn.
    pub fn call(
        &self,
        method: &str,
        params: Option<Value>,
        reply: impl FnOnce(RpcResult) + 'static,
    ) {
        let (rpc, method) = (self.rpc.clone(), method.to_owned());
        let task = async move { reply(rpc.call(&method, params).await) };
        self.control.handle().spawn(task);
    }

    /// The calls that make the initiator's present state again.
    #[must_use]
    pub fn initiator_config(&self) -> Vec<Value> {
        let calls = self.system.initiator.config();
        calls.into_iter().map(call_json).collect()
    }

    /// The calls that make a subsystem's present state again; none for one that is not ours.
    #[must_use]
    pub fn config(&self, subsystem: &str) -> Vec<Value> {
        match Subsystem::find(subsystem).map(|subsystem| subsystem.config(&self.system)) {
            Some(Value::Array(calls)) => calls,
            _ => Vec::new(),
        }
    }

    /// Ends all sessions of clients and their exports; then calls `done` from a later turn.
    pub fn shut_down_target(&self, done: impl FnOnce() + 'static) {
        let system = Rc::clone(&self.system);
        self.control.handle().spawn(async move {
            system.target.shut_down(&system.reactors).await;
            if let Some(source) = system.bdev_source.get() {
                let exports = system.target.exports.list();
                for info in exports {
                    source.release(&info.export.bdev_name);
                }
            }
            done();
        });
    }

    /// Detaches all controllers; then calls `done` from a later turn.
    pub fn shut_down_initiator(&self, done: impl FnOnce() + 'static) {
        let system = Rc::clone(&self.system);
        self.control.handle().spawn(async move {
            system.initiator.shut_down().await;
            done();
        });
    }
}

async fn apply(config: &Config, rpc: &Rpc) -> anyhow::Result<()> {
    let known: Vec<&str> = SUBSYSTEMS.iter().map(|subsystem| subsystem.name).collect();
    config.apply(rpc, State::Startup, &known, false).await?;
    rpc.set_state(State::Runtime);
    config.apply(rpc, State::Runtime, &known, false).await
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hosted({:?})", self.rpc)
    }
}
