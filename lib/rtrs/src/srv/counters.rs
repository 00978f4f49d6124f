use std::ops::Add;

/// What a path counts, as the kernel does (protocol.md 10.2), and more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// READ requests.
    pub reads: u64,
    /// User message and data bytes of READ requests.
    pub read_bytes: u64,
    /// WRITE requests.
    pub writes: u64,
    /// User message and data bytes of WRITE requests.
    pub write_bytes: u64,
    /// Requests refused for their RTRS header.
    pub refused: u64,
    /// Chunks opened again with a new rkey.
    pub rkey_refreshes: u64,
    /// Heartbeat messages sent.
    pub hb_sent: u64,
    /// Looks at the peer that found silence.
    pub hb_missed: u64,
    /// Questions for the end of other paths.
    pub fences: u64,
    /// Immediates of a type that is not known, or not for a server.
    pub ignored: u64,
}

impl Add for PathCounters {
    type Output = Self;

    /// What both count together.
    fn add(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            read_bytes: self.read_bytes + other.read_bytes,
            writes: self.writes + other.writes,
            write_bytes: self.write_bytes + other.write_bytes,
            refused: self.refused + other.refused,
            rkey_refreshes: self.rkey_refreshes + other.rkey_refreshes,
            hb_sent: self.hb_sent + other.hb_sent,
            hb_missed: self.hb_missed + other.hb_missed,
            fences: self.fences + other.fences,
            ignored: self.ignored + other.ignored,
        }
    }
}
