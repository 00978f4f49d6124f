//! An SPDK bdev as a device of [`rnbd_bdev`].
//!
//! A descriptor is opened, and the bdev claimed for its writer, when the device is made; it is
//! closed when the last reference to the device is gone, or after SPDK has removed the bdev.
//!
//! ```text
//!  open ──> registered by the caller ──(SPDK removes it: `on_event`)──> unregistered ──> closed
//! ```

mod channel;
mod status;

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno};
use rnbd_bdev::{Bdev, Features, Geometry, IoChannel};
use rnbd_spdk_sys as sys;
use rnbd_spdk_sys::spdk_bdev_event_type as event;
use rnbd_spdk_sys::spdk_bdev_io_type as io_type;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::errors::check;
use crate::module;
use crate::thread::Thread;
use channel::SpdkChannel;

/// What SPDK says about a bdev that is open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpdkEvent {
    /// It goes: channels and descriptor are to be closed.
    Remove,
    /// Its size has changed.
    Resize,
}

/// Why a bdev cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// There is none of that name.
    NotFound,
    /// It is there, but somebody has claimed it, or SPDK has another reason.
    Refused(Errno),
}

/// A bdev of SPDK's, open for one user: the target.
pub struct SpdkBdev {
    desc: Arc<OpenDesc>,
    name: String,
    product_name: &'static str,
    uuid: Uuid,
    features: Features,
}

type OnEvent = dyn Fn(SpdkEvent) + Send + Sync;

/// An open descriptor, closed on the thread that opened it.
struct OpenDesc {
    raw: NonNull<sys::spdk_bdev_desc>,
    thread: Thread,
    /// What the descriptor's callback works on; freed after it is closed.
    on_event: NonNull<Box<OnEvent>>,
}

// SAFETY: SPDK lets any of its threads get channels and submit I/O through a descriptor.
unsafe impl Send for OpenDesc {}
// SAFETY: as for Send.
unsafe impl Sync for OpenDesc {}

impl SpdkBdev {
    /// Opens the bdev `name`; a writer claims it, so that nobody else writes. `on_event` is called
    /// on this thread, which is one of SPDK's.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        name: &str,
        write: bool,
        on_event: impl Fn(SpdkEvent) + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        let desc = OpenDesc::open(name, write, Box::new(on_event))?;
        if write {
            desc.claim().map_err(OpenError::Refused)?;
        }
        Ok(Self {
            name: name.to_owned(),
            product_name: desc.product_name(),
            uuid: desc.uuid(),
            features: desc.features(write),
            desc: Arc::new(desc),
        })
    }
}

impl OpenDesc {
    fn open(name: &str, write: bool, on_event: Box<OnEvent>) -> Result<Self, OpenError> {
        let refused = |errno| Err(OpenError::Refused(errno));
        let (Some(thread), Ok(name)) = (Thread::current(), CString::new(name)) else {
            return refused(Errno::INVAL);
        };
        let on_event = NonNull::from(Box::leak(Box::new(on_event)));
        let mut raw = std::ptr::null_mut();
        // SAFETY: name and result live through the call, the context until the descriptor is closed.
        let status = unsafe {
            sys::spdk_bdev_open_ext(
                name.as_ptr(),
                write,
                Some(on_bdev_event),
                on_event.as_ptr().cast(),
                &raw mut raw,
            )
        };
        if let (Ok(()), Some(raw)) = (check(status), NonNull::new(raw)) {
            return Ok(Self {
                raw,
                thread,
                on_event,
            });
        }
        // SAFETY: it was leaked above, and SPDK did not take it.
        drop(unsafe { Box::from_raw(on_event.as_ptr()) });
        match Errno::from_raw(status) {
            Errno::NODEV => Err(OpenError::NotFound),
            errno => refused(errno),
        }
    }

    fn claim(&self) -> Result<(), Errno> {
        // SAFETY: the descriptor is open; this claim takes no options.
        check(unsafe {
            sys::spdk_bdev_module_claim_bdev_desc(
                self.raw.as_ptr(),
                sys::spdk_bdev_claim_type::SPDK_BDEV_CLAIM_READ_MANY_WRITE_ONE,
                std::ptr::null_mut(),
                module::raw(),
            )
        })
    }

    /// The bdev, which is there as long as the descriptor is open.
    fn bdev(&self) -> *mut sys::spdk_bdev {
        // SAFETY: the descriptor is open.
        unsafe { sys::spdk_bdev_desc_get_bdev(self.raw.as_ptr()) }
    }

    /// SPDK's modules name their kind by constants, which are kept as such.
    fn product_name(&self) -> &'static str {
        // SAFETY: the bdev is there.
        let name = unsafe { sys::spdk_bdev_get_product_name(self.bdev()) };
        // SAFETY: it is a string of the bdev's.
        let name = unsafe { CStr::from_ptr(name) };
        Box::leak(name.to_string_lossy().into_owned().into_boxed_str())
    }

    fn uuid(&self) -> Uuid {
        // SAFETY: the bdev is there.
        let uuid = unsafe { sys::spdk_bdev_get_uuid(self.bdev()) };
        // SAFETY: it is sixteen bytes, in the order of the text.
        Uuid::from_bytes(unsafe { *uuid.cast::<[u8; 16]>() })
    }

    fn geometry(&self) -> Geometry {
        let bdev = self.bdev();
        // SAFETY: the bdev is there.
        let block_size = unsafe { sys::spdk_bdev_desc_get_block_size(self.raw.as_ptr()) };
        // SAFETY: as above.
        let physical = unsafe { sys::spdk_bdev_get_physical_block_size(bdev) };
        // SAFETY: as above.
        let num_blocks = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
        Geometry {
            block_size,
            physical_block_size: physical.max(block_size),
            num_blocks,
        }
    }

    fn supports(&self, kind: sys::spdk_bdev_io_type::Type) -> bool {
        // SAFETY: the bdev is there.
        unsafe { sys::spdk_bdev_io_type_supported(self.bdev(), kind) }
    }

    /// SPDK splits, aligns and emulates by itself.
    fn features(&self, write: bool) -> Features {
        // SAFETY: the bdev is there.
        let write_cache = unsafe { sys::spdk_bdev_has_write_cache(self.bdev()) };
        Features {
            read_only: !write,
            write_cache,
            unmap: self.supports(io_type::SPDK_BDEV_IO_TYPE_UNMAP),
            write_zeroes: self.supports(io_type::SPDK_BDEV_IO_TYPE_WRITE_ZEROES),
            unmap_granularity: self.geometry().block_size,
            ..Features::default()
        }
    }
}

impl Drop for OpenDesc {
    fn drop(&mut self) {
        let closing = Closing(self.raw, self.on_event);
        self.thread.send(move || closing.close());
    }
}

/// A descriptor on its way to the thread that closes it.
struct Closing(NonNull<sys::spdk_bdev_desc>, NonNull<Box<OnEvent>>);

// SAFETY: it is all that is left of the descriptor.
unsafe impl Send for Closing {}

impl Closing {
    fn close(self) {
        // SAFETY: all channels were given back, and this is the thread that opened it.
        unsafe { sys::spdk_bdev_close(self.0.as_ptr()) };
        // SAFETY: `open` leaked it, and a closed descriptor calls nobody.
        drop(unsafe { Box::from_raw(self.1.as_ptr()) });
    }
}

unsafe extern "C" fn on_bdev_event(
    what: event::Type,
    _bdev: *mut sys::spdk_bdev,
    context: *mut c_void,
) {
    // SAFETY: `open` gave it along, and the descriptor is open.
    let on_event = unsafe { &*context.cast::<Box<OnEvent>>() };
    match what {
        event::SPDK_BDEV_EVENT_REMOVE => on_event(SpdkEvent::Remove),
        event::SPDK_BDEV_EVENT_RESIZE => on_event(SpdkEvent::Resize),
        _ => {}
    }
}

impl Bdev for SpdkBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn product_name(&self) -> &'static str {
        self.product_name
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        self.desc.geometry()
    }

    fn features(&self) -> Features {
        self.features
    }

    fn open_channel(&self, _core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(SpdkChannel::open(&self.desc, depth)?))
    }

    fn driver_specific(&self) -> Map<String, Value> {
        Map::from_iter([("spdk".to_owned(), json!({}))])
    }
}

impl fmt::Debug for SpdkBdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpdkBdev({})", self.name)
    }
}

impl fmt::Debug for OpenDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenDesc({:?})", self.raw)
    }
}
