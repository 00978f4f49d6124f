use rnbd_base::Errno;
use rnbd_bdev::{BdevIo, IoDone};
use rnbd_proto::clt::DeviceIndex;
use rtrb::{Consumer, Producer};

use crate::message::PortSetup;

/// The shard's ends of one consumer's rings.
#[derive(Debug)]
pub(super) struct Port {
    device: DeviceIndex,
    requests: Consumer<BdevIo>,
    done: Producer<IoDone>,
    outstanding: u32,
}

impl Port {
    pub(super) fn new(setup: PortSetup) -> Self {
        Self {
            device: setup.device,
            requests: setup.requests,
            done: setup.done,
            outstanding: 0,
        }
    }

    pub(super) fn device(&self) -> DeviceIndex {
        self.device
    }

    pub(super) fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<BdevIo> {
        let io = self.requests.pop().ok()?;
        self.outstanding += 1;
        Some(io)
    }

    /// The ring has as many places as the consumer may have I/Os outstanding; a consumer that is
    /// gone takes nothing any more.
    pub(super) fn finish(&mut self, tag: u64, result: Result<(), Errno>) {
        self.outstanding -= 1;
        let _ = self.done.push(IoDone { tag, result });
    }

    /// The consumer let go, and nothing of it is left.
    pub(super) fn is_over(&self) -> bool {
        self.outstanding == 0 && self.requests.is_abandoned() && self.requests.is_empty()
    }
}
