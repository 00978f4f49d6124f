use rnbd_base::Nanos;
use rnbd_wire::{ImmLayout, limits, rtrs::PathParameters};
use thiserror::Error;

use crate::HeartbeatConfig;

/// What a server offers, and how much it takes. The same for all its sessions, because a client
/// gives up on a path whose queue depth changed (protocol.md 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Chunks of a path, 1 … 65535.
    pub queue_depth: u16,
    /// Bytes of a chunk: a multiple of 4096, at least 8192; all chunks together at most 256 MiB.
    /// The kernel's server takes only powers of two, its client any size (protocol.md 3.4).
    pub chunk_bytes: u32,
    /// Whether a chunk is closed to the client when its request is served (`always_invalidate`), and
    /// what it still writes there before that is not.
    pub new_rkey: bool,
    /// How a client's silence is noticed.
    pub heartbeat: HeartbeatConfig,
    /// How long a path may take from one step of its handshake to the next.
    pub handshake_timeout: Nanos,
    /// Paths of a session, 1 … 128.
    pub paths_per_session: u16,
    /// Connections of a path, 2 … 4096.
    pub cons_per_path: u16,
    /// What clients that know it can agree on beside the kernel's protocol; `None` to take every
    /// client for a kernel.
    pub extension: Option<ExtensionConfig>,
}

/// What is said to clients of this project (docs/fencing.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionConfig {
    /// Names this process: drawn anew, at random, whenever one starts.
    pub instance: u64,
    /// How such a client's silence is noticed.
    pub heartbeat: HeartbeatConfig,
}

impl Default for Config {
    /// The kernel server's values, in plain mode.
    fn default() -> Self {
        Self {
            queue_depth: limits::QUEUE_DEPTH_DEFAULT,
            chunk_bytes: limits::CHUNK_BYTES_DEFAULT,
            new_rkey: false,
            heartbeat: HeartbeatConfig::default(),
            handshake_timeout: Nanos::from_secs(30),
            paths_per_session: 128,
            cons_per_path: limits::CONNECTIONS_PER_PATH,
            extension: None,
        }
    }
}

/// Which value of a [`Config`] cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No request could be taken.
    #[error("queue depth is 0, must be 1 to 65535")]
    QueueDepth,
    /// Clients could not lay out their requests.
    #[error("chunk size is {0}, must be a multiple of 4096 of at least 8192 bytes")]
    ChunkBytes(u32),
    /// The immediate has no room for chunk index and offset.
    #[error("{queue_depth} chunks of {chunk_bytes} bytes exceed the 256 MiB that RTRS can address")]
    Area {
        /// As configured.
        queue_depth: u16,
        /// As configured.
        chunk_bytes: u32,
    },
    /// RTRS allows 128.
    #[error("{0} paths per session, must be 1 to 128")]
    Paths(u16),
    /// RTRS allows 4096.
    #[error("{0} connections per path, must be 2 to 4096")]
    Connections(u16),
}

impl Config {
    /// Whether all values are in their ranges.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let layout = ImmLayout::new(self.queue_depth).ok_or(ConfigError::QueueDepth)?;
        let whole = self.chunk_bytes.is_multiple_of(limits::HEADER_BYTES);
        if !whole || self.chunk_bytes < limits::CHUNK_BYTES_MIN {
            return Err(ConfigError::ChunkBytes(self.chunk_bytes));
        }
        if !layout.fits(self.chunk_bytes) {
            return Err(ConfigError::Area {
                queue_depth: self.queue_depth,
                chunk_bytes: self.chunk_bytes,
            });
        }
        if !(1..=128).contains(&self.paths_per_session) {
            return Err(ConfigError::Paths(self.paths_per_session));
        }
        if !(2..=limits::CONNECTIONS_PER_PATH).contains(&self.cons_per_path) {
            return Err(ConfigError::Connections(self.cons_per_path));
        }
        Ok(())
    }

    /// Largest transfer in bytes: a chunk without its header part.
    #[must_use]
    pub fn max_io_bytes(&self) -> u32 {
        self.chunk_bytes - limits::HEADER_BYTES
    }

    /// What every accept tells a client, beside what is agreed with it.
    pub(super) fn path_parameters(&self) -> PathParameters {
        PathParameters {
            queue_depth: self.queue_depth,
            max_io_size: self.max_io_bytes(),
            max_hdr_size: limits::HEADER_BYTES,
            new_rkey: self.new_rkey,
            extension: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_rtrs_cannot_carry_are_named() {
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|c| c.queue_depth = 0), Err(ConfigError::QueueDepth));
        assert_eq!(
            with(|c| c.chunk_bytes = 4096),
            Err(ConfigError::ChunkBytes(4096))
        );
        assert_eq!(
            with(|c| c.chunk_bytes = 12_289),
            Err(ConfigError::ChunkBytes(12_289))
        );
        let area = with(|c| c.queue_depth = 2049).unwrap_err();
        assert!(area.to_string().contains("256 MiB"), "{area}");
        assert_eq!(
            with(|c| c.paths_per_session = 129),
            Err(ConfigError::Paths(129))
        );
        assert_eq!(
            with(|c| c.cons_per_path = 1),
            Err(ConfigError::Connections(1))
        );
    }
}
