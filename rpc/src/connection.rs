use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context, Poll};

use serde_json::Value;

use crate::Rpc;
use crate::control_loop::{Interest, Watch};
use crate::envelope::{BadRequest, Incoming, Request};
use crate::framing::{Malformed, Scanner};
use crate::gate::{GateState, Ticket};
use crate::outbox::{Batch, Destination, Outbox};
use crate::traffic::{Tap, Traffic};

/// What a connection may have sent without completing a value.
const RECEIVE_BYTES_MAX: usize = 256 << 10;
const READ_BYTES: usize = 16 << 10;

/// One client.
pub(crate) struct Connection {
    rpc: Rpc,
    ticket: Ticket,
    stream: Watch<UnixStream>,
    received: Vec<u8>,
    scanner: Scanner,
    outbox: Rc<Outbox>,
    tap: Tap,
    /// The client will send no more.
    at_end: bool,
}

/// Why a connection is over. None of them is told to the client.
enum Over {
    /// The client closed its side and has every reply that was ready then, or the server ended.
    Finished,
    Malformed,
    ReceiveBufferFull,
    Io(io::Error),
}

impl Connection {
    pub(crate) fn new(rpc: Rpc, ticket: Ticket, stream: Watch<UnixStream>) -> Self {
        let tap = rpc.tap();
        Self {
            rpc,
            ticket,
            stream,
            received: Vec::new(),
            scanner: Scanner::default(),
            outbox: Rc::new(Outbox::new(tap.clone())),
            tap,
            at_end: false,
        }
    }

    /// Serves the client until it is gone. Methods that run then go on; their replies are dropped.
    pub(crate) async fn serve(mut self) {
        match poll_fn(|context| self.poll(context)).await {
            Over::Finished => {}
            Over::Malformed => log::warn!("RPC connection closed: it sent what is not JSON"),
            Over::ReceiveBufferFull => log::warn!(
                "RPC connection closed: a request has more than {RECEIVE_BYTES_MAX} bytes"
            ),
            Over::Io(error) => log::debug!("RPC connection closed: {error}"),
        }
        self.outbox.close();
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        loop {
            self.outbox.set_waker(context.waker().clone());
            let gate = self.ticket.state(context);
            if let Err(over) = self.progress(gate) {
                return Poll::Ready(over);
            }
            let interest = Interest {
                readable: gate == GateState::Open && self.wants_to_read(),
                writable: !self.outbox.is_empty(),
            };
            match self.stream.poll_ready(context, interest) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Over::Io(error)),
            }
        }
    }

    fn progress(&mut self, gate: GateState) -> Result<(), Over> {
        self.write()?;
        match gate {
            GateState::Open => self.read()?,
            GateState::Paused => {}
            GateState::Ended => return Err(Over::Finished),
        }
        // Errors are answered at once, and their replies should not wait for an event.
        self.write()?;
        if self.at_end && self.outbox.is_empty() {
            return Err(Over::Finished);
        }
        Ok(())
    }

    fn wants_to_read(&self) -> bool {
        !self.at_end && !self.outbox.is_full()
    }

    fn write(&mut self) -> Result<(), Over> {
        while !self.outbox.is_empty() {
            let mut stream = self.stream.get();
            match self.outbox.write_with(|unsent| stream.write(unsent)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Over::Io(error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Over> {
        while self.wants_to_read() {
            match self.read_some() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Over::Io(error)),
                Ok(0) => {
                    self.at_end = true;
                    // What completes from here on is lost, as with SPDK. Calls that do not wait
                    // have completed.
                    self.outbox.close();
                }
                Ok(_) => self.take_values()?,
            }
        }
        Ok(())
    }

    fn read_some(&mut self) -> io::Result<usize> {
        let have = self.received.len();
        let room = READ_BYTES.min(RECEIVE_BYTES_MAX - have);
        self.received.resize(have + room, 0);
        let read = self.stream.get().read(&mut self.received[have..]);
        let count = read.as_ref().map_or(0, |&count| count);
        self.received.truncate(have + count);
        read
    }

    fn take_values(&mut self) -> Result<(), Over> {
        let mut taken = 0;
        loop {
            match self.scanner.next_value(&self.received[taken..]) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    let value = &self.received[taken..taken + length];
                    self.tap.show(Traffic::Request, value);
                    let incoming = Incoming::parse(value);
                    taken += length;
                    self.handle(incoming.map_err(|Malformed| Over::Malformed)?);
                }
                Err(Malformed) => return Err(Over::Malformed),
            }
        }
        self.received.drain(..taken);
        if self.received.len() == RECEIVE_BYTES_MAX {
            return Err(Over::ReceiveBufferFull);
        }
        Ok(())
    }

    fn handle(&self, incoming: Incoming) {
        match incoming {
            Incoming::Single(request) => {
                let outbox = Rc::clone(&self.outbox);
                self.handle_request(request, Destination::Alone(outbox));
            }
            Incoming::Batch(requests) => {
                let batch = Batch::new(&self.outbox, requests.len());
                for request in requests {
                    self.handle_request(request, Destination::InBatch(Rc::clone(&batch)));
                }
            }
        }
    }

    fn handle_request(&self, request: Result<Request, BadRequest>, destination: Destination) {
        let Request { id, method, params } = match request {
            Ok(request) => request,
            Err(BadRequest { id, error }) => return destination.deliver(&id, &Err(error)),
        };
        log::debug!("RPC {method} {}", params.as_ref().unwrap_or(&Value::Null));
        match self.rpc.start(&method, params) {
            Err(error) => destination.deliver(&id, &Err(error)),
            Ok(running) => self.rpc.handle().spawn_now(async move {
                let result = running.await;
                if let Err(error) = &result {
                    log::info!("RPC {method} failed: {error}");
                }
                destination.deliver(&id, &result);
            }),
        }
    }
}
