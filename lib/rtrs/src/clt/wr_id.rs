/// What a completion of the client's fabric is about, packed into a work request id.
///
/// Zero is what empty receives carry, and decodes as [`WrId::Receive`] of buffer zero, which is of
/// no interest in plain mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrId {
    /// A receive; the number of its buffer.
    Receive(u32),
    /// The connection's operation with this serial number, and all before it.
    Executed(u32),
    /// The invalidation of a request's window.
    Invalidate {
        /// Its permit.
        msg_id: u16,
        /// The serial number of the operation.
        serial: u32,
    },
    /// Only there so that the queue is known to move.
    Signal,
    /// The receive of `INFO_RSP`.
    InfoResponse,
    /// The send of `INFO_REQ`.
    InfoRequest,
}

impl WrId {
    const KIND_SHIFT: u32 = 48;
    const MSG_ID_SHIFT: u32 = 32;

    /// As posted.
    #[must_use]
    pub fn encode(self) -> u64 {
        let (kind, msg_id, value) = match self {
            Self::Receive(buffer) => (0, 0, buffer),
            Self::Executed(serial) => (1, 0, serial),
            Self::Invalidate { msg_id, serial } => (2, msg_id, serial),
            Self::Signal => (3, 0, 0),
            Self::InfoResponse => (4, 0, 0),
            Self::InfoRequest => (5, 0, 0),
        };
        kind << Self::KIND_SHIFT | u64::from(msg_id) << Self::MSG_ID_SHIFT | u64::from(value)
    }

    /// From a completion; `None` for an id that was never posted.
    #[must_use]
    pub fn decode(raw: u64) -> Option<Self> {
        let value = u32::try_from(raw & u64::from(u32::MAX)).ok()?;
        let msg_id = u16::try_from(raw >> Self::MSG_ID_SHIFT & u64::from(u16::MAX)).ok()?;
        match raw >> Self::KIND_SHIFT {
            0 => Some(Self::Receive(value)),
            1 => Some(Self::Executed(value)),
            2 => Some(Self::Invalidate {
                msg_id,
                serial: value,
            }),
            3 => Some(Self::Signal),
            4 => Some(Self::InfoResponse),
            5 => Some(Self::InfoRequest),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_way_through_the_fabric() {
        let ids = [
            WrId::Receive(u32::MAX),
            WrId::Executed(u32::MAX),
            WrId::Invalidate {
                msg_id: u16::MAX,
                serial: 7,
            },
            WrId::Signal,
            WrId::InfoResponse,
            WrId::InfoRequest,
        ];
        for id in ids {
            assert_eq!(WrId::decode(id.encode()), Some(id));
        }
        assert_eq!(WrId::decode(u64::MAX), None);
    }
}
