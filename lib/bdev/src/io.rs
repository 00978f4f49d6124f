use rnbd_base::Errno;
use rnbd_mem::Span;

/// What an I/O does. Offsets and lengths are in blocks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Device to buffer.
    Read,
    /// Buffer to device.
    Write {
        /// Durable before it completes.
        fua: bool,
    },
    /// Everything completed so far becomes durable. Offset and length are ignored.
    Flush,
    /// The blocks' content is no longer needed.
    Unmap,
    /// The blocks read as zeroes from now on.
    WriteZeroes {
        /// They stay allocated.
        no_unmap: bool,
    },
}

impl IoOp {
    /// Whether it carries data in the buffer.
    #[must_use]
    pub fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. })
    }

    /// Whether it changes the device.
    #[must_use]
    pub fn modifies(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Unmap | Self::WriteZeroes { .. }
        )
    }

    /// The kind it is counted as.
    #[must_use]
    pub fn kind(self) -> IoKind {
        match self {
            Self::Read => IoKind::Read,
            Self::Write { .. } => IoKind::Write,
            Self::Flush => IoKind::Flush,
            Self::Unmap => IoKind::Unmap,
            Self::WriteZeroes { .. } => IoKind::WriteZeroes,
        }
    }
}

/// The kinds of I/O that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// [`IoOp::Read`].
    Read,
    /// [`IoOp::Write`].
    Write,
    /// [`IoOp::Flush`].
    Flush,
    /// [`IoOp::Unmap`].
    Unmap,
    /// [`IoOp::WriteZeroes`].
    WriteZeroes,
}

impl IoKind {
    /// Every kind, in the order of its index in tables.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Unmap,
        Self::WriteZeroes,
    ];
}

/// One I/O. Plain data; the channel copies what it needs.
#[derive(Clone, Copy, Debug)]
pub struct BdevIo {
    /// The submitter's, returned in [`IoDone`].
    pub tag: u64,
    /// What to do.
    pub op: IoOp,
    /// First block.
    pub offset_blocks: u64,
    /// Number of blocks; zero only for flush.
    pub num_blocks: u64,
    /// The data, exactly `num_blocks` blocks, for read and write; empty else. It belongs to the
    /// device until the I/O completes.
    pub buf: Span,
    /// Linux I/O priority, zero for none (protocol.md 9.7).
    pub prio: u16,
}

/// An I/O has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoDone {
    /// As submitted.
    pub tag: u64,
    /// How it ended.
    pub result: Result<(), Errno>,
}
