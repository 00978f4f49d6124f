//! The RDMA devices of a process, shared by its fabrics.
//!
//! One thread watches the devices: those that go, so that every fabric lets go of them in time,
//! and those that come, which it opens and tries out for every fabric. Another one lets go of
//! what takes long. So no reactor waits for a driver, but while connections are made.

mod inbox;
mod instance;
mod record;
mod release;
mod sysfs;
mod watch;

use std::fmt;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_fabric::FabricError;
use rustix::io::Errno;

pub(crate) use self::inbox::{Inbox, Told};
pub(crate) use self::instance::{Instance, User};
pub(crate) use self::record::Loss;
pub use self::record::{DeviceCounters, DeviceState};
pub(crate) use self::release::{Releaser, Scrap};
pub use self::sysfs::PortInfo;
use self::watch::Watch;
pub(crate) use self::watch::{Opened, Report};
use crate::config::VerbsConfig;
use crate::fabric::VerbsFabric;
use crate::sys::keep_devices_together;

/// Something that happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostNews {
    /// It is in another state.
    State {
        /// The device.
        name: String,
        /// The state.
        state: DeviceState,
    },
    /// A port or an address of it changed: what could not be reached before may be now.
    Reachable(String),
}

/// The RDMA devices of this process.
#[derive(Clone, Debug)]
pub struct VerbsHost {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: VerbsConfig,
    pub(crate) releaser: Releaser,
    reports: Sender<Report>,
    watch: Mutex<Watch>,
    notify: Box<dyn Fn(HostNews) + Send + Sync>,
}

/// A device, for people.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// What it is up to.
    pub state: DeviceState,
    /// How many fabrics have it open.
    pub users: u32,
    /// What it can do, once a fabric has opened it.
    pub abilities: Option<Abilities>,
    /// Its ports.
    pub ports: Vec<PortInfo>,
    /// What happened to it.
    pub counters: DeviceCounters,
}

/// What a device can do, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Windows for all connections of a path: a target can run with `always_invalidate`.
    pub domain_windows: bool,
    /// Windows for one connection: an initiator can have a window per request.
    pub connection_windows: bool,
    /// Windows open what they are bound to; if not, parts of regions are registered one by one.
    pub exact_windows: bool,
    /// Most work requests of one queue.
    pub queue_wrs_max: u32,
    /// Most entries of a completion queue.
    pub cq_entries_max: u32,
}

impl VerbsHost {
    /// To be called before the first thread starts in a process that will have a host: else old
    /// versions of librdmacm may lose devices when others come or go.
    pub fn prepare_process() {
        keep_devices_together();
    }

    /// Starts the two threads. They end when this and all its fabrics are gone. `notify` is called
    /// on one of them.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(
        config: VerbsConfig,
        notify: impl Fn(HostNews) + Send + Sync + 'static,
    ) -> Result<Self, FabricError> {
        let starting = |errno| FabricError::System {
            what: "starting a thread for RDMA devices",
            errno,
        };
        keep_devices_together();
        let (reports, queue) = channel();
        let shared = Arc::new(Shared {
            config,
            releaser: Releaser::start().map_err(starting)?,
            reports,
            watch: Mutex::default(),
            notify: Box::new(notify),
        });
        let weak = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("rnbd-verbs-dev".to_owned());
        let started = thread.spawn(move || watch::run(&queue, &weak));
        started.map_err(|error| starting(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        Ok(Self { shared })
    }

    /// A fabric for one core. Opens all devices for it, which takes milliseconds for each.
    ///
    /// # Errors
    /// The host has no RDMA device, or this process may not use it.
    pub fn fabric(&self) -> Result<VerbsFabric, FabricError> {
        VerbsFabric::of(Arc::clone(&self.shared))
    }

    /// All devices that there are, or were since the start.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let mut watch = self.shared.watch();
        watch.discover();
        let infos = watch.records.iter().map(|record| DeviceInfo {
            name: record.instance.name().to_owned(),
            state: record.state,
            users: record.instance.users(),
            abilities: record.abilities.map(|(windows, limits)| Abilities {
                domain_windows: windows.domain.is_some(),
                connection_windows: windows.connection,
                exact_windows: windows.exact,
                queue_wrs_max: limits.queue_wrs,
                cq_entries_max: limits.cq_entries,
            }),
            ports: sysfs::ports(record.instance.name()),
            counters: record.counters,
        });
        infos.collect()
    }

    /// Lets go of a device and takes it up again as soon as nothing of it is left.
    ///
    /// # Errors
    /// `ENODEV` for an unknown device, `EBUSY` for one that is not active.
    pub fn reset(&self, name: &str) -> Result<(), FabricError> {
        let started = self.shared.watch().reset(name);
        started.map_err(|errno| FabricError::System {
            what: match errno {
                Errno::NODEV => "there is no such RDMA device",
                _ => "the RDMA device is not active",
            },
            errno,
        })
    }
}

impl Shared {
    pub(crate) fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the thread that watches. Does not wait.
    pub(crate) fn report(&self, report: Report) {
        // The thread lives as long as this; if it died, nobody is left to be told.
        let _sent = self.reports.send(report);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
