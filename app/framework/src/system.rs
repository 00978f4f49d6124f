use std::cell::{OnceCell, RefCell};
use std::time::Duration;

use bdev_rnbd::NotificationKind;
use futures_channel::mpsc;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, pin_mut};
use rnbd_bdev::{EventKind, Registry};
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_reactor::{CoreLocks, CoreMask, Reactors};
use rnbd_rpc::{Handle, Notifications, RpcError};
use serde_json::{Map, Value};

use crate::bdev_source::BdevSource;
use crate::context_switches::SwitchMonitor;
use crate::flag::Flag;
use crate::initiator::Initiator;
use crate::nbd::NbdExports;
use crate::options::Options;
use crate::poll_group::PollGroup;
use crate::rdma::Rdma;
use crate::target::Target;

/// How long the program waits for I/O when it ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that the methods work on. Lives on the control thread.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) memory: Memory,
    pub(crate) bdevs: Registry,
    pub(crate) reactors: Reactors,
    pub(crate) poll_groups: Vec<PollGroup>,
    pub(crate) target: Target,
    pub(crate) initiator: Initiator,
    pub(crate) rdma: Rdma,
    pub(crate) nbd: NbdExports,
    pub(crate) handle: Handle,
    pub(crate) notifications: Notifications,
    /// Where bdevs come from that are not in the registry.
    pub(crate) bdev_source: OnceCell<Box<dyn BdevSource>>,
    /// Parameters of `bdev_set_options`, if that was called.
    pub(crate) bdev_options: RefCell<Option<Map<String, Value>>>,
    pub(crate) cpumask: CoreMask,
    pub(crate) core_locks: RefCell<Option<CoreLocks>>,
    pub(crate) switch_monitor: SwitchMonitor,
    /// The program is to end.
    pub(crate) stop: Flag,
    /// `framework_start_init` was called.
    pub(crate) init_wanted: Flag,
    /// All is initialized and configured.
    pub(crate) init_done: Flag,
    /// Or that failed.
    pub(crate) init_failed: Flag,
}

impl System {
    /// Claims the cores and starts a reactor on each.
    pub(crate) fn new(options: &Options, handle: Handle) -> anyhow::Result<Self> {
        let core_locks = match options.disable_cpumask_locks {
            true => None,
            false => Some(CoreLocks::claim(&options.cpumask)?),
        };
        let reactors = Reactors::start(&options.reactor_config())?;
        let memory = Memory::new(MemoryConfig {
            limit_bytes: options.mem_size.unwrap_or(u64::MAX),
            hugepages: !options.no_huge,
            numa_node: options.mem_numa_node,
        });
        let system = Self::on(reactors, memory, options.cpumask.clone(), handle);
        system.core_locks.replace(core_locks);
        Ok(system)
    }

    /// A system on reactors that run already.
    pub(crate) fn on(
        reactors: Reactors,
        memory: Memory,
        cpumask: CoreMask,
        handle: Handle,
    ) -> Self {
        let bdevs = Registry::new(memory.clone());
        let notifications = Notifications::new();
        let system = Self {
            target: Target::new(&memory, &bdevs, &handle, &notifications),
            initiator: Initiator::default(),
            rdma: Default::default(),
            nbd: NbdExports::default(),
            bdevs,
            memory,
            poll_groups: reactors
                .cores()
                .map(|core| PollGroup::new(&reactors, core))
                .collect(),
            reactors,
            handle,
            notifications,
            bdev_source: OnceCell::new(),
            bdev_options: RefCell::default(),
            cpumask,
            core_locks: RefCell::default(),
            switch_monitor: SwitchMonitor::default(),
            stop: Flag::default(),
            init_wanted: Flag::default(),
            init_done: Flag::default(),
            init_failed: Flag::default(),
        };
        system.notify_of_bdevs();
        system.register_initiator_types();
        system
    }

    /// Ends what the outside world can see, then what that used; within a bounded time, because
    /// a bdev that never answers must not keep the program from ending.
    pub(crate) async fn shut_down(&self) {
        let in_order = self.shut_down_in_order();
        let timer = self.handle.sleep(SHUTDOWN_TIMEOUT);
        pin_mut!(in_order, timer);
        if let Either::Right(_) = select(in_order, timer).await {
            let seconds = SHUTDOWN_TIMEOUT.as_secs();
            log::warn!("I/O did not end within {seconds} s; ending without it");
        }
    }

    async fn shut_down_in_order(&self) {
        self.nbd.shut_down().await;
        self.target.shut_down(&self.reactors).await;
        self.initiator.shut_down().await;
    }

    /// Lets another engine's bdev of that name enter the registry, if there is one.
    pub(crate) fn provide_bdev(&self, name: &str, write: bool) -> Result<(), RpcError> {
        match self.bdev_source.get() {
            Some(source) => source
                .provide(name, write)
                .map_err(|(errno, text)| RpcError::errno(errno, text)),
            None => Ok(()),
        }
    }

    /// Lets it leave, unless an export still has it.
    pub(crate) fn release_bdev(&self, name: &str) {
        let mut exports = self.target.exports.list().into_iter();
        let is_exported = exports.any(|info| info.export.bdev_name == name);
        if let Some(source) = self.bdev_source.get()
            && !is_exported
        {
            source.release(name);
        }
    }

    fn notify_of_bdevs(&self) {
        for kind in [
            EventKind::Register,
            EventKind::Unregister,
            EventKind::Resize,
        ] {
            self.notifications.register_type(kind.notification_type());
        }
        let notifier = notifier(&self.handle, &self.notifications);
        self.bdevs.subscribe(move |event| {
            notifier(event.kind.notification_type(), event.name.clone());
        });
    }

    /// The initiator is made later, but who watches may ask for its types before.
    fn register_initiator_types(&self) {
        for kind in NotificationKind::ALL {
            self.notifications.register_type(kind.as_str());
        }
    }
}

/// A way to notify from any thread; the control thread passes it on.
pub(crate) fn notifier(
    handle: &Handle,
    notifications: &Notifications,
) -> impl Fn(&'static str, String) + Send + Sync + Clone + use<> {
    let (sender, mut receiver) = mpsc::unbounded::<(&'static str, String)>();
    let notifications = notifications.clone();
    handle.spawn(async move {
        while let Some((kind, ctx)) = receiver.next().await {
            notifications.send(kind, &ctx);
        }
    });
    move |kind, ctx| {
        // When the control thread has ended, nobody is left to be notified.
        let _ = sender.unbounded_send((kind, ctx));
    }
}
