//! The fence: over one path a client asks for the end of another (docs/fencing.md).
//!
//! ```text
//!                    the path is open: close it
//!  FENCE(token) ──┬──────────────────────────────┐
//!                 │  it is closing               v     connections destroyed, I/O finished
//!                 ├─────────────────────────> awaited ─────────────────────────────────> FENCED
//!                 │  no such path                                                          ^
//!                 └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Whoever asks is answered, on the connection 0 that the question came on; one that is gone by
//! then asks again over another path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rnbd_wire::extension::{Agreement, Features, PathToken};

use super::config::ExtensionConfig;
use super::path::Path;
use super::sessions::{PathKey, Sessions};

/// Where path tokens come from: one for a process, so that none is given twice before all were.
/// Clones take from the same.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    taken: Arc<AtomicU32>,
}

impl Tokens {
    fn take(&self) -> PathToken {
        let mut taken = self.taken.fetch_add(1, Ordering::Relaxed);
        loop {
            match PathToken::new(taken & PathToken::LAST.get()) {
                Some(token) => return token,
                None => taken = self.taken.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    /// What is agreed with a client that offers these features; `None` if it does not know the
    /// extension, or shall not be told that this side does.
    pub(super) fn agree(
        &self,
        config: Option<ExtensionConfig>,
        offered: Option<Features>,
    ) -> Option<Agreement> {
        let (config, offered) = (config?, offered?);
        Some(Agreement {
            features: offered & Features::FENCE,
            token: self.take(),
            instance: config.instance,
        })
    }
}

/// What to do about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Nothing is left of that path: confirm at once.
    Confirmed,
    /// Close this path, if it is open. [`Sessions::remove_path`] tells whom to answer.
    Awaited(PathKey),
}

/// Who is to hear that a path is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The path's token.
    pub token: PathToken,
    /// Paths over which it was asked for.
    pub askers: Vec<PathKey>,
}

impl Sessions {
    /// Over path `asker` the client asks for the end of the path of its session with this token.
    pub fn handle_fence(&mut self, asker: PathKey, token: PathToken) -> Fence {
        let named = |path: &Path| path.token() == Some(token);
        let session = self.path(asker).map(Path::session);
        let lost = session.and_then(|session| self.find_path(session, named));
        match lost.and_then(|key| Some((key, self.path_mut(key)?))) {
            Some((key, path)) => {
                path.add_fence_asker(asker);
                Fence::Awaited(key)
            }
            None => Fence::Confirmed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_none_is_zero() {
        let tokens = Tokens::default();
        let other = tokens.clone();
        assert_ne!(tokens.take(), other.take());
        tokens.taken.store(PathToken::LAST.get(), Ordering::Relaxed);
        assert_eq!(tokens.take(), PathToken::LAST);
        assert_eq!(tokens.take(), PathToken::FIRST);
    }
}
