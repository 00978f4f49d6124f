use std::fmt;

/// How a claim restricts the other users of a device; SPDK's names (spdk-conventions.md A.7).
///
/// While there is a claim, nobody else can open the device for writing; those who shall share it
/// open it for reading and claim it in turn, which lets them write. Readers are never refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimType {
    /// Only the claimer writes, and nobody else may claim at all.
    ExclusiveWrite,
    /// Only the claimer writes.
    ReadManyWriteOne,
    /// Nobody writes; any number of readers may claim so.
    ReadManyWriteNone,
    /// Those who claim with the same key write.
    ReadManyWriteShared {
        /// What the writers agreed on.
        key: u64,
    },
}

impl ClaimType {
    /// As `bdev_get_bdevs` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ExclusiveWrite => "exclusive_write",
            Self::ReadManyWriteOne => "read_many_write_one",
            Self::ReadManyWriteNone => "read_many_write_none",
            Self::ReadManyWriteShared { .. } => "read_many_write_shared",
        }
    }

    /// Whether the claimer may write.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::ReadManyWriteNone
    }

    /// Whether several descriptors may hold a claim of this type together.
    fn is_shared(self) -> bool {
        matches!(
            self,
            Self::ReadManyWriteNone | Self::ReadManyWriteShared { .. }
        )
    }
}

impl fmt::Display for ClaimType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who claimed a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimInfo {
    /// How.
    pub claim_type: ClaimType,
    /// The names that the claimers gave, in the order that they came.
    pub claimers: Vec<String>,
}

/// The claims that descriptors of one device hold; all are of one type.
#[derive(Debug)]
pub(crate) struct Claims {
    claim_type: ClaimType,
    holders: Vec<(u64, String)>,
}

impl Claims {
    pub(crate) fn new(claim_type: ClaimType, desc: u64, claimer: &str) -> Self {
        Self {
            claim_type,
            holders: vec![(desc, claimer.to_owned())],
        }
    }

    /// Whether a claim of `claim_type` can be held beside these.
    pub(crate) fn admits(&self, claim_type: ClaimType) -> bool {
        claim_type == self.claim_type && claim_type.is_shared()
    }

    pub(crate) fn add(&mut self, desc: u64, claimer: &str) {
        self.holders.push((desc, claimer.to_owned()));
    }

    /// Whether none is left.
    pub(crate) fn remove(&mut self, desc: u64) -> bool {
        self.holders.retain(|(holder, _)| *holder != desc);
        self.holders.is_empty()
    }

    pub(crate) fn is_held_by(&self, desc: u64) -> bool {
        self.holders.iter().any(|(holder, _)| *holder == desc)
    }

    pub(crate) fn info(&self) -> ClaimInfo {
        ClaimInfo {
            claim_type: self.claim_type,
            claimers: self.holders.iter().map(|(_, name)| name.clone()).collect(),
        }
    }
}
