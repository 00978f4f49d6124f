//! Device names that are paths below a search path (protocol.md 9.8).

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Stands for the session's name in a search path.
const TOKEN: &str = "%SESSNAME%";
/// Longest path that the kernel takes, with its NUL.
const PATH_MAX: usize = 4096;

/// A file to be opened by whoever may block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPath {
    /// Directory that must not be left.
    pub root: PathBuf,
    /// The file in it: no `..`, no root, no empty component.
    pub relative: PathBuf,
    /// Whether it will be written.
    pub write: bool,
}

/// Why a name is no path below the search path.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SearchPathError {
    /// Search path and name together.
    #[error("the path is longer than 4095 bytes")]
    TooLong,
    /// `..` anywhere, as Linux has it.
    #[error("the name contains \"..\"")]
    Parent,
    /// Nothing but slashes.
    #[error("the name names no file")]
    Empty,
}

/// Where `dev_name` of `sessname` is below `search_path`: root, and path relative to it.
///
/// With `%SESSNAME%` in the search path the session has a directory of its own in place of the
/// token and all that follows it. A leading slash of the name does not lead out, as it does not on
/// Linux servers.
///
/// # Errors
/// [`SearchPathError`]; nothing was looked at on disk.
pub fn resolve(
    search_path: &str,
    sessname: &str,
    dev_name: &str,
) -> Result<(PathBuf, PathBuf), SearchPathError> {
    if search_path.len() + sessname.len() + dev_name.len() + 2 >= PATH_MAX {
        return Err(SearchPathError::TooLong);
    }
    if dev_name.contains("..") {
        return Err(SearchPathError::Parent);
    }
    let root = match search_path.split_once(TOKEN) {
        Some((before, _)) => Path::new(before).join(sessname),
        None => PathBuf::from(search_path),
    };
    let normal = |component: &Component<'_>| matches!(component, Component::Normal(_));
    let relative: PathBuf = Path::new(dev_name).components().filter(normal).collect();
    if relative.as_os_str().is_empty() {
        return Err(SearchPathError::Empty);
    }
    Ok((root, relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(search_path: &str, dev_name: &str) -> String {
        let (root, relative) = resolve(search_path, "clt1", dev_name).unwrap();
        format!("{}|{}", root.display(), relative.display())
    }

    #[test]
    fn names_stay_below_the_root() {
        assert_eq!(resolved("/srv", "disk"), "/srv|disk");
        assert_eq!(resolved("/srv", "/etc/shadow"), "/srv|etc/shadow");
        assert_eq!(resolved("/srv", "a//./b"), "/srv|a/b");
        let refused = |name| resolve("/srv", "clt1", name).unwrap_err();
        for bad in ["..", "../x", "a/../../x", "a..b"] {
            assert_eq!(refused(bad), SearchPathError::Parent, "{bad}");
        }
        assert_eq!(refused("/"), SearchPathError::Empty);
        assert_eq!(refused(&"x/".repeat(2048)), SearchPathError::TooLong);
    }

    #[test]
    fn the_session_name_replaces_its_token_and_what_follows() {
        assert_eq!(resolved("/srv/%SESSNAME%", "disk"), "/srv/clt1|disk");
        assert_eq!(
            resolved("/srv/%SESSNAME%/dropped", "disk"),
            "/srv/clt1|disk"
        );
    }
}
