//! What the running fio offers by name. It is looked up, so that another fio than the one that the
//! engine was built for can be told so, instead of failing to link.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;

use super::bindings::{JOBS_PER_SEG, ioengine_ops, thread_data, thread_segment};

/// A symbol of the running program or of a library that it has loaded.
fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the name is a string of C; the handle stands for the whole program.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    NonNull::new(found)
}

/// As `fio --version` prints it.
pub(super) fn version() -> Option<String> {
    let text = symbol(c"fio_version_string")?;
    // SAFETY: fio declares it as an array of characters with a zero at its end.
    let text = unsafe { CStr::from_ptr(text.as_ptr() as *const c_char) };
    Some(text.to_string_lossy().into_owned())
}

/// Prints a line where fio prints its errors, which may be a client on another machine.
pub(crate) fn print_error(text: &str) {
    type LogErr = unsafe extern "C" fn(*const c_char, ...) -> isize;
    let line = CString::new(format!("fio: {text}\n").replace('\0', " "));
    let (Ok(line), Some(log_err)) = (line, symbol(c"log_err")) else {
        return log::error!("{text}");
    };
    // SAFETY: this is the type that fio declares it with.
    let log_err = unsafe { std::mem::transmute::<NonNull<c_void>, LogErr>(log_err) };
    // SAFETY: the format takes one string of C, which is there.
    unsafe { log_err(c"%s".as_ptr(), line.as_ptr()) };
}

/// A job of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownJob {
    /// It uses this engine.
    pub(crate) is_ours: bool,
    /// It starts when all jobs before it have ended.
    pub(crate) waits_for_others: bool,
}

/// All jobs of the process, in their order; none if fio does not tell.
pub(super) fn jobs(ops: *const ioengine_ops) -> Vec<KnownJob> {
    let (Some(count), Some(segments)) = (symbol(c"thread_number"), symbol(c"segments")) else {
        return Vec::new();
    };
    // SAFETY: fio declares it as an unsigned number, which changes only before jobs are set up.
    let count = unsafe { count.cast::<c_uint>().read() };
    let segments = segments.cast::<thread_segment>();
    let known = |index: usize| {
        let per_segment = JOBS_PER_SEG as usize;
        // SAFETY: fio has filled as many segments as its number of jobs needs.
        let segment = unsafe { segments.add(index / per_segment) };
        // SAFETY: as above.
        let segment = unsafe { segment.read() };
        // SAFETY: each has room for so many jobs, and this one is among those that are counted.
        let job: *const thread_data = unsafe { segment.threads.add(index % per_segment) };
        // SAFETY: jobs live as long as the process, and these members no longer change.
        let job_ops = unsafe { (*job).io_ops };
        // SAFETY: as above.
        let stonewall: c_uint = unsafe { (*job).o.stonewall };
        KnownJob {
            is_ours: std::ptr::eq(job_ops, ops),
            waits_for_others: stonewall != 0,
        }
    };
    (0..count as usize).map(known).collect()
}

/// Has a function called when the process exits.
pub(super) fn at_exit(function: extern "C" fn()) {
    // SAFETY: the library is never unloaded, so the function is there then.
    let _: c_int = unsafe { libc::atexit(function) };
}
