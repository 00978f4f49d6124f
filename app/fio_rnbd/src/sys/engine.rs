//! The engine's functions as fio calls them.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::time::Duration;

use rnbd_base::Errno;

use super::bindings::{
    FIO_IOOPS_VERSION, fio_ddir, fio_file, fio_ioengine_flags as flags, fio_q_status, io_u,
    ioengine_ops, thread_data, timespec,
};
use super::view::Td;
use super::{host, options};
use crate::job::{Job, Queued, Request, What};
use crate::version::check_same;
use crate::{runtime, setup};

/// What fio knows the engine by. It writes to it, so it is handed around as a pointer.
struct Engine(NonNull<ioengine_ops>);

// SAFETY: it is only handed to fio, which loads engines on one thread.
unsafe impl Send for Engine {}
// SAFETY: as above.
unsafe impl Sync for Engine {}

static ENGINE: OnceLock<Engine> = OnceLock::new();

/// fio asks for the engine here when it has loaded the library.
///
/// # Safety
/// `ops` is null or may be written to.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn get_ioengine(ops: *mut *mut ioengine_ops) {
    let Some(ops) = NonNull::new(ops) else {
        return;
    };
    if let Err(reason) = check_version() {
        // fio then says that the engine cannot be loaded.
        return host::print_error(&reason);
    }
    let engine = ENGINE.get_or_init(|| Engine(NonNull::from(Box::leak(Box::new(engine())))));
    // SAFETY: the caller's promise.
    unsafe { ops.write(engine.0.as_ptr()) };
}

fn check_version() -> Result<(), String> {
    let running = host::version();
    let running = running.as_deref().unwrap_or("a fio that tells no version");
    check_same(
        ("this RNBD engine was built for", env!("FIO_VERSION")),
        ("this is", running),
    )
}

fn engine() -> ioengine_ops {
    ioengine_ops {
        name: c"rnbd".as_ptr(),
        version: c_int::try_from(FIO_IOOPS_VERSION).unwrap_or(0),
        flags: (flags::FIO_RAWIO
            | flags::FIO_NOEXTEND
            | flags::FIO_NODISKUTIL
            | flags::FIO_MEMALIGN
            | flags::FIO_DISKLESSIO
            | flags::FIO_NO_OFFLOAD)
            .cast_signed(),
        setup: Some(setup_job),
        init: Some(init),
        queue: Some(queue),
        commit: Some(commit),
        getevents: Some(getevents),
        event: Some(event),
        cleanup: Some(cleanup),
        open_file: Some(open_file),
        close_file: Some(close_file),
        iomem_alloc: Some(iomem_alloc),
        iomem_free: Some(iomem_free),
        options: options::table(),
        option_struct_size: options::size(),
        ..ioengine_ops::default()
    }
}

/// The job of a call.
fn td<'a>(raw: *mut thread_data) -> Option<Td<'a>> {
    // SAFETY: fio calls with a job of its own, and its version was checked when it loaded us.
    unsafe { Td::new(raw) }
}

fn job<'a>(raw: *mut thread_data) -> Option<&'a mut Job> {
    td(raw)?.job()
}

/// Says why a job cannot go on, in the log and in the job.
fn refuse(td: Td<'_>, failure: &setup::Failure) -> c_int {
    host::print_error(&format!("{}: {}", td.name(), failure.text));
    td.fail(failure.errno, &failure.text);
    1
}

extern "C" fn stop_at_exit() {
    runtime::stop();
}

/// On fio's main thread, before any job runs.
unsafe extern "C" fn setup_job(raw: *mut thread_data) -> c_int {
    static AT_EXIT: OnceLock<()> = OnceLock::new();
    AT_EXIT.get_or_init(|| host::at_exit(stop_at_exit));
    let Some(td) = td(raw) else {
        return 1;
    };
    match setup::prepare(td) {
        Ok(()) => 0,
        Err(failure) => refuse(td, &failure),
    }
}

/// On the job's thread, before anything else of the job.
unsafe extern "C" fn init(raw: *mut thread_data) -> c_int {
    let Some(td) = td(raw) else {
        return 1;
    };
    match setup::start(td) {
        Ok(job) => {
            let job = Box::into_raw(Box::new(job));
            // SAFETY: the slot lies within the job and is the engine's.
            unsafe { td.job_slot().write(job.cast()) };
            0
        }
        Err(failure) => refuse(td, &failure),
    }
}

unsafe extern "C" fn cleanup(raw: *mut thread_data) {
    let Some(td) = td(raw) else {
        return;
    };
    let slot = td.job_slot();
    // SAFETY: the slot lies within the job and is the engine's.
    let job = unsafe { slot.replace(null_mut::<c_void>()) };
    if !job.is_null() {
        // SAFETY: `init` made it of a box, and nobody has it any more.
        drop(unsafe { Box::from_raw(job.cast::<Job>()) });
    }
}

unsafe extern "C" fn iomem_alloc(raw: *mut thread_data, bytes: usize) -> c_int {
    let Some(td) = td(raw) else {
        return 1;
    };
    let Some(job) = td.job() else {
        return 1;
    };
    match job.alloc_buffer(bytes) {
        Ok(start) => {
            td.set_buffer(start);
            0
        }
        Err(failure) => refuse(td, &failure),
    }
}

unsafe extern "C" fn iomem_free(raw: *mut thread_data) {
    if let Some(job) = job(raw) {
        job.free_buffer();
    }
}

/// Bdevs are open as long as their jobs run.
unsafe extern "C" fn open_file(_: *mut thread_data, _: *mut fio_file) -> c_int {
    0
}

unsafe extern "C" fn close_file(_: *mut thread_data, _: *mut fio_file) -> c_int {
    0
}

unsafe extern "C" fn queue(raw: *mut thread_data, io: *mut io_u) -> fio_q_status::Type {
    let queued = match (job(raw), request(io)) {
        (Some(job), Some(request)) => job.queue(&request),
        _ => Queued::Failed(Errno::INVAL),
    };
    match queued {
        Queued::Started => fio_q_status::FIO_Q_QUEUED,
        Queued::Full => fio_q_status::FIO_Q_BUSY,
        Queued::Failed(errno) => {
            set_error(io, errno);
            fio_q_status::FIO_Q_COMPLETED
        }
    }
}

/// What an I/O asks for; nothing if it is of a kind that no block device knows.
fn request(io: *mut io_u) -> Option<Request> {
    // SAFETY: fio lends the I/O until it is told of its end.
    let io_ref = unsafe { io.as_ref() }?;
    // SAFETY: an I/O that is queued has a file of its job.
    let file = unsafe { io_ref.file.as_ref() }?;
    let what = match io_ref.ddir {
        fio_ddir::DDIR_READ => What::Read,
        fio_ddir::DDIR_WRITE => What::Write,
        fio_ddir::DDIR_TRIM => What::Trim,
        fio_ddir::DDIR_SYNC | fio_ddir::DDIR_DATASYNC | fio_ddir::DDIR_SYNC_FILE_RANGE => {
            What::Sync
        }
        _ => return None,
    };
    Some(Request {
        token: io.expose_provenance() as u64,
        disk: usize::try_from(file.fileno).ok()?,
        what,
        offset: io_ref.offset,
        bytes: io_ref.xfer_buflen,
        start: io_ref.xfer_buf.expose_provenance() as u64,
        prio: io_ref.ioprio,
    })
}

fn set_error(io: *mut io_u, errno: Errno) {
    // SAFETY: fio lends the I/O until it is told of its end.
    unsafe { (*io).error = errno.get().into() };
}

unsafe extern "C" fn commit(raw: *mut thread_data) -> c_int {
    if let Some(job) = job(raw) {
        job.commit();
    }
    0
}

unsafe extern "C" fn getevents(
    raw: *mut thread_data,
    least: c_uint,
    most: c_uint,
    limit: *const timespec,
) -> c_int {
    let Some(td) = td(raw) else {
        return -1;
    };
    let Some(job) = td.job() else {
        return -1;
    };
    // SAFETY: null, or fio's for the time of the call.
    let limit = unsafe { limit.as_ref() }.map(|limit| {
        let seconds = u64::try_from(limit.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(limit.tv_nsec).unwrap_or(0))
    });
    let ended = job.wait(least as usize, most as usize, limit, || td.is_ending());
    c_int::try_from(ended).unwrap_or(c_int::MAX)
}

unsafe extern "C" fn event(raw: *mut thread_data, index: c_int) -> *mut io_u {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    let Some(ended) = job(raw).and_then(|job| job.ended(index)) else {
        return null_mut();
    };
    let address = usize::try_from(ended.token).unwrap_or(0);
    let io = std::ptr::with_exposed_provenance_mut(address);
    if let Err(errno) = ended.result {
        set_error(io, errno);
    }
    io
}
