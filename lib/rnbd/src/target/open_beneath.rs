use std::os::fd::OwnedFd;
use std::path::Path;

use rnbd_base::Errno;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Opens a file that is found below `root` without following any symbolic link and without
/// leaving `root`, whatever changes on disk meanwhile. May block.
///
/// # Errors
/// The errno of the open; `ENOENT` for a symbolic link or a way out, as if there were nothing: a
/// client is not told what lies elsewhere.
pub fn open_beneath(root: &Path, relative: &Path, write: bool) -> Result<OwnedFd, Errno> {
    let directory = open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(errno)?;
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat2(&directory, relative, flags, Mode::empty(), beneath).map_err(errno)
}

fn errno(errno: rustix::io::Errno) -> Errno {
    match errno {
        rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => Errno::NOENT,
        other => Errno::from_raw(other.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn there_is_no_way_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        fs::write(root.join("sub/disk"), "x").unwrap();
        symlink(dir.path().join("secret"), root.join("link")).unwrap();
        symlink("sub", root.join("inner")).unwrap();

        let opens = |relative: &str| open_beneath(&root, Path::new(relative), true).map(drop);
        assert_eq!(opens("sub/disk"), Ok(()));
        for elsewhere in ["../secret", "/etc/passwd", "link", "inner/disk", "absent"] {
            assert_eq!(opens(elsewhere), Err(Errno::NOENT), "{elsewhere}");
        }
    }
}
