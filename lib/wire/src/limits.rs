//! Numbers that both ends agree on without saying them (protocol.md section 2).

/// First field of CON_REQ and CON_RSP.
pub const MAGIC: u16 = 0x1bbd;

/// RTRS version that is sent: major in the high byte, minor in the low one.
pub const VERSION: u16 = 0x0200;

/// The half of the RTRS version that a peer must share.
pub const VERSION_MAJOR: u8 = 2;

/// RNBD major version, the only part that is sent.
pub const RNBD_VERSION_MAJOR: u8 = 2;

/// Where a server listens unless told otherwise.
pub const PORT: u16 = 1234;

/// Receives that a server posts on connection 0.
pub const SERVICE_QUEUE_DEPTH: u16 = 512;

/// Paths that a session may have.
pub const PATHS_PER_SESSION: usize = 128;

/// Connections that a path may have, the service connection included.
pub const CONNECTIONS_PER_PATH: u16 = 4096;

/// Chunks of a session unless a server is told otherwise; 1 … 65535.
pub const QUEUE_DEPTH_DEFAULT: u16 = 512;

/// Bytes of a chunk unless a server is told otherwise.
pub const CHUNK_BYTES_DEFAULT: u32 = 128 * 1024;

/// The smallest chunk.
pub const CHUNK_BYTES_MIN: u32 = 8192;

/// What a server keeps of each chunk for headers: its page size.
pub const HEADER_BYTES: u32 = 4096;

/// The smallest header part that a client accepts, in bytes.
pub const HEADER_BYTES_MIN: u32 = 512;

/// The largest header part that a client accepts, in bytes.
pub const HEADER_BYTES_MAX: u32 = 1 << 20;

/// The smallest transfer limit that a client accepts, in bytes.
pub const IO_BYTES_MIN: u32 = 4096;

/// The longest name in bytes, without its NUL.
pub const NAME_BYTES: usize = 254;

/// The largest errno magnitude that an answer carries.
pub const ERRNO_MAX: u16 = 511;

/// RNBD counts capacity and positions in sectors of this many bytes, whatever the block size.
pub const SECTOR_BYTES: u32 = 512;
