//! What the tests share: an export that a plain thread polls, and a client that sends raw bytes.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rnbd_base::{CoreIndex, Nanos, NoWake, Poll};
use rnbd_bdev::{MallocBdev, MallocOptions, Registry};
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_nbd::{Address, EndReason, ExportOptions, NbdExport, NbdHandle, NbdServer};
use tempfile::TempDir;

pub(crate) const DISK_BYTES: u64 = 64 << 20;

/// Devices, memory and a directory for sockets.
pub(crate) struct Setup {
    pub(crate) dir: TempDir,
    pub(crate) memory: Memory,
    pub(crate) bdevs: Registry,
}

impl Setup {
    /// With a disk `Malloc0` of [`DISK_BYTES`] in blocks of 512 bytes.
    pub(crate) fn new() -> Self {
        let memory = Memory::new(MemoryConfig::default());
        let bdevs = Registry::new(memory.clone());
        let options = MallocOptions {
            name: Some("Malloc0".to_owned()),
            num_blocks: DISK_BYTES / 512,
            block_size: 512,
            ..MallocOptions::default()
        };
        MallocBdev::create(&bdevs, &memory, options).unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            memory,
            bdevs,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Options for `bdev` on a socket of its own.
    pub(crate) fn options(&self, bdev: &str) -> ExportOptions {
        ExportOptions::new(bdev, Address::Unix(self.path(&format!("{bdev}.sock"))))
    }

    /// A server that nobody polls yet.
    pub(crate) fn server(
        &self,
        options: ExportOptions,
    ) -> (NbdServer, NbdHandle, Receiver<EndReason>) {
        let (tx, ended) = channel();
        let on_end = Box::new(move |reason| tx.send(reason).unwrap());
        let wake = Arc::new(NoWake);
        let core = CoreIndex(0);
        let (server, handle) =
            NbdExport::start(&self.bdevs, &self.memory, core, wake, options, on_end).unwrap();
        (server, handle, ended)
    }

    /// A server that a thread polls, and that sleeps when there is nothing to do.
    pub(crate) fn sleeping_export(&self, options: ExportOptions) -> Export {
        let (server, handle, ended) = self.server(options);
        Export::run(server, handle, ended, sleep)
    }

    /// A server that a thread polls.
    pub(crate) fn export(&self, options: ExportOptions) -> Export {
        let (server, handle, ended) = self.server(options);
        Export::run(server, handle, ended, |_, _| std::thread::yield_now())
    }
}

/// As a reactor does it: until a descriptor is readable, or the deadline.
fn sleep(server: &mut NbdServer, now: Nanos) {
    let mut fds = Vec::new();
    if !server.prepare_sleep(&mut fds) {
        return;
    }
    // Not for ever, because the test's end wakes nobody.
    let deadline = server.next_deadline().unwrap_or(Nanos::MAX);
    let most = deadline
        .since(now)
        .min(Nanos::from_millis(100))
        .as_duration();
    let timeout = rustix::event::Timespec::try_from(most).unwrap();
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| {
            // SAFETY: the server keeps what it named open until its next poll.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)
        })
        .collect();
    rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
}

/// A server and the thread that polls it.
pub(crate) struct Export {
    pub(crate) handle: NbdHandle,
    pub(crate) ended: Receiver<EndReason>,
    quit: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Export {
    fn run(
        mut server: NbdServer,
        handle: NbdHandle,
        ended: Receiver<EndReason>,
        on_idle: fn(&mut NbdServer, Nanos),
    ) -> Self {
        let quit = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&quit);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let now = Nanos::from(start.elapsed());
                if !server.poll(now).is_busy() {
                    on_idle(&mut server, now);
                }
            }
        });
        Self {
            handle,
            ended,
            quit,
            thread: Some(thread),
        }
    }

    /// A client that has said that it wants the export.
    pub(crate) fn client(&self, structured: bool) -> Client {
        let mut client = self.stranger();
        client.enter(structured);
        client
    }

    /// A client that has said nothing.
    pub(crate) fn stranger(&self) -> Client {
        let Address::Unix(path) = self.handle.address() else {
            panic!("the export is not on a Unix socket");
        };
        let stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Client { stream }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || joined.is_some_and(|result| result.is_ok()));
    }
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const FAST_ZERO: u16 = 16;

/// A client that sends what it is told to.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send_bytewise(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.send(&[*byte]));
    }

    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server closes the connection, after nothing but what it has sent already.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Flags, structured replies if wanted, and EXPORT_NAME; returns size and flags.
    pub(crate) fn enter(&mut self, structured: bool) -> (u64, u16) {
        self.take(18);
        self.send(&3_u32.to_be_bytes());
        if structured {
            self.send(&option(8, &[]));
            self.take(20);
        }
        self.send(&option(1, b""));
        let answer = self.take(10);
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        (size, u16::from_be_bytes([answer[8], answer[9]]))
    }

    /// A request without structured replies; returns the error number.
    pub(crate) fn simple(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
        self.send(&request(flags, command, 1, offset, length));
        self.simple_reply(1)
    }

    pub(crate) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&request(flags, WRITE, 2, offset, length));
        self.send(data);
        self.simple_reply(2)
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        match self.simple(0, READ, offset, length) {
            0 => Ok(self.take(length as usize)),
            error => Err(error),
        }
    }

    pub(crate) fn simple_reply(&mut self, cookie: u64) -> u32 {
        let reply = self.take(16);
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[8..], cookie.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }
}

pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        b"IHAVEOPT",
        &number.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// Bytes that differ from block to block.
pub(crate) fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Runs a program that has to be there and to succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{said}",
        output.status
    );
    said
}

/// Runs a program that has to be there.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    // One at a time: each of them is a process with threads of its own.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "{program} cannot be run ({error}): scripts/test.sh installs what the tests need"
            )
        })
}
