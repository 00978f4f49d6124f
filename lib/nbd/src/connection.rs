//! One client, from its connect until nothing of it is left.
//!
//! ```text
//!           accept              GO, EXPORT_NAME                DISC, stop, device removed
//!   Vacant --------> Handshake ----------------> Transmission ----------------------------> Ending
//!     ^                  |                            |                                       |
//!     |                  | deadline, garbage, ABORT   | garbage, client gone                  | all answered,
//!     |                  v                            v                                       | client gone,
//!     +---------------- Lost <----------------------------------------------------------------+ deadline
//!       no I/O in flight
//! ```
//!
//! The socket is closed on the way to `Lost`. The memory is not used for another client before the
//! device has ended all I/O of this one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rnbd_base::{Errno, Nanos};
use rnbd_bdev::BdevIo;
use rnbd_mem::{Buffer, Span};
use rustix::net::{SendFlags, send};
use socket2::Socket;

use crate::handshake::{ExportFacts, Handshake, MAX_OPTION_BYTES, Outcome};
use crate::requests::SlotId;
use crate::transmission::{Intake, Terms, Transmission};

/// Strangers that connect and say nothing are dropped after this time.
const HANDSHAKE_TIME: Nanos = Nanos::from_secs(10);
/// How long a client may take to read its last replies.
const ENDING_TIME: Nanos = Nanos::from_secs(2);

/// A place for a client.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    socket: Option<Socket>,
    readable: bool,
    writable: bool,
    peer: String,
    transmission: Transmission,
}

#[derive(Debug)]
enum Phase {
    Vacant,
    Handshake(Box<Greeting>),
    Transmission,
    Ending {
        deadline: Nanos,
        /// Requests are still read, to be refused.
        reading: bool,
    },
    Lost,
}

#[derive(Debug)]
struct Greeting {
    machine: Handshake,
    export: ExportFacts,
    output: Vec<u8>,
    /// The handshake is over but for sending `output`.
    agreed: Option<Terms>,
    deadline: Nanos,
}

impl Connection {
    /// A vacant place with room for `depth` requests.
    pub(crate) fn new(memory: Buffer, depth: u16) -> Self {
        Self {
            phase: Phase::Vacant,
            socket: None,
            readable: false,
            writable: false,
            peer: String::new(),
            transmission: Transmission::new(memory, depth),
        }
    }

    /// Whether another client may take the place.
    pub(crate) fn is_vacant(&self) -> bool {
        matches!(self.phase, Phase::Vacant)
    }

    /// Whether a client is connected.
    pub(crate) fn has_client(&self) -> bool {
        self.socket.is_some()
    }

    /// Greets a client who is to be told `export`.
    pub(crate) fn accept(&mut self, socket: Socket, peer: String, export: ExportFacts, now: Nanos) {
        log::debug!("NBD client {peer} connected to {}", export.name);
        let mut output = Vec::with_capacity(MAX_OPTION_BYTES);
        self.phase = Phase::Handshake(Box::new(Greeting {
            machine: Handshake::start(&mut output),
            export,
            output,
            agreed: None,
            deadline: now + HANDSHAKE_TIME,
        }));
        self.socket = Some(socket);
        self.peer = peer;
        self.readable = true;
        self.writable = true;
    }

    /// The kernel reports that the socket may have become ready.
    pub(crate) fn on_ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// When `poll_input` must be called even if nothing arrives.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        match &self.phase {
            Phase::Handshake(greeting) => Some(greeting.deadline),
            Phase::Ending { deadline, .. } => Some(*deadline),
            Phase::Vacant | Phase::Transmission | Phase::Lost => None,
        }
    }

    /// Ends it once everything that was received is answered. With `refuse_requests` the client
    /// gets `ESHUTDOWN` for what it asks until then, and some time to ask.
    pub(crate) fn end(&mut self, refuse_requests: bool, now: Nanos) {
        match self.phase {
            Phase::Handshake(_) => {
                self.lose("the export ends");
            }
            Phase::Transmission => {
                if refuse_requests {
                    self.transmission.shut_down();
                }
                self.phase = Phase::Ending {
                    deadline: now + ENDING_TIME,
                    reading: refuse_requests,
                };
            }
            Phase::Vacant | Phase::Ending { .. } | Phase::Lost => {}
        }
    }

    /// Receives and takes requests, for a device that lends its memory or does not. Returns
    /// whether anything happened.
    pub(crate) fn poll_input(&mut self, device_lends: bool, now: Nanos) -> bool {
        match self.phase {
            Phase::Vacant => false,
            Phase::Handshake(_) => self.poll_handshake(now),
            Phase::Transmission => self.poll_requests(device_lends, now),
            Phase::Ending { deadline, reading } => {
                let did_work = reading && self.poll_requests(device_lends, now);
                self.poll_ending(deadline, reading, now) || did_work
            }
            Phase::Lost => self.poll_lost(),
        }
    }

    /// The next I/O for the device.
    pub(crate) fn next_io(&mut self) -> Option<BdevIo> {
        self.transmission.next_io()
    }

    /// The device ended, or refused, the I/O of a slot.
    pub(crate) fn complete(&mut self, slot: SlotId, result: Result<(), Errno>) {
        self.transmission.complete(slot, result);
    }

    /// The device lends `data` as the answer to the read of a slot.
    pub(crate) fn complete_in_place(&mut self, slot: SlotId, data: Span) {
        self.transmission.complete_in_place(slot, data);
    }

    /// Whether replies are to be sent from the memory of the device.
    pub(crate) fn borrows_from_device(&self) -> bool {
        self.transmission.borrows_from_device()
    }

    /// Sends replies. Returns whether anything happened.
    pub(crate) fn poll_output(&mut self) -> bool {
        if !self.writable || !self.transmission.has_output() {
            return false;
        }
        let Some(socket) = &self.socket else {
            return false;
        };
        match self.transmission.send(socket.as_fd()) {
            Ok(took_all) => {
                self.writable = took_all;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                false
            }
            Err(error) => self.lose(&error.to_string()),
        }
    }

    fn poll_requests(&mut self, device_lends: bool, now: Nanos) -> bool {
        let received = self.receive();
        if self.socket.is_none() {
            return true;
        }
        let (took, intake) = self.transmission.take_requests(device_lends);
        match intake {
            Intake::Drained => {}
            Intake::Disconnect => self.end(false, now),
            Intake::Garbage => {
                self.lose("a request does not start as one");
            }
        }
        received || took
    }

    /// Returns whether it is over.
    fn poll_ending(&mut self, deadline: Nanos, reading: bool, now: Nanos) -> bool {
        let told = !reading || self.transmission.has_told_shutdown();
        if now >= deadline {
            self.lose("it was too slow to take its last replies, or there were none to give")
        } else if told && self.transmission.is_answered() {
            self.lose("it ended")
        } else {
            false
        }
    }

    fn poll_lost(&mut self) -> bool {
        self.transmission.discard_output();
        if !self.transmission.is_vacant() {
            return false;
        }
        self.phase = Phase::Vacant;
        true
    }

    /// Receives once, if the socket may have something.
    fn receive(&mut self) -> bool {
        let (true, Some(socket)) = (self.readable, &self.socket) else {
            return false;
        };
        match self.transmission.receive(socket.as_fd()) {
            Ok(None) => false,
            Ok(Some((0, _))) => self.lose("it went away"),
            Ok(Some((_, was_all))) => {
                self.readable = !was_all;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                false
            }
            Err(error) => self.lose(&error.to_string()),
        }
    }

    fn poll_handshake(&mut self, now: Nanos) -> bool {
        let did_work = self.receive();
        let (Phase::Handshake(greeting), Some(socket)) = (&mut self.phase, &self.socket) else {
            return did_work;
        };
        if now >= greeting.deadline {
            return self.lose("it took too long to say what it wants");
        }
        match greeting.talk(socket.as_fd(), &mut self.transmission) {
            Ok(()) => {}
            Err(reason) => return self.lose(reason),
        }
        if let Some(terms) = greeting.agreed
            && greeting.output.is_empty()
        {
            log::debug!("NBD client {} uses {}", self.peer, greeting.export.name);
            self.transmission.begin(terms);
            self.phase = Phase::Transmission;
            return true;
        }
        did_work
    }

    fn lose(&mut self, reason: &str) -> bool {
        match self.phase {
            Phase::Handshake(_) => log::info!("NBD client {} dropped: {reason}", self.peer),
            _ => log::debug!("NBD client {} left: {reason}", self.peer),
        }
        self.socket = None;
        self.transmission.abandon();
        self.phase = if self.transmission.is_vacant() {
            Phase::Vacant
        } else {
            Phase::Lost
        };
        true
    }
}

impl Greeting {
    /// Answers what arrived, one option at a time, each when the answers before it are out.
    fn talk(
        &mut self,
        socket: BorrowedFd<'_>,
        transmission: &mut Transmission,
    ) -> Result<(), &'static str> {
        loop {
            self.send(socket)?;
            if !self.output.is_empty() || self.agreed.is_some() {
                return Ok(());
            }
            let input = copy_pending(transmission);
            let (taken, outcome) = self.machine.advance(&self.export, &input, &mut self.output);
            transmission.inbox().consume(taken);
            match outcome {
                Outcome::Unfinished if taken == 0 => return Ok(()),
                Outcome::Unfinished => {}
                Outcome::Transmission { structured } => self.agreed = Some(self.terms(structured)),
                Outcome::Closed(reason) => {
                    self.send(socket)?;
                    return Err(reason);
                }
            }
        }
    }

    fn terms(&self, structured: bool) -> Terms {
        Terms {
            size_bytes: self.export.size_bytes,
            block_bytes: self.export.block_bytes,
            read_only: self.export.read_only,
            trim: self.export.trim,
            structured,
        }
    }

    fn send(&mut self, socket: BorrowedFd<'_>) -> Result<(), &'static str> {
        if self.output.is_empty() {
            return Ok(());
        }
        match send(
            socket,
            &self.output,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => {
                self.output.drain(..sent);
                Ok(())
            }
            Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(_) => Err("it went away"),
        }
    }
}

fn copy_pending(transmission: &mut Transmission) -> Vec<u8> {
    let pending = transmission.inbox().pending();
    let mut input = vec![0; pending.len().min(MAX_OPTION_BYTES)];
    pending.read_at(0, &mut input);
    input
}
