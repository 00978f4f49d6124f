//! Disks that this process offers to SPDK's users.
//!
//! ```text
//!  register_disk ──> spdk_bdev_register, io_device
//!        channel per light thread: create ──> DiskChannel, poller ──> destroy
//!  DiskHandle::unregister ──> REMOVE events ──> users close ──> destruct ──> io_device gone ──> freed
//! ```

use std::any::Any;
use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr::NonNull;

use rnbd_base::{Errno, Progress};
use rnbd_spdk_sys as sys;
use rnbd_spdk_sys::spdk_bdev_io_type as io_type;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::errors::check;
use crate::io::{Io, IoKind, channel_context};
use crate::json::Writer;
use crate::module;
use crate::poller::Poller;

/// A disk. Called on any of SPDK's threads.
pub trait Disk: Any + Send + Sync {
    /// A way to the disk from the current light thread.
    ///
    /// # Errors
    /// SPDK's user is refused a channel, and the errno is logged.
    fn open_channel(&self) -> Result<Box<dyn DiskChannel>, Errno>;

    /// Whether it does such I/O; asked once, before it is offered.
    fn supports(&self, kind: IoKind) -> bool;

    /// What `bdev_get_bdevs` shows under `driver_specific`.
    fn driver_specific(&self) -> Map<String, Value>;
}

/// An I/O that has ended, and how.
pub type Ended = (Io, Result<(), Errno>);

/// One light thread's way to a disk.
///
/// It never completes an [`Io`] itself but gives it back, because whom that tells may come with the
/// next one at once.
pub trait DiskChannel: Send {
    /// Takes an I/O; returns it if it has ended already.
    fn submit(&mut self, io: Io) -> Option<Ended>;

    /// Appends what has ended; called in every round of the thread.
    fn poll(&mut self, ended: &mut Vec<Ended>) -> Progress;

    /// I/Os that were taken and not given back.
    fn outstanding(&self) -> usize;

    /// Gives those back that are `wanted` and that nothing was done for yet.
    fn take_waiting(&mut self, wanted: &dyn Fn(&Io) -> bool) -> Vec<Io>;
}

/// What SPDK is told of a disk.
#[derive(Clone, Debug)]
pub struct DiskInfo {
    /// Unique among SPDK's bdevs.
    pub name: String,
    /// The kind of disk.
    pub product_name: String,
    /// Identity.
    pub uuid: Uuid,
    /// Bytes per logical block.
    pub block_size: u32,
    /// Bytes per physical block.
    pub physical_block_size: u32,
    /// Capacity.
    pub num_blocks: u64,
    /// Whether there is a volatile cache.
    pub write_cache: bool,
    /// Most blocks of one read or write; zero for no limit.
    pub max_rw_blocks: u32,
    /// Most blocks of one unmap; zero for no limit.
    pub max_unmap_blocks: u32,
    /// Most blocks of one write-zeroes; zero for no limit.
    pub max_write_zeroes_blocks: u32,
}

/// What SPDK points to for each disk: its bdev, which comes first, and its I/O device.
#[repr(C)]
struct Face {
    bdev: sys::spdk_bdev,
    name: CString,
    product_name: CString,
    disk: Box<dyn Disk>,
    gone: Box<dyn FnOnce() + Send>,
}

/// A disk that was registered. It is to be used no more once `gone` was called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DiskHandle(NonNull<Face>);

// SAFETY: the handle is an address, and what it is used for is checked to be on the right thread.
unsafe impl Send for DiskHandle {}

/// Offers a disk to SPDK's users. To be called on the application's thread, where `gone` is called
/// when the disk was unregistered, by us or by SPDK that ends.
///
/// # Errors
/// `EEXIST` for a name that is taken, `EINVAL` for a geometry that SPDK does not take.
pub fn register_disk(
    info: &DiskInfo,
    disk: Box<dyn Disk>,
    gone: impl FnOnce() + Send + 'static,
) -> Result<DiskHandle, Errno> {
    let face = Box::new(Face::new(info, disk, Box::new(gone))?);
    let face = NonNull::from(Box::leak(face));
    let device = face.as_ptr();
    // SAFETY: the face is ours and stays where it is until it is freed.
    let name = unsafe { (*device).name.as_ptr() };
    // SAFETY: as above; nothing else refers to it yet.
    unsafe { (*device).connect(device) };
    let context = u32::try_from(size_of::<*mut Open>()).unwrap_or(8);
    // SAFETY: the face's address is the device's key until it is unregistered.
    unsafe {
        sys::spdk_io_device_register(
            device.cast(),
            Some(create_channel),
            Some(destroy_channel),
            context,
            name,
        );
    }
    // SAFETY: all that SPDK reads of the bdev was set.
    let status = unsafe { sys::spdk_bdev_register(device.cast()) };
    if let Err(errno) = check(status) {
        // SAFETY: no channel was opened; the face is freed when the device is gone.
        unsafe { sys::spdk_io_device_unregister(device.cast(), Some(free_face)) };
        return Err(errno);
    }
    Ok(DiskHandle(face))
}

impl Face {
    fn new(
        info: &DiskInfo,
        disk: Box<dyn Disk>,
        gone: Box<dyn FnOnce() + Send>,
    ) -> Result<Self, Errno> {
        let text = |text: &str| CString::new(text).map_err(|_| Errno::INVAL);
        // SAFETY: the structure is plain C; SPDK expects zeroes where nothing is set.
        let mut bdev: sys::spdk_bdev = unsafe { std::mem::zeroed() };
        bdev.blocklen = info.block_size;
        bdev.phys_blocklen = info.physical_block_size;
        bdev.blockcnt = info.num_blocks;
        bdev.write_cache = c_int::from(info.write_cache);
        bdev.max_rw_size = info.max_rw_blocks;
        bdev.max_unmap = info.max_unmap_blocks;
        bdev.max_unmap_segments = u32::from(info.max_unmap_blocks > 0);
        bdev.max_write_zeroes = info.max_write_zeroes_blocks;
        bdev.uuid = uuid_of(info.uuid);
        Ok(Self {
            bdev,
            name: text(&info.name)?,
            product_name: text(&info.product_name)?,
            disk,
            gone,
        })
    }

    /// Sets what points to the face itself and to our functions.
    fn connect(&mut self, this: *mut Self) {
        self.bdev.ctxt = this.cast();
        self.bdev.name = self.name.as_ptr().cast_mut();
        self.bdev.product_name = self.product_name.as_ptr().cast_mut();
        self.bdev.module = module::raw();
        self.bdev.fn_table = &raw const FUNCTIONS.0;
    }
}

fn uuid_of(uuid: Uuid) -> sys::spdk_uuid {
    let bytes = uuid.into_bytes();
    // SAFETY: both are sixteen bytes in the order of the text.
    unsafe { std::mem::transmute(bytes) }
}

impl DiskHandle {
    /// Tells SPDK's users to let go.
    pub fn unregister(self) {
        // SAFETY: the face is there until destruct.
        unsafe {
            sys::spdk_bdev_unregister(self.0.as_ptr().cast(), None, std::ptr::null_mut());
        }
    }

    /// Tells SPDK's users of another size. To be called on the application's thread.
    ///
    /// # Errors
    /// `EBUSY` if it would shrink under an open descriptor.
    pub fn set_num_blocks(self, num_blocks: u64) -> Result<(), Errno> {
        // SAFETY: the face is there until it is unregistered, which ends the handle's use.
        check(unsafe { sys::spdk_bdev_notify_blockcnt_change(self.0.as_ptr().cast(), num_blocks) })
    }
}

impl fmt::Debug for DiskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskHandle({:?})", self.0)
    }
}

struct Functions(sys::spdk_bdev_fn_table);

// SAFETY: the table is constant.
unsafe impl Sync for Functions {}

static FUNCTIONS: Functions = Functions(sys::spdk_bdev_fn_table {
    destruct: Some(destruct),
    submit_request: Some(submit_request),
    io_type_supported: Some(io_type_supported),
    get_io_channel: Some(get_io_channel),
    dump_info_json: Some(dump_info),
    write_config_json: None,
    get_spin_time: None,
    get_module_ctx: None,
    get_memory_domains: None,
    get_memory_domain_types: None,
    reset_device_stat: None,
    dump_device_stat_json: None,
    accel_sequence_supported: None,
});

/// # Safety
/// `context` is a face, which stays for the time of the result's use.
unsafe fn face<'a>(context: *mut c_void) -> &'a Face {
    // SAFETY: the caller says so; the disk's part is only ever read.
    unsafe { &*context.cast::<Face>() }
}

unsafe extern "C" fn destruct(context: *mut c_void) -> c_int {
    // SAFETY: it was registered with the face.
    unsafe { sys::spdk_io_device_unregister(context, Some(finish_destruct)) };
    1
}

unsafe extern "C" fn finish_destruct(device: *mut c_void) {
    let face = device.cast::<Face>();
    // SAFETY: the last channel is gone, and `destruct` promised this call.
    unsafe { sys::spdk_bdev_destruct_done(face.cast(), 0) };
    // SAFETY: `register_disk` leaked it, and SPDK does not look at it any more.
    let face = unsafe { Box::from_raw(face) };
    (face.gone)();
}

/// Of a bdev that SPDK refused.
unsafe extern "C" fn free_face(device: *mut c_void) {
    // SAFETY: `register_disk` leaked it, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(device.cast::<Face>()) });
}

unsafe extern "C" fn io_type_supported(
    context: *mut c_void,
    kind: sys::spdk_bdev_io_type::Type,
) -> bool {
    match kind {
        io_type::SPDK_BDEV_IO_TYPE_RESET | io_type::SPDK_BDEV_IO_TYPE_ABORT => true,
        // SAFETY: SPDK gives back the bdev's context.
        other => IoKind::of(other).is_some_and(|kind| unsafe { face(context) }.disk.supports(kind)),
    }
}

unsafe extern "C" fn get_io_channel(context: *mut c_void) -> *mut sys::spdk_io_channel {
    // SAFETY: the face is registered as an I/O device.
    unsafe { sys::spdk_get_io_channel(context) }
}

unsafe extern "C" fn dump_info(
    context: *mut c_void,
    writer: *mut sys::spdk_json_write_ctx,
) -> c_int {
    if let Some(writer) = NonNull::new(writer) {
        // SAFETY: it is valid for this call.
        let mut writer = unsafe { Writer::new(writer) };
        // SAFETY: SPDK gives back the bdev's context.
        for (name, value) in unsafe { face(context) }.disk.driver_specific() {
            writer.member(&name, &value);
        }
    }
    0
}

// Channels.

/// A channel's state. Only its light thread touches it, one call at a time.
struct Open {
    channel: Box<dyn DiskChannel>,
    /// What has ended, while it is being completed elsewhere empty.
    ended: Vec<Ended>,
    /// A visit of a reset that waits for the channel to be empty.
    draining: Option<Visit>,
    poller: Option<Poller>,
}

struct Visit(*mut sys::spdk_io_channel_iter);

/// A pointer to the state that its own poller carries.
#[derive(Clone, Copy)]
struct OpenPtr(NonNull<Open>);

// SAFETY: the poller that carries it is polled by the channel's light thread alone.
unsafe impl Send for OpenPtr {}

unsafe extern "C" fn create_channel(device: *mut c_void, context: *mut c_void) -> c_int {
    // SAFETY: the device is a face.
    match unsafe { face(device) }.disk.open_channel().and_then(open) {
        Ok(open) => {
            // SAFETY: SPDK reserved room for one pointer.
            unsafe { context.cast::<*mut Open>().write(open.0.as_ptr()) };
            0
        }
        Err(errno) => {
            log::error!("a channel of an RNBD bdev was not opened: {errno}");
            errno.negative()
        }
    }
}

/// How many I/Os are expected to end between two rounds.
const ENDED: usize = 1024;

fn open(channel: Box<dyn DiskChannel>) -> Result<OpenPtr, Errno> {
    let open = Box::new(Open {
        channel,
        ended: Vec::with_capacity(ENDED),
        draining: None,
        poller: None,
    });
    let open = OpenPtr(NonNull::from(Box::leak(open)));
    let poller = Poller::register("bdev_rnbd_channel", 0, move || poll_channel(open));
    match poller {
        Ok(poller) => {
            // SAFETY: it was leaked above, and nobody else has it yet.
            unsafe { (*open.0.as_ptr()).poller = Some(poller) };
            Ok(open)
        }
        Err(errno) => {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(open.0.as_ptr()) });
            Err(errno)
        }
    }
}

unsafe extern "C" fn destroy_channel(_device: *mut c_void, context: *mut c_void) {
    // SAFETY: `create_channel` wrote it.
    let open = unsafe { context.cast::<*mut Open>().read() };
    // SAFETY: it was leaked by `open`; its poller ends with it, on this thread.
    drop(unsafe { Box::from_raw(open) });
}

/// # Safety
/// `channel` is one of a disk of ours, and nothing of its state is borrowed.
unsafe fn state<'a>(channel: *mut sys::spdk_io_channel) -> &'a mut Open {
    // SAFETY: `create_channel` wrote the pointer.
    let open = unsafe { channel_context(channel).cast::<*mut Open>().read() };
    // SAFETY: it is valid until `destroy_channel`, and the caller has the only reference.
    unsafe { &mut *open }
}

/// Completing calls SPDK's users, who may submit the next I/O from there; so no reference to the
/// state is held meanwhile.
fn poll_channel(open: OpenPtr) -> Progress {
    // SAFETY: the poller ends before the state does, and no call into the channel is going on.
    let (progress, mut ended) = unsafe { &mut *open.0.as_ptr() }.take_ended();
    for (io, result) in ended.drain(..) {
        io.complete(result);
    }
    // SAFETY: as above; the state is there, because channels are destroyed by messages.
    unsafe { &mut *open.0.as_ptr() }.after_completions(ended);
    progress
}

impl Open {
    fn take_ended(&mut self) -> (Progress, Vec<Ended>) {
        let mut ended = std::mem::take(&mut self.ended);
        (self.channel.poll(&mut ended), ended)
    }

    fn after_completions(&mut self, empty: Vec<Ended>) {
        self.ended = empty;
        if self.draining.is_some() && self.channel.outstanding() == 0 {
            self.end_visit();
        }
    }

    fn end_visit(&mut self) {
        if let Some(Visit(visit)) = self.draining.take() {
            // SAFETY: SPDK waits for this call to visit the next channel.
            unsafe { sys::spdk_for_each_channel_continue(visit, 0) };
        }
    }
}

unsafe extern "C" fn submit_request(
    channel: *mut sys::spdk_io_channel,
    raw: *mut sys::spdk_bdev_io,
) {
    let Some(raw) = NonNull::new(raw) else {
        return;
    };
    // SAFETY: SPDK hands it over.
    let io = unsafe { Io::new(raw) };
    match io.raw_kind() {
        io_type::SPDK_BDEV_IO_TYPE_RESET => reset(io),
        io_type::SPDK_BDEV_IO_TYPE_ABORT => abort(channel, io),
        _ if io.lacks_buffer() => get_buffer(io),
        kind if IoKind::of(kind).is_some() => submit(channel, io),
        _ => io.complete(Err(Errno::OPNOTSUPP)),
    }
}

fn submit(channel: *mut sys::spdk_io_channel, io: Io) {
    // SAFETY: it is a channel of ours, and SPDK calls us from no place where its state is borrowed.
    let ended = unsafe { state(channel) }.channel.submit(io);
    if let Some((io, result)) = ended {
        io.complete(result);
    }
}

fn get_buffer(io: Io) {
    let block_size = io.bdev().blocklen;
    let bytes = io.num_blocks() * u64::from(block_size);
    // SAFETY: the I/O is a read of ours; `got_buffer` goes on with it.
    unsafe { sys::spdk_bdev_io_get_buf(io.into_raw(), Some(got_buffer), bytes) };
}

unsafe extern "C" fn got_buffer(
    channel: *mut sys::spdk_io_channel,
    raw: *mut sys::spdk_bdev_io,
    success: bool,
) {
    let Some(raw) = NonNull::new(raw) else {
        return;
    };
    // SAFETY: SPDK hands it back.
    let io = unsafe { Io::new(raw) };
    if success {
        submit(channel, io);
    } else {
        io.complete(Err(Errno::NOMEM));
    }
}

/// What waits is aborted; what is on its way is left alone.
fn abort(channel: *mut sys::spdk_io_channel, abort: Io) {
    let target = abort.abort_target();
    let wanted = |io: &Io| io.identity().as_ptr() == target;
    if abort_waiting(channel, &wanted) {
        abort.complete(Ok(()));
    } else {
        abort.complete_failed();
    }
}

/// Whether there were any.
fn abort_waiting(channel: *mut sys::spdk_io_channel, wanted: &dyn Fn(&Io) -> bool) -> bool {
    // SAFETY: as in `submit`.
    let waiting = unsafe { state(channel) }.channel.take_waiting(wanted);
    let any = !waiting.is_empty();
    waiting.into_iter().for_each(Io::complete_aborted);
    any
}

// Reset: SPDK lets no new I/O in; what waits is aborted, and it ends when all channels are empty.

fn reset(io: Io) {
    let face = io.bdev().ctxt;
    // SAFETY: the face is our I/O device; `end_reset` takes over the I/O.
    unsafe {
        sys::spdk_for_each_channel(
            face,
            Some(reset_channel),
            io.into_raw().cast(),
            Some(end_reset),
        );
    }
}

unsafe extern "C" fn reset_channel(visit: *mut sys::spdk_io_channel_iter) {
    // SAFETY: SPDK visits the channel on its thread.
    let channel = unsafe { sys::spdk_io_channel_iter_get_channel(visit) };
    abort_waiting(channel, &|_| true);
    // SAFETY: it is a channel of ours, and no call into it is going on.
    let open = unsafe { state(channel) };
    open.draining = Some(Visit(visit));
    if open.channel.outstanding() == 0 {
        open.end_visit();
    }
}

impl Drop for Open {
    /// A channel that goes while a reset waits for it must not hold that up.
    fn drop(&mut self) {
        self.end_visit();
    }
}

unsafe extern "C" fn end_reset(visit: *mut sys::spdk_io_channel_iter, _status: c_int) {
    // SAFETY: `reset` gave the I/O along.
    let raw = unsafe { sys::spdk_io_channel_iter_get_ctx(visit) };
    if let Some(raw) = NonNull::new(raw.cast()) {
        // SAFETY: it is the reset that `reset` took apart.
        unsafe { Io::new(raw) }.complete(Ok(()));
    }
}
