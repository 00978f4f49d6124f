use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::CoreMask;

/// Where SPDK keeps its core locks; a core is claimed against SPDK programs too.
const LOCK_DIR: &str = "/var/tmp";

/// Claims on cores, so that no two busy programs share one. Each is a file
/// `spdk_cpu_lock_NNN` that holds an `fcntl` lock and the owner's process id. Dropping the value
/// removes the files and gives the cores back.
#[derive(Debug)]
pub struct CoreLocks {
    locks: Vec<CoreLock>,
}

#[derive(Debug)]
struct CoreLock {
    path: PathBuf,
    /// Holds the lock while it is open.
    _file: File,
}

/// Why a core could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum CoreLockError {
    /// Another process has it.
    #[error("core {core} is in use by process {pid} (lock file {})", path.display())]
    Claimed {
        /// The core.
        core: u32,
        /// Who has it.
        pid: i32,
        /// The lock file.
        path: PathBuf,
    },
    /// The lock file cannot be used.
    #[error("cannot lock core {core} by {}", path.display())]
    File {
        /// The core.
        core: u32,
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CoreLocks {
    /// Claims every core of `mask` for this process, or none.
    ///
    /// # Errors
    /// [`CoreLockError`] says which core failed and who has it.
    pub fn claim(mask: &CoreMask) -> Result<Self, CoreLockError> {
        Self::claim_in(mask, Path::new(LOCK_DIR))
    }

    /// [`CoreLocks::claim`] with the lock files in `directory`.
    ///
    /// # Errors
    /// As [`CoreLocks::claim`].
    pub fn claim_in(mask: &CoreMask, directory: &Path) -> Result<Self, CoreLockError> {
        let locks: Result<Vec<CoreLock>, CoreLockError> = mask
            .cores()
            .map(|core| CoreLock::claim(core, directory))
            .collect();
        Ok(Self { locks: locks? })
    }

    /// How many cores are claimed.
    #[must_use]
    pub fn count(&self) -> usize {
        self.locks.len()
    }
}

impl CoreLock {
    fn claim(core: u32, directory: &Path) -> Result<Self, CoreLockError> {
        let path = directory.join(format!("spdk_cpu_lock_{core:03}"));
        loop {
            match Self::try_claim(&path) {
                Ok(Some(file)) => return Ok(Self { path, _file: file }),
                Ok(None) => {}
                Err(Refusal::Owner(pid)) => return Err(CoreLockError::Claimed { core, pid, path }),
                Err(Refusal::File(source)) => {
                    return Err(CoreLockError::File { core, path, source });
                }
            }
        }
    }

    /// `None` if the file was removed by its last owner between the opening and the locking.
    fn try_claim(path: &Path) -> Result<Option<File>, Refusal> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Err(Refusal::Owner(read_pid(&mut file)?)),
            Err(errno) => return Err(Refusal::File(errno.into())),
        }
        if !still_there(&file, path) {
            return Ok(None);
        }
        write_pid(&mut file)?;
        Ok(Some(file))
    }
}

impl Drop for CoreLock {
    fn drop(&mut self) {
        // Removed while the lock is still held: see `still_there` for who may come in between.
        let _ = std::fs::remove_file(&self.path);
    }
}

enum Refusal {
    Owner(i32),
    File(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

fn still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// The process id as SPDK keeps it: one native `int`. Zero if the owner has not written it yet.
fn read_pid(file: &mut File) -> io::Result<i32> {
    let mut pid = [0; 4];
    match file.read_exact(&mut pid) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(i32::from_ne_bytes(pid)),
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&std::process::id().to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const DIRECTORY: &str = "RNBD_TEST_CORE_LOCKS";

    #[test]
    fn a_claimed_core_is_refused_to_another_process_and_given_back() {
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            return claim_as_the_other_process(Path::new(&directory));
        }
        let directory = tempfile::tempdir().unwrap();
        let mask: CoreMask = "[0,12]".parse().unwrap();
        let locks = CoreLocks::claim_in(&mask, directory.path()).unwrap();
        assert_eq!(locks.count(), 2);

        let refused = other_process(directory.path());
        let file = directory.path().join("spdk_cpu_lock_012");
        assert!(
            refused.contains(&format!(
                "core 12 is in use by process {}",
                std::process::id()
            )),
            "{refused}"
        );
        drop(locks);
        assert!(!file.exists());
        assert!(other_process(directory.path()).contains("claimed"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = CoreLocks::claim_in(&CoreMask::single(7), Path::new("/nonexistent"));
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "cannot lock core 7 by /nonexistent/spdk_cpu_lock_007");
    }

    /// An `fcntl` lock does not exclude its own process, so the test runs itself once more.
    fn other_process(directory: &Path) -> String {
        let name = "core_locks::tests::a_claimed_core_is_refused_to_another_process_and_given_back";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", name])
            .env(DIRECTORY, directory)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn claim_as_the_other_process(directory: &Path) {
        match CoreLocks::claim_in(&"[11,12]".parse().unwrap(), directory) {
            Ok(_) => println!("claimed"),
            Err(error) => println!("{error}"),
        }
    }
}
