//! Which sessions there are in the process, and which shard serves each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::Host;
use rnbd_rtrs::srv::{Refusal, Tokens};
use rnbd_wire::Name;
use rnbd_wire::extension::ServiceId;

/// How much a process serves at most, on all transports together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryLimits {
    /// Sessions.
    pub sessions: usize,
    /// Paths of all sessions.
    pub paths: usize,
    /// Connections from one address whose paths have not completed their handshakes.
    pub connecting_per_source: usize,
}

impl Default for DirectoryLimits {
    fn default() -> Self {
        Self {
            sessions: 1024,
            paths: 4096,
            connecting_per_source: 512,
        }
    }
}

/// Names a transport in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TransportId(usize);

/// All sessions of the process. Clones are handles to the same directory; it is locked when
/// connections and sessions come and go, never per I/O.
///
/// All connections of a session must reach the same shard, also those that are on their way when
/// the session is made or ends. So a session has an entry from its first routed request until it
/// is gone and no request is on its way.
#[derive(Clone, Debug)]
pub struct Directory {
    state: Arc<Mutex<State>>,
    tokens: Tokens,
    services: Arc<AtomicU32>,
}

#[derive(Debug)]
struct State {
    limits: DirectoryLimits,
    entries: HashMap<[u8; 16], Entry>,
    shards_of: Vec<usize>,
    /// By transport.
    refusals: Vec<Vec<(Refusal, u64)>>,
    paths: usize,
    connecting: HashMap<Host, usize>,
}

#[derive(Debug)]
struct Entry {
    transport: TransportId,
    shard: usize,
    on_their_way: usize,
    live: bool,
    name: Option<Name>,
}

impl Directory {
    /// An empty directory.
    #[must_use]
    pub fn new(limits: DirectoryLimits) -> Self {
        let state = State {
            limits,
            entries: HashMap::new(),
            shards_of: Vec::new(),
            refusals: Vec::new(),
            paths: 0,
            connecting: HashMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            tokens: Tokens::default(),
            services: Arc::default(),
        }
    }

    /// Where the paths of the process get their tokens.
    pub(super) fn tokens(&self) -> Tokens {
        self.tokens.clone()
    }

    /// The next service of the process.
    pub(super) fn new_service(&self) -> ServiceId {
        loop {
            let number = self.services.fetch_add(1, Ordering::Relaxed);
            if let Some(service) = ServiceId::new(number) {
                return service;
            }
        }
    }

    /// Replaces the limits; what is there already stays.
    pub fn set_limits(&self, limits: DirectoryLimits) {
        self.lock().limits = limits;
    }

    pub(super) fn add_transport(&self, shards: usize) -> TransportId {
        let mut state = self.lock();
        state.shards_of.push(shards);
        state.refusals.push(Vec::new());
        TransportId(state.shards_of.len() - 1)
    }

    /// The shard for a connection request of this session: the one that has it, or the one with
    /// the fewest sessions. [`Directory::decided`] or [`Directory::withdrawn`] must follow.
    pub(super) fn route(
        &self,
        transport: TransportId,
        paths_uuid: &[u8; 16],
    ) -> Result<usize, Refusal> {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(paths_uuid) {
            if entry.transport != transport {
                return Err(Refusal::OtherTransport);
            }
            entry.on_their_way += 1;
            return Ok(entry.shard);
        }
        if state.entries.len() >= state.limits.sessions {
            return Err(Refusal::Sessions);
        }
        let shard = state.least_loaded(transport);
        let entry = Entry {
            transport,
            shard,
            on_their_way: 1,
            live: false,
            name: None,
        };
        state.entries.insert(*paths_uuid, entry);
        Ok(shard)
    }

    /// A routed request was accepted or rejected, and the session exists now or not.
    pub(super) fn decided(&self, paths_uuid: &[u8; 16], live: bool) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(paths_uuid) {
            entry.on_their_way = entry.on_their_way.saturating_sub(1);
            entry.live = live;
        }
        state.forget_if_over(paths_uuid);
    }

    /// A routed request came to nothing before it reached the shard of its session.
    pub(super) fn withdrawn(&self, paths_uuid: &[u8; 16]) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(paths_uuid) {
            entry.on_their_way = entry.on_their_way.saturating_sub(1);
        }
        state.forget_if_over(paths_uuid);
    }

    /// Gives a session a name, unless another one has it.
    pub(super) fn claim_name(&self, name: &Name, paths_uuid: &[u8; 16]) -> bool {
        let mut state = self.lock();
        let taken = |(uuid, entry): (&[u8; 16], &Entry)| {
            uuid != paths_uuid && entry.name.as_ref() == Some(name)
        };
        if state.entries.iter().any(taken) {
            return false;
        }
        let Some(entry) = state.entries.get_mut(paths_uuid) else {
            return false;
        };
        entry.name = Some(*name);
        true
    }

    /// The session has ended.
    pub(super) fn ended(&self, paths_uuid: &[u8; 16]) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(paths_uuid) {
            entry.live = false;
            entry.name = None;
        }
        state.forget_if_over(paths_uuid);
    }

    // Limits.

    pub(super) fn count_path(&self) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.paths >= state.limits.paths {
            return Err(Refusal::Paths);
        }
        state.paths += 1;
        Ok(())
    }

    pub(super) fn uncount_path(&self) {
        self.lock().paths -= 1;
    }

    pub(super) fn count_connecting(&self, source: Host) -> Result<(), Refusal> {
        let mut state = self.lock();
        let limit = state.limits.connecting_per_source;
        let count = state.connecting.entry(source).or_default();
        if *count >= limit {
            return Err(Refusal::Connecting);
        }
        *count += 1;
        Ok(())
    }

    pub(super) fn uncount_connecting(&self, source: Host, count: usize) {
        let mut state = self.lock();
        if let Some(connecting) = state.connecting.get_mut(&source) {
            *connecting = connecting.saturating_sub(count);
            if *connecting == 0 {
                state.connecting.remove(&source);
            }
        }
    }

    // Refusals.

    pub(super) fn count_refusal(&self, transport: TransportId, refusal: Refusal) {
        let mut state = self.lock();
        let counts = &mut state.refusals[transport.0];
        match counts.iter_mut().find(|(other, _)| *other == refusal) {
            Some((_, count)) => *count += 1,
            None => counts.push((refusal, 1)),
        }
    }

    /// How many requests of a transport were rejected, by reason.
    pub(super) fn refusals(&self, transport: TransportId) -> Vec<(Refusal, u64)> {
        self.lock().refusals[transport.0].clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn least_loaded(&self, transport: TransportId) -> usize {
        let load = |shard: &usize| {
            let here = |entry: &&Entry| entry.transport == transport && entry.shard == *shard;
            self.entries.values().filter(here).count()
        };
        (0..self.shards_of[transport.0])
            .min_by_key(load)
            .unwrap_or(0)
    }

    fn forget_if_over(&mut self, paths_uuid: &[u8; 16]) {
        let over = |entry: &Entry| !entry.live && entry.on_their_way == 0;
        if self.entries.get(paths_uuid).is_some_and(over) {
            self.entries.remove(paths_uuid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 16] = [1; 16];
    const TWO: [u8; 16] = [2; 16];

    fn directory(sessions: usize) -> (Directory, TransportId) {
        let directory = Directory::new(DirectoryLimits {
            sessions,
            ..DirectoryLimits::default()
        });
        let transport = directory.add_transport(2);
        (directory, transport)
    }

    #[test]
    fn all_connections_of_a_session_reach_one_shard_and_sessions_spread() {
        let (directory, tcp) = directory(10);
        assert_eq!(directory.route(tcp, &ONE), Ok(0));
        assert_eq!(directory.route(tcp, &TWO), Ok(1));
        assert_eq!(directory.route(tcp, &ONE), Ok(0));
    }

    #[test]
    fn a_session_is_kept_while_requests_are_on_their_way() {
        let (directory, tcp) = directory(1);
        directory.route(tcp, &ONE).unwrap();
        directory.route(tcp, &ONE).unwrap();
        directory.decided(&ONE, false);
        assert_eq!(directory.route(tcp, &TWO), Err(Refusal::Sessions));
        directory.decided(&ONE, true);
        assert_eq!(directory.route(tcp, &TWO), Err(Refusal::Sessions));
        directory.ended(&ONE);
        assert!(directory.route(tcp, &TWO).is_ok());
    }

    /// Another shard would serve the session's next path as a session of its own.
    #[test]
    fn a_request_that_never_reaches_its_shard_does_not_end_the_session() {
        let (directory, tcp) = directory(10);
        let shard = directory.route(tcp, &ONE).unwrap();
        directory.decided(&ONE, true);
        directory.route(tcp, &ONE).unwrap();
        directory.withdrawn(&ONE);
        directory.route(tcp, &TWO).unwrap();
        directory.route(tcp, &[3; 16]).unwrap();
        assert_eq!(directory.route(tcp, &ONE), Ok(shard));
        directory.route(tcp, &[4; 16]).unwrap();
        directory.withdrawn(&[4; 16]);
        assert!(!directory.lock().entries.contains_key(&[4; 16]));
    }

    #[test]
    fn a_name_belongs_to_one_session_until_it_ends() {
        let (directory, tcp) = directory(10);
        let name = Name::new("clt1").unwrap();
        for uuid in [ONE, TWO] {
            directory.route(tcp, &uuid).unwrap();
            directory.decided(&uuid, true);
        }
        assert!(directory.claim_name(&name, &ONE));
        assert!(!directory.claim_name(&name, &TWO));
        directory.ended(&ONE);
        assert!(directory.claim_name(&name, &TWO));
    }

    #[test]
    fn a_session_does_not_span_transports() {
        let (directory, tcp) = directory(10);
        let rdma = directory.add_transport(1);
        directory.route(tcp, &ONE).unwrap();
        assert_eq!(directory.route(rdma, &ONE), Err(Refusal::OtherTransport));
    }
}
