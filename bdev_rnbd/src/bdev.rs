use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rnbd_base::{CoreIndex, Errno, Nanos, Progress, Wake};
use rnbd_bdev::{Bdev, BdevIo, Features, Geometry, IoChannel, IoDone};
use rnbd_proto::clt::{DeviceIndex, DeviceInfo, DeviceState};
use rnbd_wire::rnbd::AccessMode;
use rtrb::{Consumer, Producer, RingBuffer};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::message::{Message, Peer, PortSetup, SessionKey};

/// A mapped device of a controller.
///
/// Its I/O goes through two rings per consumer to the shard of the consumer's core: nothing is
/// allocated or locked for it.
pub struct RnbdBdev {
    identity: Identity,
    /// The shards that have a channel of the session, in the order of their cores.
    shards: Vec<Peer>,
    info: Mutex<DeviceInfo>,
    state: Mutex<DeviceState>,
    num_blocks: AtomicU64,
    max_io_bytes: AtomicU32,
}

/// What a bdev is called and what it stands for.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) controller: Arc<str>,
    pub(crate) sessname: String,
    pub(crate) device_path: String,
    pub(crate) access_mode: AccessMode,
    pub(crate) session: SessionKey,
    pub(crate) device: DeviceIndex,
}

impl RnbdBdev {
    pub(crate) fn new(
        identity: Identity,
        shards: Vec<Peer>,
        info: DeviceInfo,
        max_io_bytes: u32,
    ) -> Self {
        Self {
            identity,
            shards,
            info: Mutex::new(info),
            state: Mutex::new(DeviceState::Open),
            num_blocks: AtomicU64::new(info.num_blocks),
            max_io_bytes: AtomicU32::new(max_io_bytes),
        }
    }

    fn info(&self) -> DeviceInfo {
        *self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the size changed by that.
    pub(crate) fn set_info(&self, info: DeviceInfo) -> bool {
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = info;
        self.set_num_blocks(info.num_blocks)
    }

    pub(crate) fn set_num_blocks(&self, num_blocks: u64) -> bool {
        self.num_blocks.swap(num_blocks, Ordering::Relaxed) != num_blocks
    }

    pub(crate) fn set_max_io_bytes(&self, bytes: u32) {
        self.max_io_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_state(&self, state: DeviceState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The shard that serves a consumer on `core`: that of the same core, or another one, over
    /// which consumers on cores without a shard are spread.
    fn shard_for(&self, core: CoreIndex) -> Option<&Peer> {
        let same = self.shards.iter().find(|shard| shard.core == core);
        same.or_else(|| {
            let index = usize::from(core.0).checked_rem(self.shards.len())?;
            self.shards.get(index)
        })
    }
}

impl Bdev for RnbdBdev {
    fn name(&self) -> &str {
        &self.identity.name
    }

    fn product_name(&self) -> &'static str {
        "RNBD disk"
    }

    fn uuid(&self) -> Uuid {
        self.identity.uuid
    }

    fn geometry(&self) -> Geometry {
        let info = self.info();
        Geometry {
            block_size: info.block_size,
            physical_block_size: info.physical_block_size,
            num_blocks: self.num_blocks(),
        }
    }

    fn num_blocks(&self) -> u64 {
        self.num_blocks.load(Ordering::Relaxed)
    }

    fn features(&self) -> Features {
        let info = self.info();
        Features {
            read_only: self.identity.access_mode == AccessMode::ReadOnly,
            write_cache: info.write_cache,
            unmap: info.max_discard_blocks > 0,
            write_zeroes: info.max_write_zeroes_blocks > 0,
            max_rw_blocks: self.max_io_bytes.load(Ordering::Relaxed) / info.block_size,
            max_unmap_blocks: info.max_discard_blocks.into(),
            max_write_zeroes_blocks: info.max_write_zeroes_blocks.into(),
            unmap_granularity: info.discard_granularity,
            buf_align: 1,
        }
    }

    fn open_channel(&self, core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        let shard = self.shard_for(core).ok_or(Errno::NODEV)?;
        let capacity = usize::try_from(depth.max(1)).map_err(|_| Errno::INVAL)?;
        let (to_shard, requests) = RingBuffer::new(capacity);
        let (done, from_shard) = RingBuffer::new(capacity);
        let port = PortSetup {
            device: self.identity.device,
            requests,
            done,
        };
        let message = Message::OpenPort(self.identity.session, port);
        shard.sender.send(message).map_err(|_| Errno::AGAIN)?;
        Ok(Box::new(RnbdIoChannel {
            requests: to_shard,
            done: from_shard,
            outstanding: 0,
            foreign: (shard.core != core).then(|| Arc::clone(&shard.wake)),
        }))
    }

    fn driver_specific(&self) -> Map<String, Value> {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rnbd = json!({
            "ctrlr_name": &*self.identity.controller,
            "sessname": self.identity.sessname,
            "device_path": self.identity.device_path,
            "access_mode": self.identity.access_mode.as_str(),
            "device_id": self.info().device_id,
            "state": state.as_str(),
        });
        Map::from_iter([("rnbd".to_owned(), rnbd)])
    }
}

impl fmt::Debug for RnbdBdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RnbdBdev({})", self.identity.name)
    }
}

/// One consumer's rings to the shard that serves it.
struct RnbdIoChannel {
    requests: Producer<BdevIo>,
    done: Consumer<IoDone>,
    outstanding: u32,
    /// Wakes the shard, if that is on another core than the consumer.
    foreign: Option<Arc<dyn Wake>>,
}

impl IoChannel for RnbdIoChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        let pushed = self.requests.push(*io);
        assert!(
            pushed.is_ok(),
            "more I/Os outstanding than the channel's depth"
        );
        self.outstanding += 1;
        if let Some(wake) = &self.foreign {
            wake.wake();
        }
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        let before = done.len();
        while done.len() < done.capacity() {
            let Ok(one) = self.done.pop() else {
                break;
            };
            done.push(one);
            self.outstanding -= 1;
        }
        Progress::from_work(done.len() > before)
    }

    /// A shard on the same core answers for its own sleep; one on another core has no way to wake
    /// this one, so nobody sleeps while it works.
    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        self.done.is_empty() && (self.foreign.is_none() || self.outstanding == 0)
    }
}

impl fmt::Debug for RnbdIoChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RnbdIoChannel({} outstanding)", self.outstanding)
    }
}
