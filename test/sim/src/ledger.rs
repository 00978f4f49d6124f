//! Who has which chunk, as an observer of the network sees it.

use std::collections::{BTreeMap, BTreeSet};

use rnbd_fabric::sim::{Seen, Side, Sight, WireId};
use rnbd_wire::rtrs::ConReq;
use rnbd_wire::{Imm, ImmLayout};

/// A session, as its connection requests name it.
type SessionId = [u8; 16];

/// The chunks of all sessions. A permit of a session is a chunk of each of its paths: from the
/// request until its answer has arrived, or its connection is given up, nobody else may have it.
#[derive(Debug)]
pub(crate) struct Ledger {
    layout: ImmLayout,
    /// The session of each connection.
    wires: BTreeMap<WireId, SessionId>,
    /// Which permits a client uses, and on which connection.
    permits: BTreeMap<SessionId, BTreeMap<u16, WireId>>,
    /// Chunks with requests that a server has not answered, of each connection.
    unanswered: BTreeMap<WireId, BTreeSet<u16>>,
}

impl Ledger {
    /// For servers of this queue depth.
    pub(crate) fn new(queue_depth: u16) -> Self {
        Self {
            layout: ImmLayout::new(queue_depth).expect("scenarios are valid"),
            wires: BTreeMap::new(),
            permits: BTreeMap::new(),
            unanswered: BTreeMap::new(),
        }
    }

    /// Enters what was seen.
    pub(crate) fn check(&mut self, sights: &[Sight]) -> Result<(), String> {
        sights.iter().try_for_each(|sight| self.enter(sight))
    }

    fn enter(&mut self, sight: &Sight) -> Result<(), String> {
        let wire = sight.wire;
        match sight.what {
            Seen::Requested(data) => {
                if let Ok(request) = ConReq::decode(data.as_bytes()) {
                    self.wires.insert(wire, request.paths_uuid);
                }
                Ok(())
            }
            Seen::Closed(side) => {
                self.on_closed(wire, side);
                Ok(())
            }
            Seen::Sent { from, imm } => match (from, self.layout.decode(imm)) {
                (Side::Client, Imm::Request { msg_id, .. }) => self.on_request(wire, msg_id),
                (Side::Server, Imm::Response { msg_id, .. }) => self.on_answer(wire, msg_id),
                _ => Ok(()),
            },
            Seen::Taken { from, imm } => match (from, self.layout.decode(imm)) {
                (Side::Client, Imm::Request { msg_id, .. }) => self.on_arrived(wire, msg_id),
                (Side::Server, Imm::Response { msg_id, .. }) => self.on_answered(wire, msg_id),
                _ => Ok(()),
            },
        }
    }

    /// The client gives a request to the network.
    fn on_request(&mut self, wire: WireId, chunk: u16) -> Result<(), String> {
        let Some(session) = self.wires.get(&wire) else {
            return Ok(());
        };
        let permits = self.permits.entry(*session).or_default();
        match permits.insert(chunk, wire) {
            None => Ok(()),
            Some(other) => Err(format!(
                "permit {chunk} is used on {wire:?} and still on {other:?}"
            )),
        }
    }

    /// The request is in the server's chunk.
    fn on_arrived(&mut self, wire: WireId, chunk: u16) -> Result<(), String> {
        if self.unanswered.entry(wire).or_default().insert(chunk) {
            return Ok(());
        }
        Err(format!(
            "chunk {chunk} of {wire:?} was taken before it was answered"
        ))
    }

    /// The server gives an answer to the network.
    fn on_answer(&mut self, wire: WireId, chunk: u32) -> Result<(), String> {
        let unanswered = self.unanswered.entry(wire).or_default();
        let chunk = u16::try_from(chunk).ok();
        if chunk.is_some_and(|chunk| unanswered.remove(&chunk)) {
            return Ok(());
        }
        Err(format!(
            "chunk {chunk:?} of {wire:?} was answered without a request"
        ))
    }

    /// The answer is with the client.
    fn on_answered(&mut self, wire: WireId, chunk: u32) -> Result<(), String> {
        let Some(permits) = self
            .wires
            .get(&wire)
            .and_then(|of| self.permits.get_mut(of))
        else {
            return Ok(());
        };
        let chunk = u16::try_from(chunk).ok();
        let holder = chunk.and_then(|chunk| permits.remove(&chunk));
        if holder == Some(wire) {
            return Ok(());
        }
        Err(format!(
            "chunk {chunk:?} was answered on {wire:?}, its permit is used on {holder:?}"
        ))
    }

    fn on_closed(&mut self, wire: WireId, side: Side) {
        if side == Side::Server {
            self.unanswered.remove(&wire);
            return;
        }
        let session = self.wires.remove(&wire);
        if let Some(permits) = session.and_then(|session| self.permits.get_mut(&session)) {
            permits.retain(|_, holder| *holder != wire);
        }
    }
}
