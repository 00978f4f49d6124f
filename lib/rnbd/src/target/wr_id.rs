//! What the shard writes into the `wr_id` of its work requests.
//!
//! ```text
//!  bits 63..56  kind
//!  bits 55..32  Executed: 1 + the device whose memory was sent in place, 0 for none
//!  bits 31..0   Executed: work requests since the last signalled one; Revoked: the chunk
//! ```

/// A work request of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrId {
    /// An empty receive.
    Empty,
    /// The receive for INFO_REQ.
    InfoReq,
    /// A chunk is closed to the client.
    Revoked {
        /// The chunk.
        msg_id: u16,
    },
    /// All work requests up to this one are executed.
    Executed {
        /// How many since the last signalled one.
        count: u32,
        /// The device whose memory the last one sent in place.
        device: Option<u32>,
    },
}

const KIND_SHIFT: u32 = 56;
const DEVICE_SHIFT: u32 = 32;
const DEVICE_MASK: u64 = 0xff_ffff;
const LOW_MASK: u64 = 0xffff_ffff;

const INFO_REQ: u64 = 1;
const REVOKED: u64 = 2;
const EXECUTED: u64 = 3;

impl WrId {
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::InfoReq => INFO_REQ << KIND_SHIFT,
            Self::Revoked { msg_id } => (REVOKED << KIND_SHIFT) | u64::from(msg_id),
            Self::Executed { count, device } => {
                let device = device.map_or(0, |device| u64::from(device) + 1);
                (EXECUTED << KIND_SHIFT) | (device << DEVICE_SHIFT) | u64::from(count)
            }
        }
    }

    pub(super) fn decode(wr_id: u64) -> Self {
        let low = u32::try_from(wr_id & LOW_MASK).unwrap_or(u32::MAX);
        let device = u32::try_from((wr_id >> DEVICE_SHIFT) & DEVICE_MASK).unwrap_or(0);
        match wr_id >> KIND_SHIFT {
            INFO_REQ => Self::InfoReq,
            REVOKED => Self::Revoked {
                msg_id: u16::try_from(low).unwrap_or(u16::MAX),
            },
            EXECUTED => Self::Executed {
                count: low,
                device: device.checked_sub(1),
            },
            _ => Self::Empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_as_it_was() {
        for wr_id in [
            WrId::Empty,
            WrId::InfoReq,
            WrId::Revoked { msg_id: u16::MAX },
            WrId::Executed {
                count: u32::MAX,
                device: None,
            },
            WrId::Executed {
                count: 1,
                device: Some(0xffff),
            },
        ] {
            assert_eq!(WrId::decode(wr_id.encode()), wr_id);
        }
    }
}
