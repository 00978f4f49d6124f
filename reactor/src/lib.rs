//! One pinned thread a core: pollers, timers, messages, busy and idle accounting.
//!
//! [`Reactors::start`] puts one OS thread on each core of a [`CoreMask`]. Each hosts named light
//! threads (what SPDK calls an `spdk_thread`), and each light thread hosts pollers: values with
//! [`rnbd_base::Poll`]. The control thread owns [`Reactors`] and does everything by message; it
//! shares no state with a reactor but a bounded queue and one word that says whether the reactor
//! sleeps.
//!
//! In [`Mode::Busy`] a reactor never sleeps. In [`Mode::Adaptive`] it sleeps on the descriptors
//! of its pollers once nothing was done for a while. How no message is lost then is described in
//! `waker.rs`.
//!
//! A program that has polling threads already, as an SPDK application has, takes
//! [`Reactors::hosted`] instead: values to be polled by those threads, under the same handle.
//!
//! This crate knows nothing of storage, protocols or RPC.
//!
//! ```
//! use rnbd_base::{Nanos, Poll, Progress};
//! use rnbd_reactor::{CoreMask, Mode, ReactorConfig, Reactors};
//!
//! struct Nothing;
//! impl Poll for Nothing {
//!     fn poll(&mut self, _now: Nanos) -> Progress {
//!         Progress::Idle
//!     }
//! }
//!
//! let cores = CoreMask::available()?;
//! let first = cores.cores().next().expect("a process runs on some core");
//! let mode = Mode::Adaptive { idle_us: 100 };
//! let reactors = Reactors::start(&ReactorConfig { cores: CoreMask::single(first), mode })?;
//! let core = reactors.cores().next().expect("a mask is never empty");
//! let thread = reactors.create_thread(core, "example");
//! let poller = reactors.add_poller(thread, "nothing", None, Box::new(Nothing));
//! reactors.remove_poller(poller, Box::new(|given_back| assert!(given_back.is_some())));
//! reactors.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod clock;
mod command;
mod core_locks;
mod core_mask;
mod cpu;
mod hosted;
mod light_thread;
mod reactor;
mod reactors;
mod snapshot;
mod switches;
mod waker;

pub use clock::Clock;
pub use command::{PollerId, Reply, ThreadId};
pub use core_locks::{CoreLockError, CoreLocks};
pub use core_mask::{AbsentCores, CoreMask, CoreMaskError};
pub use cpu::{CpuTimes, numa_node};
pub use hosted::HostedReactor;
pub use reactor::Mode;
pub use reactors::{ReactorConfig, Reactors, StartError};
pub use snapshot::{PollerSnapshot, ReactorSnapshot, ThreadSnapshot};
pub use switches::ContextSwitches;
