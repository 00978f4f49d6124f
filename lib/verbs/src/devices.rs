//! The devices of the host, as one core uses them.

use std::sync::Arc;

use rnbd_fabric::FabricError;
use rnbd_fabric::slab::Slab;
use rustix::io::Errno;

use crate::host::{Instance, Opened};
use crate::probe::WindowSupport;
use crate::sys::{CmId, CompChannel, Cq, Device, DeviceKey, QpSizes};

/// More than a host has slots for.
const DEVICES_MAX: u32 = 4096;

/// A device in this fabric's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) device: Arc<Device>,
    pub(crate) windows: WindowSupport,
    /// Made with the first connection.
    channel: Option<Arc<CompChannel>>,
    cqs: Vec<SharedCq>,
}

/// A completion queue and how much of it its queue pairs may fill.
#[derive(Debug)]
struct SharedCq {
    cq: Arc<Cq>,
    reserved: u32,
}

/// The devices that are open.
#[derive(Debug)]
pub(crate) struct Devices {
    table: Slab<Adapter>,
    /// All completion queues, to be polled in turn.
    cqs: Vec<Arc<Cq>>,
    /// Whether one of the queues is of a device that the kernel emulates.
    needs_processor: bool,
}

impl Devices {
    pub(crate) fn new() -> Self {
        Self {
            table: Slab::new(DEVICES_MAX),
            cqs: Vec::new(),
            needs_processor: false,
        }
    }

    /// Takes a device that was opened for this fabric.
    pub(crate) fn add(&mut self, (device, windows): Opened) {
        let adapter = Adapter {
            device,
            windows,
            channel: None,
            cqs: Vec::new(),
        };
        if self.table.insert(|_, _| adapter).is_err() {
            log::error!("verbs: more than {DEVICES_MAX} devices");
        }
    }

    /// The device that an identifier is on. One that just came up may still be missing.
    pub(crate) fn of(&self, id: &CmId) -> Result<DeviceId, FabricError> {
        let key = id.device_key().ok_or_else(no_device)?;
        self.find(key).ok_or_else(no_device)
    }

    /// The device whose life this is, if it is open.
    pub(crate) fn of_instance(&self, instance: &Arc<Instance>) -> Option<DeviceKey> {
        let mut all = self.table.iter();
        let is_it = |adapter: &Adapter| Arc::ptr_eq(adapter.device.instance(), instance);
        let (_, adapter) = all.find(|(_, adapter)| is_it(adapter))?;
        Some(adapter.device.key())
    }

    /// Takes note of what the device's windows can do.
    pub(crate) fn set_windows(&mut self, instance: &Arc<Instance>, windows: WindowSupport) {
        for (_, adapter) in self.table.iter_mut() {
            if Arc::ptr_eq(adapter.device.instance(), instance) {
                adapter.windows = windows;
            }
        }
    }

    /// Which life of a device this is.
    pub(crate) fn instance(&self, key: DeviceKey) -> Option<Arc<Instance>> {
        let adapter = self.get(self.find(key)?)?;
        Some(Arc::clone(adapter.device.instance()))
    }

    /// The device with this key, if it is open.
    pub(crate) fn find(&self, key: DeviceKey) -> Option<DeviceId> {
        let mut all = self.table.iter();
        let ((index, generation), _) = all.find(|(_, adapter)| adapter.device.key() == key)?;
        Some(DeviceId { index, generation })
    }

    pub(crate) fn get(&self, id: DeviceId) -> Option<&Adapter> {
        self.table.get(id.index, id.generation)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DeviceId, &Adapter)> {
        self.table
            .iter()
            .map(|((index, generation), adapter)| (DeviceId { index, generation }, adapter))
    }

    /// Takes a device out; what is still made from it has to be let go of beside.
    pub(crate) fn remove(&mut self, id: DeviceId) -> Option<Adapter> {
        let removed = self.table.remove(id.index, id.generation);
        self.list_cqs();
        removed
    }

    fn list_cqs(&mut self) {
        let shared = self.table.iter().flat_map(|(_, adapter)| &adapter.cqs);
        self.cqs = shared.map(|shared| Arc::clone(&shared.cq)).collect();
        self.needs_processor = self.cqs.iter().any(|cq| cq.needs_processor());
    }

    /// Whether a device in use is the kernel's emulation, for which see [`Cq::needs_processor`].
    pub(crate) fn need_processor(&self) -> bool {
        self.needs_processor
    }

    /// All completion queues.
    pub(crate) fn cqs(&self) -> &[Arc<Cq>] {
        &self.cqs
    }

    /// All channels that tell of completions, and for how many queues.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (&Arc<CompChannel>, usize)> {
        let adapters = self.table.iter().map(|(_, adapter)| adapter);
        adapters.filter_map(|adapter| Some((adapter.channel.as_ref()?, adapter.cqs.len())))
    }

    /// Cuts what a connection wants down to what the device has.
    pub(crate) fn cut(&self, id: DeviceId, wanted: QpSizes, cq_entries: u32) -> QpSizes {
        let Some(adapter) = self.get(id) else {
            return wanted;
        };
        let limits = adapter.device.limits();
        // Both queues of one queue pair have to fit into what may be reserved of one queue.
        let share = usable(cq_entries.min(limits.cq_entries)) / 2;
        let most = limits.queue_wrs.min(share).max(1);
        QpSizes {
            send_wrs: wanted.send_wrs.clamp(1, most),
            recv_wrs: wanted.recv_wrs.clamp(1, most),
            ..wanted
        }
    }

    /// A completion queue with room for a queue pair; it is reserved.
    pub(crate) fn reserve(
        &mut self,
        id: DeviceId,
        sizes: QpSizes,
        cq_entries: u32,
    ) -> Result<Arc<Cq>, Errno> {
        let adapter = self.table.get_mut(id.index, id.generation);
        let adapter = adapter.ok_or(Errno::NODEV)?;
        let wanted = sizes.send_wrs + sizes.recv_wrs;
        let fits = |shared: &&mut SharedCq| shared.reserved + wanted <= usable(shared.cq.entries());
        if let Some(shared) = adapter.cqs.iter_mut().find(fits) {
            shared.reserved += wanted;
            return Ok(Arc::clone(&shared.cq));
        }
        let entries = cq_entries.min(adapter.device.limits().cq_entries);
        let cq = adapter.new_cq(entries)?;
        adapter.cqs.push(SharedCq {
            cq: Arc::clone(&cq),
            reserved: wanted,
        });
        self.list_cqs();
        Ok(cq)
    }

    /// Gives back what was reserved for a queue pair.
    pub(crate) fn release(&mut self, id: DeviceId, cq: &Arc<Cq>, sizes: QpSizes) {
        let Some(adapter) = self.table.get_mut(id.index, id.generation) else {
            return;
        };
        let mut all = adapter.cqs.iter_mut();
        if let Some(shared) = all.find(|shared| Arc::ptr_eq(&shared.cq, cq)) {
            shared.reserved -= sizes.send_wrs + sizes.recv_wrs;
        }
    }
}

impl Adapter {
    fn new_cq(&mut self, entries: u32) -> Result<Arc<Cq>, Errno> {
        let channel = match &self.channel {
            Some(channel) => Arc::clone(channel),
            None => CompChannel::new(&self.device)?,
        };
        let cq = Cq::new(&channel, entries)?;
        self.channel = Some(channel);
        Ok(cq)
    }
}

/// How many entries of a queue may be reserved. The rest is for what queue pairs that are gone
/// left in it: such completions stay until they are polled.
fn usable(entries: u32) -> u32 {
    entries / 2
}

fn no_device() -> FabricError {
    FabricError::System {
        what: "finding the RDMA device, which may just have come or gone",
        errno: Errno::NODEV,
    }
}
