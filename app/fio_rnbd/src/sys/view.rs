//! A job, its files and its I/Os, as far as the rest of this crate wants to know.

use std::ffi::{CStr, OsStr, c_char};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;

use rnbd_base::Errno;

use super::bindings::{fio_ddir, fio_file, fio_file_flags, fio_filetype, td_ddir, thread_data};
use super::host::{self, KnownJob};
use super::options::{Values, WriteMode};
use crate::job::Job;

/// A job of fio's during one of fio's calls, on the thread that fio calls on.
#[derive(Clone, Copy)]
pub(crate) struct Td<'a> {
    raw: NonNull<thread_data>,
    call: PhantomData<&'a thread_data>,
}

/// What a job does to its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
    Trim,
}

impl Direction {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Trim];

    /// Where it stands in tables.
    fn index(self) -> usize {
        let ddir = match self {
            Self::Read => fio_ddir::DDIR_READ,
            Self::Write => fio_ddir::DDIR_WRITE,
            Self::Trim => fio_ddir::DDIR_TRIM,
        };
        usize::try_from(ddir).unwrap_or(0)
    }

    fn bit(self) -> td_ddir::Type {
        match self {
            Self::Read => td_ddir::TD_DDIR_READ,
            Self::Write => td_ddir::TD_DDIR_WRITE,
            Self::Trim => td_ddir::TD_DDIR_TRIM,
        }
    }
}

/// Copies a member of the job out.
macro_rules! member {
    ($td:expr, $($member:tt)+) => {{
        let raw = $td.raw.as_ptr();
        // SAFETY: fio keeps the job for the time of the call, and this member is a plain value that
        // changes on this thread only.
        unsafe { (*raw).$($member)+ }
    }};
}

impl<'a> Td<'a> {
    /// # Safety
    /// It is a job of a fio whose structures are those that the bindings were made from, and lives
    /// as long as the value, which stays on the thread that fio called on.
    pub(super) unsafe fn new(raw: *mut thread_data) -> Option<Self> {
        Some(Self {
            raw: NonNull::new(raw)?,
            call: PhantomData,
        })
    }

    /// The job's name.
    pub(crate) fn name(self) -> String {
        let name = member!(self, o.name);
        text(name).unwrap_or_default()
    }

    /// `rnbd_json_conf`, if it was given.
    pub(crate) fn json_conf(self) -> Option<PathBuf> {
        let values = self.values()?;
        // SAFETY: fio has made them for this engine's options.
        let path = unsafe { values.as_ref() }.json_conf;
        let path = NonNull::new(path.cast_mut())?;
        // SAFETY: fio has stored a string of C there.
        let path = unsafe { CStr::from_ptr(path.as_ptr()) };
        Some(OsStr::from_bytes(path.to_bytes()).into())
    }

    /// Whether writes are to write zeroes.
    pub(crate) fn writes_zeroes(self) -> bool {
        let Some(values) = self.values() else {
            return false;
        };
        // SAFETY: fio has made them for this engine's options.
        let mode = unsafe { values.as_ref() }.write_mode;
        mode == WriteMode::Zeroes as u32
    }

    fn values(self) -> Option<NonNull<Values>> {
        NonNull::new(member!(self, eo).cast())
    }

    /// Most I/Os outstanding.
    pub(crate) fn iodepth(self) -> u32 {
        member!(self, o.iodepth)
    }

    /// Whether writes are to be durable before they complete (`sync`).
    pub(crate) fn is_sync(self) -> bool {
        member!(self, o.sync_io) != 0
    }

    /// Whether fio may rest between two I/Os that it has told of.
    pub(crate) fn is_paced(self) -> bool {
        let rated = |rates: [u64; 3]| rates.into_iter().any(|rate| rate != 0);
        member!(self, o.thinktime) != 0
            || rated(member!(self, o.rate))
            || rated(member!(self, o.rate_iops).map(u64::from))
    }

    /// Whether lengths may be no multiples of the smallest block size.
    pub(crate) fn is_unaligned(self) -> bool {
        member!(self, o.bs_unaligned) != 0
    }

    pub(crate) fn does(self, direction: Direction) -> bool {
        member!(self, o.td_ddir) & direction.bit() != 0
    }

    /// Smallest block size and alignment, in bytes.
    pub(crate) fn block_sizes(self, direction: Direction) -> [u64; 2] {
        let at = direction.index();
        [member!(self, o.min_bs[at]), member!(self, o.ba[at])]
    }

    /// Whether the job is a thread of this process.
    pub(crate) fn is_thread(self) -> bool {
        member!(self, o.use_thread) != 0
    }

    /// Lets it be one, as other engines do that have state of their own; before it starts.
    pub(crate) fn become_thread(self) {
        let raw = self.raw.as_ptr();
        // SAFETY: as for reading it; nobody else looks before the job is started.
        unsafe { (*raw).o.use_thread = 1 };
    }

    /// Whether the job was told to end.
    pub(crate) fn is_ending(self) -> bool {
        let raw = self.raw.as_ptr();
        // SAFETY: it lies within the job.
        let terminate = unsafe { &raw const (*raw).terminate };
        // SAFETY: another thread sets it, so it is read anew each time.
        unsafe { terminate.read_volatile() }
    }

    /// Its files: the bdevs.
    pub(crate) fn files(self) -> impl Iterator<Item = File<'a>> {
        let (files, count) = (member!(self, files), member!(self, files_index));
        (0..count as usize).filter_map(move |index| {
            // SAFETY: fio has so many pointers there.
            let file = unsafe { files.add(index) };
            // SAFETY: as above.
            let file = unsafe { file.read() };
            Some(File {
                raw: NonNull::new(file)?,
                call: PhantomData,
            })
        })
    }

    /// All jobs of the process.
    pub(crate) fn all_jobs(self) -> Vec<KnownJob> {
        host::jobs(member!(self, io_ops))
    }

    /// The job fails with this, unless it has failed before.
    pub(crate) fn fail(self, errno: Errno, text: &str) {
        let raw = self.raw.as_ptr();
        if member!(self, error) != 0 {
            return;
        }
        // SAFETY: the job's own thread may set it.
        unsafe { (*raw).error = errno.get().into() };
        // SAFETY: it lies within the job, and the job's own thread may write it.
        let verror = unsafe { &mut (*raw).verror };
        let room = verror.len() - 1;
        for (at, byte) in verror.iter_mut().zip(text.bytes().take(room).chain([0])) {
            *at = byte.cast_signed();
        }
    }

    pub(super) fn job_slot(self) -> *mut *mut std::ffi::c_void {
        let raw = self.raw.as_ptr();
        // SAFETY: it lies within the job.
        unsafe { &raw mut (*raw).io_ops_data }
    }

    /// What `init` has made for it.
    pub(super) fn job(self) -> Option<&'a mut Job> {
        let job = NonNull::new(member!(self, io_ops_data).cast::<Job>())?;
        // SAFETY: `init` put it there, `cleanup` takes it away, and all calls between are made on
        // the job's thread, one at a time.
        Some(unsafe { &mut *job.as_ptr() })
    }

    pub(super) fn set_buffer(self, start: *mut u8) {
        let raw = self.raw.as_ptr();
        // SAFETY: fio asks the engine to set it, on the job's thread.
        unsafe { (*raw).orig_buffer = start.cast() };
    }
}

/// A file of a job: a bdev.
#[derive(Clone, Copy)]
pub(crate) struct File<'a> {
    raw: NonNull<fio_file>,
    call: PhantomData<&'a fio_file>,
}

impl File<'_> {
    /// The bdev's name.
    pub(crate) fn name(self) -> String {
        // SAFETY: fio keeps the file as long as its job.
        let name = unsafe { (*self.raw.as_ptr()).file_name };
        text(name).unwrap_or_default()
    }

    /// Makes it a block device of that many bytes.
    pub(crate) fn set_size(self, bytes: u64) {
        let raw = self.raw.as_ptr();
        // SAFETY: setting up a job's files is the engine's, before the job runs.
        unsafe { (*raw).real_file_size = bytes };
        // SAFETY: as above.
        unsafe { (*raw).filetype = fio_filetype::FIO_TYPE_BLOCK };
        // SAFETY: as above.
        unsafe { (*raw).flags |= fio_file_flags::FIO_FILE_size_known };
    }
}

fn text(start: *const c_char) -> Option<String> {
    let start = NonNull::new(start.cast_mut())?;
    // SAFETY: fio's strings are those of C, and live as long as the job.
    let text = unsafe { CStr::from_ptr(start.as_ptr()) };
    Some(text.to_string_lossy().into_owned())
}
