//! `bdev_error_*`: a device that passes I/O on to another and fails some of it on demand.

use std::os::fd::RawFd;
use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bdev::{Bdev, ConfigCall, Features, Geometry};
use crate::channel::{Channel, IoChannel};
use crate::claim::ClaimType;
use crate::completions::Completions;
use crate::create::{CreateError, to_params};
use crate::desc::Desc;
use crate::io::{BdevIo, IoDone, IoKind, IoOp};
use crate::plan::Plan;
use crate::registry::Registry;

mod injection;

pub use injection::{ErrorType, InjectError, InjectIoType};
use injection::{Fate, Injections};

/// How often held-back I/O is looked at while the core sleeps.
const HELD_POLL_INTERVAL: Nanos = Nanos::from_millis(10);

/// Parameters of `bdev_error_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorOptions {
    /// The device it stands on; its own name is `EE_` and that.
    pub base_name: String,
    /// By default a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

impl ErrorOptions {
    fn call(&self) -> ConfigCall {
        ConfigCall {
            method: "bdev_error_create",
            params: to_params(self),
        }
    }
}

/// A device that fails on demand, for tests.
///
/// An I/O meets its fate when it is submitted. Failed ones never reach the base. Held-back ones
/// wait until [`ErrorBdev::resume_pending`] sends them on, or an injection of
/// [`InjectIoType::Clear`] fails them.
#[derive(Debug)]
pub struct ErrorBdev {
    name: String,
    uuid: Uuid,
    options: ErrorOptions,
    base: Desc,
    injections: Arc<Injections>,
}

impl ErrorBdev {
    /// Claims the base, and registers a device on it, now or when the base comes; returns its name.
    ///
    /// # Errors
    /// [`CreateError::Registry`]: the base is claimed, or the name is taken.
    pub fn create(registry: &Registry, mut options: ErrorOptions) -> Result<String, CreateError> {
        let name = format!("EE_{}", options.base_name);
        options.uuid.get_or_insert_with(Uuid::new_v4);
        registry.carry_out(Plan {
            name: name.clone(),
            base: options.base_name.clone(),
            config: options.call(),
            make: Arc::new(move |registry| Self::make(registry, options.clone())),
        })?;
        Ok(name)
    }

    fn make(registry: &Registry, mut options: ErrorOptions) -> Result<(), CreateError> {
        let name = format!("EE_{}", options.base_name);
        let base = open_base(registry, &options.base_name, &name)?;
        options.base_name = base.bdev().name().to_owned();
        let bdev = Self {
            uuid: *options.uuid.get_or_insert_with(Uuid::new_v4),
            name,
            options,
            base,
            injections: Arc::default(),
        };
        Ok(registry.register(Arc::new(bdev))?)
    }

    /// `bdev_error_inject_error`.
    ///
    /// # Errors
    /// [`CreateError::Invalid`] if data shall be corrupted of I/O that carries none.
    pub fn inject(&self, error: &InjectError) -> Result<(), CreateError> {
        self.injections
            .set(error)
            .map_err(|reason| CreateError::invalid(&self.name, reason))
    }

    /// `bdev_error_resume_pending`: what is held back goes on to the base.
    pub fn resume_pending(&self) {
        self.injections.resume_held();
    }
}

/// Opens what a device stands on, and keeps others from writing to it.
pub(crate) fn open_base(
    registry: &Registry,
    base_name: &str,
    claimer: &str,
) -> Result<Desc, CreateError> {
    let mut base = registry.open(base_name, false)?;
    if !base.bdev().features().read_only {
        base.claim(ClaimType::ExclusiveWrite, claimer)?;
    }
    Ok(base)
}

/// What a device that passes I/O on can do. Write-zeroes is passed on in any case: if it has to
/// be done by writing, then below, as what a misaligned buffer takes.
pub(crate) fn features_over(base: &Desc) -> Features {
    let features = Features {
        buf_align: 1,
        ..base.bdev().features()
    };
    if features.write_zeroes {
        return features;
    }
    Features {
        write_zeroes: true,
        max_write_zeroes_blocks: 0,
        ..features
    }
}

impl Bdev for ErrorBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn product_name(&self) -> &'static str {
        "Error Injection Disk"
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
        Ok(Box::new(ErrorChannel {
            base: self.base.open_channel(core, depth)?,
            resumes_seen: self.injections.resumes(),
            clears_seen: self.injections.clears(),
            injections: Arc::clone(&self.injections),
            held: Vec::with_capacity(depth as usize),
            damages: vec![None; depth as usize],
            ended: Completions::new(depth),
            last_poll: Nanos::ZERO,
        }))
    }

    fn config(&self) -> Vec<ConfigCall> {
        vec![self.options.call()]
    }

    fn driver_specific(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut object = serde_json::Map::new();
        object.insert("base_bdev_name".to_owned(), self.base.bdev().name().into());
        object
    }
}

#[derive(Debug)]
struct ErrorChannel {
    base: Channel,
    injections: Arc<Injections>,
    resumes_seen: u32,
    clears_seen: u32,
    held: Vec<BdevIo>,
    /// By tag: what to change when the base has ended it.
    damages: Vec<Option<Damage>>,
    ended: Completions,
    last_poll: Nanos,
}

/// One byte of a buffer that is to be changed; doing it twice undoes it.
#[derive(Clone, Copy, Debug)]
struct Damage {
    buf: rnbd_mem::Span,
    offset: u64,
    value: u8,
}

impl Damage {
    fn inflict(self) {
        let mut byte = [0];
        let within = usize::try_from(self.offset)
            .ok()
            .filter(|&at| at < self.buf.len());
        if let Some(at) = within {
            self.buf.read_at(at, &mut byte);
            byte[0] ^= self.value;
            self.buf.write_at(at, &byte);
        }
    }
}

impl ErrorChannel {
    fn pass_on(&mut self, io: &BdevIo, now: Nanos) {
        if let Err(errno) = self.base.submit(io, now) {
            self.ended.push(io.tag, Err(errno));
        }
    }

    /// Damages what is written before it is, and mends it when it was: the buffer is not ours.
    fn corrupt(&mut self, io: &BdevIo, offset: u64, value: u8, now: Nanos) {
        let buf = io.buf;
        let damage = Damage { buf, offset, value };
        let writes = io.op != IoOp::Read;
        if writes {
            damage.inflict();
        }
        if let Err(errno) = self.base.submit(io, now) {
            self.ended.push(io.tag, Err(errno));
            if writes {
                damage.inflict();
            }
            return;
        }
        if let Some(slot) = slot_mut(&mut self.damages, io.tag) {
            *slot = Some(damage);
        }
    }

    /// Obeys what was asked for since the last poll.
    fn release_held(&mut self, now: Nanos) {
        let resumes = self.injections.resumes();
        let clears = self.injections.clears();
        if clears != self.clears_seen {
            while let Some(io) = self.held.pop() {
                self.ended.push(io.tag, Err(Errno::IO));
            }
        } else if resumes != self.resumes_seen {
            for at in 0..self.held.len() {
                let io = self.held[at];
                self.pass_on(&io, now);
            }
            self.held.clear();
        }
        self.resumes_seen = resumes;
        self.clears_seen = clears;
    }
}

fn slot_mut<T>(slots: &mut [T], tag: u64) -> Option<&mut T> {
    slots.get_mut(usize::try_from(tag).ok()?)
}

impl IoChannel for ErrorChannel {
    fn submit(&mut self, io: &BdevIo, now: Nanos) {
        match self
            .injections
            .fate_of(io.op.kind(), self.base.outstanding())
        {
            Fate::PassOn => self.pass_on(io, now),
            Fate::Fail(errno) => self.ended.push(io.tag, Err(errno)),
            Fate::Hold => self.held.push(*io),
            Fate::Corrupt { offset, value } => self.corrupt(io, offset, value, now),
        }
    }

    fn poll(&mut self, now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        self.last_poll = now;
        self.release_held(now);
        let failed = self.ended.drain_to(done);
        let first = done.len();
        let progress = self.base.poll(now, done);
        for ended in &done[first..] {
            let damage = slot_mut(&mut self.damages, ended.tag).and_then(Option::take);
            if let Some(damage) = damage {
                damage.inflict();
            }
        }
        progress.or(failed)
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let look_again = (!self.held.is_empty()).then(|| self.last_poll + HELD_POLL_INTERVAL);
        let deadlines = [look_again, self.base.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.ended.is_empty() && self.base.prepare_sleep(fds)
    }
}

/// The kinds that carry data, whose content can be corrupted.
fn carries_data(kind: IoKind) -> bool {
    matches!(kind, IoKind::Read | IoKind::Write)
}

#[cfg(test)]
mod tests;
