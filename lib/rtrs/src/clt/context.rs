//! What a path is given by its session with each input.

use rnbd_base::Nanos;

use super::config::SessionConfig;
use super::error::PathError;
use super::fence::Fences;
use super::lane::Lane;
use super::messages::{Attempt, ToChannel};
use super::outputs::{Outputs, SessionAction};
use super::params::PathParams;

/// What the requests of a session are made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference {
    pub(super) params: PathParams,
    /// Another path uses it, so that it cannot change but for the better.
    pub(super) is_in_use: bool,
}

impl Reference {
    pub(super) fn check(&self, params: &PathParams) -> Result<(), PathError> {
        let (was, is) = (self.params.queue_depth, params.queue_depth);
        if was != is {
            return Err(PathError::QueueDepthChanged { was, is });
        }
        let (was, is) = (self.params.max_io_bytes, params.max_io_bytes);
        if self.is_in_use && is < was {
            return Err(PathError::MaxIoDiffers { was, is });
        }
        Ok(())
    }
}

/// What a path works with besides itself.
pub(super) struct Context<'a> {
    pub(super) config: &'a SessionConfig,
    pub(super) lane: &'a mut Lane,
    pub(super) out: &'a mut Outputs,
    pub(super) fences: &'a mut Fences,
    /// The life that was begun last, of any path.
    pub(super) last_attempt: &'a mut Attempt,
    /// Whether another path of the session is up.
    pub(super) others_up: bool,
    pub(super) now: Nanos,
}

impl Context<'_> {
    /// Tells all channels.
    pub(super) fn tell_channels(&mut self, message: &ToChannel) {
        for channel in 0..self.config.channels {
            let message = message.clone();
            self.out.act(SessionAction::ToChannel { channel, message });
        }
    }
}
