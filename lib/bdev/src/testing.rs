//! What the tests of all modules use.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages, Span};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    Bdev, BdevIo, Channel, Desc, IoDone, IoOp, MallocOptions, NullOptions, OnRemoved, Registry,
};

mod model;

/// A registry and the memory of its devices.
pub(crate) struct Rig {
    pub(crate) registry: Registry,
    pub(crate) memory: Memory,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let memory = Memory::new(MemoryConfig {
            hugepages: false,
            ..MemoryConfig::default()
        });
        Self {
            registry: Registry::new(memory.clone()),
            memory,
        }
    }

    /// A malloc disk of blocks of 512 bytes.
    pub(crate) fn malloc(&self, name: &str, num_blocks: u64) {
        let options = MallocOptions {
            name: Some(name.to_owned()),
            num_blocks,
            block_size: 512,
            ..MallocOptions::default()
        };
        crate::MallocBdev::create(&self.registry, &self.memory, options).unwrap();
    }

    /// A null disk of blocks of 512 bytes.
    pub(crate) fn null(&self, name: &str, num_blocks: u64) {
        let options = NullOptions {
            name: name.to_owned(),
            num_blocks,
            block_size: 512,
            ..NullOptions::default()
        };
        crate::NullBdev::create(&self.registry, options).unwrap();
    }

    /// A buffer aligned to pages.
    pub(crate) fn buffer(&self, bytes: usize) -> Buffer {
        self.memory.alloc("test", bytes, Pages::Small).unwrap()
    }

    /// Opens a device for writing, with a channel of `depth`.
    pub(crate) fn open(&self, name: &str, depth: u32) -> (Desc, Driver) {
        let desc = self.registry.open(name, true).unwrap();
        let channel = desc.open_channel(CoreIndex(0), depth).unwrap();
        (desc, Driver::new(channel))
    }

    /// The calls that make all devices again, as text.
    pub(crate) fn saved(&self) -> String {
        let calls = self
            .registry
            .list()
            .into_iter()
            .flat_map(|info| info.bdev.config());
        let lines = calls.map(|call| {
            format!(
                "{} {}\n",
                call.method,
                serde_json::to_string(&call.params).unwrap()
            )
        });
        lines.collect()
    }
}

/// A channel and its time.
pub(crate) struct Driver {
    pub(crate) channel: Channel,
    pub(crate) now: Nanos,
    pub(crate) done: Vec<IoDone>,
}

impl Driver {
    pub(crate) fn new(channel: Channel) -> Self {
        let done = Vec::with_capacity(channel.depth());
        Self {
            channel,
            now: Nanos(1_000),
            done,
        }
    }

    pub(crate) fn submit(&mut self, io: &BdevIo) -> Result<(), Errno> {
        self.channel.submit(io, self.now)
    }

    /// Polls once and returns what ended.
    pub(crate) fn poll(&mut self) -> Vec<IoDone> {
        self.channel.poll(self.now, &mut self.done);
        self.done.drain(..).collect()
    }

    /// Does one I/O from beginning to end.
    pub(crate) fn run(&mut self, io: &BdevIo) -> Result<(), Errno> {
        self.submit(io)?;
        self.finish().remove(0).result
    }

    /// Polls until nothing is outstanding, sleeping as a runtime does.
    pub(crate) fn finish(&mut self) -> Vec<IoDone> {
        let mut ended = Vec::new();
        while self.channel.outstanding() > 0 {
            let new = self.poll();
            if new.is_empty() {
                self.sleep();
            }
            ended.extend(new);
        }
        ended
    }

    /// Lets time pass to the deadline, or waits for the descriptors.
    fn sleep(&mut self) {
        if let Some(deadline) = self.channel.next_deadline() {
            self.now = self.now.max(deadline);
            return;
        }
        let mut fds = Vec::new();
        if !self.channel.prepare_sleep(&mut fds) {
            return;
        }
        assert!(
            !fds.is_empty(),
            "it sleeps with I/O outstanding and nothing to wake it"
        );
        // SAFETY: the channel keeps its descriptors open.
        #[allow(unsafe_code)]
        let borrow = |&fd| unsafe { BorrowedFd::borrow_raw(fd) };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(borrow).collect();
        let mut polled: Vec<PollFd<'_>> = borrowed
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        let limit = Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        let ready = poll(&mut polled, Some(&limit)).unwrap();
        assert!(ready > 0, "I/O did not end within 30 s");
    }
}

pub(crate) fn io(op: IoOp, offset_blocks: u64, num_blocks: u64, buf: Span) -> BdevIo {
    BdevIo {
        tag: offset_blocks,
        op,
        offset_blocks,
        num_blocks,
        buf,
        prio: 0,
    }
}

pub(crate) fn read(offset_blocks: u64, num_blocks: u64, buf: Span) -> BdevIo {
    io(IoOp::Read, offset_blocks, num_blocks, buf)
}

pub(crate) fn write(offset_blocks: u64, num_blocks: u64, buf: Span) -> BdevIo {
    io(IoOp::Write { fua: false }, offset_blocks, num_blocks, buf)
}

pub(crate) fn flush() -> BdevIo {
    io(IoOp::Flush, 0, 0, Span::EMPTY)
}

/// Where removed devices are put.
#[derive(Clone, Default)]
pub(crate) struct Removed(Arc<Mutex<Vec<Arc<dyn Bdev>>>>);

impl Removed {
    pub(crate) fn catch(&self) -> OnRemoved {
        let caught = Arc::clone(&self.0);
        Box::new(move |bdev| caught.lock().unwrap().push(bdev))
    }

    pub(crate) fn take(&self) -> Vec<Arc<dyn Bdev>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}
