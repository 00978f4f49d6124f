use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rnbd_base::Errno;
use rnbd_mem::{Buffer, Memory, Pages, Span};

use crate::bdev::{Bdev, Features};
use crate::channel::Bounce;
use crate::claim::ClaimType;
use crate::desc::{Desc, Hold};
use crate::histogram::{HistogramOptions, HistogramSnapshot};
use crate::info::BdevInfo;
use crate::limits::RateLimits;
use crate::node::Node;
use crate::plan::Plans;
use crate::stats::{BdevStats, ResetMode, SamplingId};

mod error;
mod state;

pub use error::RegistryError;
pub(crate) use state::Holder;
use state::{Entry, State, Waiter};

/// Size of the buffer that write-zeroes is done from where the device cannot do it.
const ZEROES_BYTES: usize = 1 << 20;

/// Takes the last reference to a device that was removed, on the thread that closed it last.
/// Whatever takes long to free is to be sent elsewhere from here.
pub type OnRemoved = Box<dyn FnOnce(Arc<dyn Bdev>) + Send>;

type Subscriber = Arc<dyn Fn(&BdevEvent) + Send + Sync>;

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It can be opened.
    Register,
    /// It is gone, and its name is free.
    Unregister,
    /// Its size has changed.
    Resize,
}

impl EventKind {
    /// The type of SPDK's notification.
    #[must_use]
    pub fn notification_type(self) -> &'static str {
        match self {
            Self::Register => "bdev_register",
            Self::Unregister => "bdev_unregister",
            Self::Resize => "bdev_resize",
        }
    }
}

/// What subscribers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BdevEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which device.
    pub name: String,
}

/// Names a call of [`Registry::wait_for`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitId(u64);

/// All devices of a process. Clones are handles to the same registry.
///
/// It is used when devices, sessions and channels come and go, never per I/O, so it may lock.
/// Callbacks run without the lock held, on the thread whose call caused them.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    memory: Memory,
    zeroes: OnceLock<Buffer>,
    state: Mutex<State>,
    subscribers: Mutex<Vec<Subscriber>>,
    plans: Plans,
}

impl Registry {
    /// An empty registry. `memory` is for the zeroes that are written for devices without a
    /// write-zeroes command.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        let shared = Arc::new(Shared {
            memory,
            zeroes: OnceLock::new(),
            state: Mutex::default(),
            subscribers: Mutex::default(),
            plans: Plans::default(),
        });
        Self { shared }
    }

    /// Adds a device.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] if its name or UUID is taken, also by a device whose removal has
    /// not ended.
    pub fn register(&self, bdev: Arc<dyn Bdev>) -> Result<(), RegistryError> {
        let name = bdev.name().to_owned();
        // On failure the device is dropped after the lock: it may hold a descriptor itself.
        let arrivals = self.shared.lock().insert(&bdev)?;
        self.shared.publish(EventKind::Register, &name);
        for on_arrival in arrivals {
            on_arrival();
        }
        self.examine_new(&*bdev);
        Ok(())
    }

    pub(crate) fn plans(&self) -> &Plans {
        &self.shared.plans
    }

    /// Begins the removal of a device and of all that stand on it. Holders see
    /// [`Desc::is_removed`] and close; when the last has, `on_removed` gets the device.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Removing`] if it has begun already.
    pub fn unregister(&self, name: &str, on_removed: OnRemoved) -> Result<(), RegistryError> {
        let gone = {
            let mut state = self.shared.lock();
            let entry = state.find_mut(name)?;
            if entry.removing {
                let name = name.to_owned();
                return Err(RegistryError::Removing { name });
            }
            entry.on_removed = Some(on_removed);
            let family = state.family_of(name);
            state.begin_removal(&family)
        };
        self.shared.finish_removal(gone);
        Ok(())
    }

    /// Opens a device by its name or UUID.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], also while it is being removed; for writing also
    /// [`RegistryError::Claimed`] and [`RegistryError::ReadOnly`].
    pub fn open(&self, name: &str, write: bool) -> Result<Desc, RegistryError> {
        let mut state = self.shared.lock();
        let id = state.next_id();
        let entry = state.find_mut(name)?;
        entry.admit(name, write)?;
        let holder = if write {
            Holder::Writer
        } else {
            Holder::Reader
        };
        entry.count(holder);
        let hold = Hold {
            shared: Arc::clone(&self.shared),
            node: Arc::clone(&entry.node),
            entry: entry.id,
            id,
            holder,
        };
        Ok(Desc::new(Arc::clone(&entry.bdev), hold))
    }

    /// A device and who uses it, by its name or UUID. Keep it only for a moment: it holds a
    /// reference.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<BdevInfo> {
        self.shared
            .lock()
            .find_mut(name)
            .ok()
            .map(|entry| entry.info())
    }

    /// All devices in the order that they were registered.
    #[must_use]
    pub fn list(&self) -> Vec<BdevInfo> {
        self.shared.lock().entries.iter().map(Entry::info).collect()
    }

    /// Calls `with` on a device of the module whose type is `B`.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::OtherModule`].
    pub fn find<B: Bdev, R>(
        &self,
        name: &str,
        with: impl FnOnce(&B) -> R,
    ) -> Result<R, RegistryError> {
        let bdev = Arc::clone(&self.shared.lock().find_mut(name)?.bdev);
        let any: &dyn Any = &*bdev;
        match any.downcast_ref::<B>() {
            Some(found) => Ok(with(found)),
            None => Err(RegistryError::OtherModule {
                name: name.to_owned(),
                product_name: bdev.product_name(),
            }),
        }
    }

    /// The first of `<prefix>0`, `<prefix>1`, … that no device has.
    #[must_use]
    pub fn free_name(&self, prefix: &str) -> String {
        let state = self.shared.lock();
        let taken = |name: &String| state.entries.iter().any(|entry| entry.bdev.name() == name);
        (0_usize..)
            .map(|number| format!("{prefix}{number}"))
            .find(|name| !taken(name))
            .expect("there are fewer devices than numbers")
    }

    /// Tells the holders of a device, and of those that stand on it, that its size has changed.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn notify_resized(&self, name: &str) -> Result<(), RegistryError> {
        let family = {
            let mut state = self.shared.lock();
            state.find_mut(name)?;
            let family = state.family_of(name);
            for entry in state
                .entries
                .iter()
                .filter(|entry| family.contains(&entry.id))
            {
                entry.node.count_resize();
            }
            state.names_of(&family)
        };
        for name in family {
            self.shared.publish(EventKind::Resize, &name);
        }
        Ok(())
    }

    /// Calls `on_event` on every event from now on.
    pub fn subscribe(&self, on_event: impl Fn(&BdevEvent) + Send + Sync + 'static) {
        self.shared.lock_subscribers().push(Arc::new(on_event));
    }

    /// Calls `on_arrival` once as soon as there is a device of this name or UUID: at once if there
    /// is one.
    pub fn wait_for(&self, name: &str, on_arrival: Box<dyn FnOnce() + Send>) -> WaitId {
        let mut state = self.shared.lock();
        let id = state.next_id();
        if state.find_mut(name).is_ok() {
            drop(state);
            on_arrival();
        } else {
            state.waiters.push(Waiter {
                id,
                name: name.to_owned(),
                on_arrival,
            });
        }
        WaitId(id)
    }

    /// Forgets a wait; `false` if it has ended already.
    pub fn cancel_wait(&self, wait: WaitId) -> bool {
        let mut state = self.shared.lock();
        let before = state.waiters.len();
        state.waiters.retain(|waiter| waiter.id != wait.0);
        state.waiters.len() < before
    }

    /// What was counted on a device.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn stats(&self, name: &str) -> Result<BdevStats, RegistryError> {
        Ok(self.node(name)?.stats())
    }

    /// Clears what was counted on a device.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn reset_stats(&self, name: &str, mode: ResetMode) -> Result<(), RegistryError> {
        self.node(name)?.reset_stats(mode);
        Ok(())
    }

    /// Starts a latency histogram of a device anew, or ends it with `None`. The options must be
    /// valid ([`HistogramOptions::is_valid`]).
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn set_histogram(
        &self,
        name: &str,
        options: Option<HistogramOptions>,
    ) -> Result<(), RegistryError> {
        self.node(name)?.set_histogram(options);
        Ok(())
    }

    /// The latency histogram of a device; `None` if it is not enabled.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn histogram(&self, name: &str) -> Result<Option<HistogramSnapshot>, RegistryError> {
        Ok(self.node(name)?.histogram())
    }

    /// Limits how fast a device is read and written.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn set_limits(&self, name: &str, limits: RateLimits) -> Result<(), RegistryError> {
        self.node(name)?.set_limits(limits);
        Ok(())
    }

    /// The limits of a device.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn limits(&self, name: &str) -> Result<RateLimits, RegistryError> {
        Ok(self.node(name)?.limits().get())
    }

    /// From now on somebody looks at a device's queue depth every `period_us` microseconds, by
    /// [`Registry::sample_queue_depth`]; zero ends that.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn set_qd_sampling_period(
        &self,
        name: &str,
        period_us: u64,
    ) -> Result<SamplingId, RegistryError> {
        let id = SamplingId(self.shared.lock().next_id());
        self.node(name)?.set_sampling(id, period_us);
        Ok(id)
    }

    /// Looks at a device's queue depth. Returns whether to look again: not if the device is gone,
    /// or another period was set.
    #[must_use]
    pub fn sample_queue_depth(&self, name: &str, id: SamplingId) -> bool {
        self.node(name).is_ok_and(|node| node.sample(id))
    }

    fn node(&self, name: &str) -> Result<Arc<Node>, RegistryError> {
        Ok(Arc::clone(&self.shared.lock().find_mut(name)?.node))
    }
}

impl Shared {
    pub(crate) fn hold_channel(self: &Arc<Self>, entry: u64, node: &Arc<Node>) -> Hold {
        let mut state = self.lock();
        let id = state.next_id();
        state.entry_mut(entry).count(Holder::Channel);
        Hold {
            shared: Arc::clone(self),
            node: Arc::clone(node),
            entry,
            id,
            holder: Holder::Channel,
        }
    }

    pub(crate) fn release(&self, entry: u64, id: u64, holder: Holder) {
        let gone = {
            let mut state = self.lock();
            state.entry_mut(entry).release(id, holder);
            state.take_if_gone(entry)
        };
        self.finish_removal(gone.into_iter().collect());
    }

    /// Returns what the descriptor is from now on.
    pub(crate) fn claim(
        &self,
        entry: u64,
        desc: u64,
        holder: Holder,
        claim_type: ClaimType,
        claimer: &str,
    ) -> Result<Holder, RegistryError> {
        self.lock()
            .entry_mut(entry)
            .claim(desc, holder, claim_type, claimer)
    }

    /// Zeroes to write from, if a device of these features needs any.
    pub(crate) fn zeroes_for(&self, features: Features) -> Result<Span, Errno> {
        if features.write_zeroes || features.read_only {
            return Ok(Span::EMPTY);
        }
        if let Some(buffer) = self.zeroes.get() {
            return Ok(buffer.span());
        }
        let buffer = self
            .memory
            .alloc("zeroes for write_zeroes", ZEROES_BYTES, Pages::Small)
            .map_err(|_| Errno::NOMEM)?;
        Ok(self.zeroes.get_or_init(|| buffer).span())
    }

    /// Aligned buffers for a channel of `depth`, if the device needs any.
    pub(crate) fn bounce_for(&self, bdev: &dyn Bdev, depth: u32) -> Result<Bounce, Errno> {
        if bdev.features().buf_align <= 1 {
            return Ok(Bounce::default());
        }
        let owner = format!("aligned buffers of bdev {}", bdev.name());
        let area = self
            .memory
            .alloc(&owner, Bounce::bytes(depth), Pages::Small);
        let area = area.map_err(|_| Errno::NOMEM)?;
        Ok(Bounce::new(area, depth))
    }

    fn publish(&self, kind: EventKind, name: &str) {
        let subscribers = self.lock_subscribers().clone();
        let event = BdevEvent {
            kind,
            name: name.to_owned(),
        };
        for on_event in subscribers {
            on_event(&event);
        }
    }

    fn finish_removal(&self, gone: Vec<Entry>) {
        for entry in gone {
            let name = entry.bdev.name().to_owned();
            match entry.on_removed {
                Some(on_removed) => on_removed(entry.bdev),
                None => drop(entry.bdev),
            }
            self.publish(EventKind::Unregister, &name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_subscribers(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let names = state.entries.iter().map(|entry| entry.bdev.name());
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests;
