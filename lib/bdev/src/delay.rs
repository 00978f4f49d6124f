//! `bdev_delay_*`: a device that passes I/O on to another and completes it late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::bdev::{Bdev, ConfigCall, Features, Geometry};
use crate::channel::{Channel, IoChannel};
use crate::completions::Completions;
use crate::create::{CreateError, check_name, to_params};
use crate::desc::Desc;
use crate::error::{features_over, open_base};
use crate::io::{BdevIo, IoDone, IoKind};
use crate::plan::Plan;
use crate::registry::Registry;

/// Every so many I/Os of a kind take the `p99` latency instead of the average one.
const P99_EVERY: u32 = 100;

/// Parameters of `bdev_delay_create`. Latencies are in microseconds and come on top of what the
/// base takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DelayOptions {
    /// Name of the device.
    pub name: String,
    /// The device it stands on.
    pub base_bdev_name: String,
    /// By default a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Of most reads.
    pub avg_read_latency: u64,
    /// Of one read in a hundred.
    pub p99_read_latency: u64,
    /// Of most writes.
    pub avg_write_latency: u64,
    /// Of one write in a hundred.
    pub p99_write_latency: u64,
}

impl DelayOptions {
    fn call(&self) -> ConfigCall {
        ConfigCall {
            method: "bdev_delay_create",
            params: to_params(self),
        }
    }
}

/// Which latency `bdev_delay_update_latency` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyType {
    /// Of most reads.
    AvgRead,
    /// Of one read in a hundred.
    P99Read,
    /// Of most writes.
    AvgWrite,
    /// Of one write in a hundred.
    P99Write,
}

/// In microseconds, by [`LatencyType`].
type Latencies = [AtomicU64; 4];

/// A slow device, for tests.
///
/// Reads and writes are delayed; flush, unmap and write-zeroes are not. Of each kind, every
/// hundredth on a channel takes the `p99` latency, so that a run can be repeated.
#[derive(Debug)]
pub struct DelayBdev {
    uuid: Uuid,
    options: DelayOptions,
    base: Desc,
    latencies: Arc<Latencies>,
}

impl DelayBdev {
    /// Claims the base, and registers a device on it, now or when the base comes; returns its name.
    ///
    /// # Errors
    /// [`CreateError::Registry`]: the base is claimed, or the name is taken.
    /// [`CreateError::Invalid`]: a `p99` latency is below the average.
    pub fn create(registry: &Registry, mut options: DelayOptions) -> Result<String, CreateError> {
        check_name(&options.name)?;
        check_latencies(&options)?;
        options.uuid.get_or_insert_with(Uuid::new_v4);
        let name = options.name.clone();
        registry.carry_out(Plan {
            name: name.clone(),
            base: options.base_bdev_name.clone(),
            config: options.call(),
            make: Arc::new(move |registry| Self::make(registry, options.clone())),
        })?;
        Ok(name)
    }

    fn make(registry: &Registry, mut options: DelayOptions) -> Result<(), CreateError> {
        let base = open_base(registry, &options.base_bdev_name, &options.name)?;
        options.base_bdev_name = base.bdev().name().to_owned();
        let latencies = [
            options.avg_read_latency,
            options.p99_read_latency,
            options.avg_write_latency,
            options.p99_write_latency,
        ];
        Ok(registry.register(Arc::new(Self {
            uuid: *options.uuid.get_or_insert_with(Uuid::new_v4),
            options,
            base,
            latencies: Arc::new(latencies.map(AtomicU64::new)),
        }))?)
    }

    /// `bdev_delay_update_latency`: for I/O that ends at the base from now on.
    pub fn update_latency(&self, which: LatencyType, latency_us: u64) {
        self.latencies[which as usize].store(latency_us, Ordering::Relaxed);
    }

    fn latency_us(&self, which: LatencyType) -> u64 {
        self.latencies[which as usize].load(Ordering::Relaxed)
    }

    fn current_options(&self) -> DelayOptions {
        DelayOptions {
            avg_read_latency: self.latency_us(LatencyType::AvgRead),
            p99_read_latency: self.latency_us(LatencyType::P99Read),
            avg_write_latency: self.latency_us(LatencyType::AvgWrite),
            p99_write_latency: self.latency_us(LatencyType::P99Write),
            ..self.options.clone()
        }
    }
}

fn check_latencies(options: &DelayOptions) -> Result<(), CreateError> {
    let reads_fit = options.avg_read_latency <= options.p99_read_latency;
    if reads_fit && options.avg_write_latency <= options.p99_write_latency {
        return Ok(());
    }
    let reason = "a p99 latency cannot be below the average one";
    Err(CreateError::invalid(&options.name, reason))
}

impl Bdev for DelayBdev {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn product_name(&self) -> &'static str {
        "delay"
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn features(&self) -> Features {
        features_over(&self.base)
    }

    fn base_name(&self) -> Option<&str> {
        Some(self.base.bdev().name())
    }

    fn open_channel(&self, core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(DelayChannel {
            base: self.base.open_channel(core, depth)?,
            latencies: Arc::clone(&self.latencies),
            reads: 0,
            writes: 0,
            kinds: vec![IoKind::Flush; depth as usize],
            base_done: Vec::with_capacity(depth as usize),
            late: BinaryHeap::with_capacity(depth as usize),
            order: 0,
            ended: Completions::new(depth),
        }))
    }

    fn config(&self) -> Vec<ConfigCall> {
        vec![self.current_options().call()]
    }

    fn driver_specific(&self) -> Map<String, Value> {
        let mut delay = to_params(&self.current_options());
        delay.shift_remove("uuid");
        Map::from_iter([("delay".to_owned(), Value::Object(delay))])
    }
}

#[derive(Debug)]
struct DelayChannel {
    base: Channel,
    latencies: Arc<Latencies>,
    reads: u32,
    writes: u32,
    /// By tag.
    kinds: Vec<IoKind>,
    base_done: Vec<IoDone>,
    /// What the base has ended, the one due first on top.
    late: BinaryHeap<Reverse<Late>>,
    order: u64,
    ended: Completions,
}

#[derive(Debug)]
struct Late {
    due: Nanos,
    /// Those due at the same time end as they came.
    order: u64,
    done: IoDone,
}

impl Late {
    fn key(&self) -> (Nanos, u64) {
        (self.due, self.order)
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl DelayChannel {
    fn latency_of(&mut self, kind: IoKind) -> Nanos {
        let which = match kind {
            IoKind::Read if is_hundredth(&mut self.reads) => LatencyType::P99Read,
            IoKind::Read => LatencyType::AvgRead,
            IoKind::Write if is_hundredth(&mut self.writes) => LatencyType::P99Write,
            IoKind::Write => LatencyType::AvgWrite,
            IoKind::Flush | IoKind::Unmap | IoKind::WriteZeroes => return Nanos::ZERO,
        };
        Nanos::from_micros(self.latencies[which as usize].load(Ordering::Relaxed))
    }

    /// Takes what the base has ended.
    fn collect(&mut self, now: Nanos) -> Progress {
        let progress = self.base.poll(now, &mut self.base_done);
        for at in 0..self.base_done.len() {
            let done = self.base_done[at];
            let index = usize::try_from(done.tag).unwrap_or(usize::MAX);
            let kind = self.kinds.get(index).copied().unwrap_or(IoKind::Flush);
            let due = now + self.latency_of(kind);
            self.order += 1;
            let order = self.order;
            self.late.push(Reverse(Late { due, order, done }));
        }
        self.base_done.clear();
        progress
    }

    fn end_due(&mut self, now: Nanos) {
        while let Some(Reverse(late)) = self.late.peek()
            && late.due <= now
        {
            self.ended.push(late.done.tag, late.done.result);
            self.late.pop();
        }
    }
}

fn is_hundredth(count: &mut u32) -> bool {
    *count = (*count + 1) % P99_EVERY;
    *count == 0
}

impl IoChannel for DelayChannel {
    fn submit(&mut self, io: &BdevIo, now: Nanos) {
        let index = usize::try_from(io.tag).unwrap_or(usize::MAX);
        if let Some(kind) = self.kinds.get_mut(index) {
            *kind = io.op.kind();
        }
        if let Err(errno) = self.base.submit(io, now) {
            self.ended.push(io.tag, Err(errno));
        }
    }

    fn poll(&mut self, now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        let collected = self.collect(now);
        self.end_due(now);
        self.ended.drain_to(done).or(collected)
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let due = self.late.peek().map(|Reverse(late)| late.due);
        [due, self.base.next_deadline()].into_iter().flatten().min()
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.ended.is_empty() && self.base.prepare_sleep(fds)
    }
}

#[cfg(test)]
mod tests;
