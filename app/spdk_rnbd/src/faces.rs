//! The initiator's bdevs as SPDK's users see them: one disk of SPDK's for each.
//!
//! ```text
//!  registered here ──> offered ──(being removed here)──> leaving: SPDK's users let go ──> gone
//!                └──> refused by SPDK: unmapped again
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bdev_rnbd::RnbdBdev;
use rnbd_base::{Errno, Progress};
use rnbd_bdev::{Bdev, BdevEvent, EventKind};
use rnbd_spdk::{DiskHandle, DiskInfo, Poller, Thread, register_disk};
use serde_json::Value;

use crate::device::RnbdDisk;
use crate::runtime::Shared;

/// Microseconds between two looks at which bdevs are being removed.
const WATCH_PERIOD_US: u64 = 10_000;

/// All disks of ours. Lives on the application's thread; the lock is for the sake of the type.
pub(crate) struct Faces {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    faces: Vec<Face>,
    /// Bdevs that SPDK would not have, until the call that made them has been answered.
    refused: Vec<(String, Errno)>,
    /// What waits until nothing is leaving.
    waiting: Vec<Box<dyn FnOnce() + Send>>,
    watch: Option<Poller>,
}

struct Face {
    name: String,
    disk: DiskHandle,
    leaving: bool,
}

impl Faces {
    /// From now on every bdev of the initiator is a disk of SPDK's.
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Arc<Self>, Errno> {
        let faces = Arc::new(Self {
            shared,
            state: Mutex::default(),
        });
        let weak = Arc::downgrade(&faces);
        let told = Weak::clone(&weak);
        faces
            .shared
            .bdevs
            .subscribe(move |event| tell(&told, event.clone()));
        let watch = Poller::register("rnbd_bdevs", WATCH_PERIOD_US, move || {
            weak.upgrade().map_or(Progress::Idle, |faces| faces.look())
        })?;
        faces.lock().watch = Some(watch);
        Ok(faces)
    }

    pub(crate) fn stop(&self) {
        let watch = self.lock().watch.take();
        drop(watch);
    }

    /// The first of the bdevs that a call made which SPDK would not have.
    pub(crate) fn refused(&self, made: &Value) -> Option<(String, Errno)> {
        let is_made = |name: &str| match made {
            Value::String(made) => made == name,
            Value::Array(all) => all.iter().any(|made| made == name),
            _ => false,
        };
        let mut state = self.lock();
        let at = state.refused.iter().position(|(name, _)| is_made(name))?;
        Some(state.refused.swap_remove(at))
    }

    /// Calls `then` when no disk is leaving.
    pub(crate) fn when_settled(&self, then: impl FnOnce() + Send + 'static) {
        self.lock().waiting.push(Box::new(then));
        self.settle();
    }

    fn settle(&self) {
        let ready = {
            let mut state = self.lock();
            match state.faces.iter().any(|face| face.leaving) {
                true => return,
                false => std::mem::take(&mut state.waiting),
            }
        };
        for then in ready {
            then();
        }
    }

    fn on_event(self: &Arc<Self>, event: &BdevEvent) {
        match event.kind {
            EventKind::Register => self.add(&event.name),
            EventKind::Unregister => self.remove(&event.name),
            EventKind::Resize => self.resize(&event.name),
        }
    }

    fn add(self: &Arc<Self>, name: &str) {
        let describe = |bdev: &RnbdBdev| (info(bdev), bdev.features());
        let Ok((info, features)) = self.shared.bdevs.find(name, describe) else {
            return;
        };
        let disk = RnbdDisk::new(name, features, Arc::clone(&self.shared));
        let (faces, gone) = (Arc::downgrade(self), name.to_owned());
        let on_gone = move || {
            if let Some(faces) = faces.upgrade() {
                faces.forget(&gone);
            }
        };
        match register_disk(&info, Box::new(disk), on_gone) {
            Ok(disk) => self.lock().faces.push(Face {
                name: name.to_owned(),
                disk,
                leaving: false,
            }),
            Err(errno) => self.lock().refused.push((name.to_owned(), errno)),
        }
    }

    /// Tells SPDK's users to let go.
    fn remove(&self, name: &str) {
        let disk = {
            let mut state = self.lock();
            let mut all = state.faces.iter_mut();
            let Some(face) = all.find(|face| face.name == name && !face.leaving) else {
                return;
            };
            face.leaving = true;
            face.disk
        };
        disk.unregister();
    }

    /// The disk is gone, because it was removed here or because SPDK ends.
    fn forget(&self, name: &str) {
        self.lock().faces.retain(|face| face.name != name);
        self.settle();
    }

    fn resize(&self, name: &str) {
        let Some(info) = self.shared.bdevs.get(name) else {
            return;
        };
        let num_blocks = info.bdev.geometry().num_blocks;
        let disk = {
            let state = self.lock();
            let mut all = state.faces.iter();
            all.find(|face| face.name == name && !face.leaving)
                .map(|face| face.disk)
        };
        if let Some(Err(errno)) = disk.map(|disk| disk.set_num_blocks(num_blocks)) {
            log::error!("SPDK's users of {name} keep its old size: {errno}");
        }
    }

    /// Users are told to let go of what is being removed here and waits for them.
    fn look(&self) -> Progress {
        let names: Vec<String> = {
            let state = self.lock();
            let offered = state.faces.iter().filter(|face| !face.leaving);
            offered.map(|face| face.name.clone()).collect()
        };
        let bdevs = &self.shared.bdevs;
        let is_going = |name: &String| bdevs.get(name).is_none_or(|info| info.removing);
        let going: Vec<String> = names.into_iter().filter(is_going).collect();
        for name in &going {
            self.remove(name);
        }
        Progress::from_work(!going.is_empty())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes an event on to the application's thread.
fn tell(faces: &Weak<Faces>, event: BdevEvent) {
    let faces = Weak::clone(faces);
    if let Some(app) = Thread::app() {
        app.send(move || {
            if let Some(faces) = faces.upgrade() {
                faces.on_event(&event);
            }
        });
    }
}

fn info(bdev: &RnbdBdev) -> DiskInfo {
    let (geometry, features) = (bdev.geometry(), bdev.features());
    let most = |blocks: u64| u32::try_from(blocks).unwrap_or(u32::MAX);
    DiskInfo {
        name: bdev.name().to_owned(),
        product_name: bdev.product_name().to_owned(),
        uuid: bdev.uuid(),
        block_size: geometry.block_size,
        physical_block_size: geometry.physical_block_size,
        num_blocks: geometry.num_blocks,
        write_cache: features.write_cache,
        max_rw_blocks: features.max_rw_blocks,
        max_unmap_blocks: most(features.max_unmap_blocks),
        max_write_zeroes_blocks: most(features.max_write_zeroes_blocks),
    }
}

impl fmt::Debug for Faces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_list()
            .entries(state.faces.iter().map(|face| &face.name))
            .finish()
    }
}
