//! The sessions of one core, and the decision about each connection request.

use rnbd_base::{Host, Nanos};
use rnbd_wire::{Name, rtrs::ConReq};

use super::config::{Config, ConfigError};
use super::fence::{Confirmation, Tokens};
use super::path::Path;
use super::refusal::Refusal;
use super::state::PathState;
use super::table::{Place, Table};
use super::violation::{CloseCause, Violation};

/// Names a path of a [`Sessions`] value; an old key never reaches a new path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey {
    /// Small and dense, so callers may index by it.
    pub index: u32,
    /// How often the index was taken.
    pub generation: u32,
}

/// Names a session of a [`Sessions`] value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Small and dense, so callers may index by it.
    pub index: u32,
    /// How often the index was taken.
    pub generation: u32,
}

/// The two ends of a path. Ports do not tell paths apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The client's address.
    pub client: Host,
    /// The server's address.
    pub server: Host,
}

/// One client's association.
#[derive(Debug)]
pub struct Session {
    paths_uuid: [u8; 16],
    name: Option<Name>,
    paths: Vec<PathKey>,
    created_at: Nanos,
}

/// What is to be done about a connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Accept, or reject.
    pub verdict: Result<Accepted, Refusal>,
    /// An older incarnation of the same path, to be closed now.
    pub superseded: Option<PathKey>,
}

/// A connection that joined a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The path.
    pub path: PathKey,
    /// Its index there.
    pub cid: u16,
    /// It is the path's first: chunks are to be made.
    pub new_path: bool,
}

/// A path that became CONNECTED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoAccepted {
    /// The session's name.
    pub name: Name,
    /// No other path of the session is up: the block service starts.
    pub first_path: bool,
}

/// What is left to do after a path is gone.
#[derive(Debug, Default)]
pub struct Removed {
    /// Its session, if that was its last path.
    pub session: Option<Session>,
    /// Somebody waits to hear of the path's end.
    pub confirmation: Option<Confirmation>,
}

/// All sessions of one core. Whatever finds or creates one runs here, on one owner, so that two
/// racing first connections cannot create two sessions (protocol.md 3.6).
#[derive(Debug)]
pub struct Sessions {
    config: Config,
    tokens: Tokens,
    sessions: Table<Session>,
    paths: Table<Path>,
}

impl Sessions {
    /// No sessions yet. The tokens are those of the process.
    ///
    /// # Errors
    /// The configuration has a value out of its range.
    pub fn new(config: Config, tokens: Tokens) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            tokens,
            sessions: Table::default(),
            paths: Table::default(),
        })
    }

    /// What is offered.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // Connection requests.

    /// Decides about a connection request. If it is accepted, the connection counts as up from
    /// now on; what makes the accept fail afterwards closes the path.
    pub fn handle_con_req(&mut self, private_data: &[u8], route: Route, now: Nanos) -> Decision {
        let request = match self.parse(private_data) {
            Ok(request) => request,
            Err(refusal) => return Decision::reject(refusal),
        };
        match self.find_session(&request.paths_uuid) {
            Some(session) => self.on_known_session(session, &request, route, now),
            None if request.first_conn => {
                let session = self.create_session(&request, now);
                self.create_path(session, &request, route, now)
            }
            None => Decision::reject(Refusal::UnknownSession),
        }
    }

    fn parse(&self, private_data: &[u8]) -> Result<ConReq, Refusal> {
        let request = ConReq::decode(private_data).map_err(|_| Refusal::Malformed)?;
        let nil = [0; 16];
        if request.sess_uuid == nil || request.paths_uuid == nil {
            return Err(Refusal::Malformed);
        }
        if request.cid_num > self.config.cons_per_path {
            return Err(Refusal::ConnectionsOfPath);
        }
        Ok(request)
    }

    fn on_known_session(
        &mut self,
        session: SessionKey,
        request: &ConReq,
        route: Route,
        now: Nanos,
    ) -> Decision {
        match self.find_path(session, |path| path.uuid() == request.sess_uuid) {
            Some(key) => self.on_known_path(key, request, now),
            None => self.add_path(session, request, route, now),
        }
    }

    /// A path is refused while its old incarnation drains. That fences the client's retries: they
    /// cannot overtake the I/O that was in flight when the old connections were lost.
    fn on_known_path(&mut self, key: PathKey, request: &ConReq, now: Nanos) -> Decision {
        let Some(path) = self.paths.get_mut(key.place()) else {
            return Decision::reject(Refusal::Conflict);
        };
        if is_newer(request.recon_cnt, path.recon_cnt()) {
            return Decision {
                verdict: Err(Refusal::Draining),
                superseded: Some(key),
            };
        }
        if request.recon_cnt != path.recon_cnt() || !path.may_join(request) {
            return Decision::reject(Refusal::Conflict);
        }
        path.join(request.cid, now);
        Decision::accept(key, request.cid, false)
    }

    fn add_path(
        &mut self,
        session: SessionKey,
        request: &ConReq,
        route: Route,
        now: Nanos,
    ) -> Decision {
        let paths = self.paths_of(session).count();
        if paths >= usize::from(self.config.paths_per_session) {
            return Decision::reject(Refusal::PathsOfSession);
        }
        if self
            .find_path(session, |path| path.route() == route)
            .is_some()
        {
            return Decision::reject(Refusal::AddressPair);
        }
        self.create_path(session, request, route, now)
    }

    fn create_session(&mut self, request: &ConReq, now: Nanos) -> SessionKey {
        let session = Session {
            paths_uuid: request.paths_uuid,
            name: None,
            paths: Vec::new(),
            created_at: now,
        };
        SessionKey::of(self.sessions.insert(session))
    }

    fn create_path(
        &mut self,
        session: SessionKey,
        request: &ConReq,
        route: Route,
        now: Nanos,
    ) -> Decision {
        let agreement = self.tokens.agree(self.config.extension, request.extension);
        let mut path = Path::new(session, request, route, self.config, agreement, now);
        path.join(request.cid, now);
        let key = PathKey::of(self.paths.insert(path));
        if let Some(session) = self.sessions.get_mut(session.place()) {
            session.paths.push(key);
        }
        Decision::accept(key, request.cid, true)
    }

    // Handshake.

    /// INFO_REQ arrived on connection 0 of a path. `claim` is asked whether the session may have
    /// the name, which must be unique among all sessions of the server; it is not asked again for
    /// a session that has its name.
    ///
    /// # Errors
    /// The violation; the caller closes the path.
    pub fn handle_info_req(
        &mut self,
        key: PathKey,
        message: &[u8],
        now: Nanos,
        claim: impl FnOnce(&Name, &[u8; 16]) -> bool,
    ) -> Result<InfoAccepted, Violation> {
        let path = self.path(key).ok_or(Violation::OutOfTurn)?;
        let name = path.check_info_req(message)?;
        let session_key = path.session();
        let session = self.sessions.get_mut(session_key.place());
        session
            .ok_or(Violation::OutOfTurn)?
            .take_name(name, claim)?;
        let up = |path: &Path| path.state() == PathState::Connected;
        let first_path = self.find_path(session_key, up).is_none();
        if let Some(path) = self.path_mut(key) {
            path.on_connected(now);
        }
        Ok(InfoAccepted { name, first_path })
    }

    // End.

    /// Starts to close a path; see [`Path::close`].
    pub fn close_path(&mut self, key: PathKey, cause: CloseCause) -> bool {
        self.path_mut(key).is_some_and(|path| path.close(cause))
    }

    /// Removes a path that has drained, and with its last path the session.
    ///
    /// # Panics
    /// If the path has not drained.
    pub fn remove_path(&mut self, key: PathKey) -> Removed {
        let Some(mut path) = self.paths.remove(key.place()) else {
            return Removed::default();
        };
        assert!(path.is_drained(), "a path with something left is kept");
        path.on_drained();
        Removed {
            session: self.remove_from_session(key, path.session().place()),
            confirmation: path.take_confirmation(),
        }
    }

    fn remove_from_session(&mut self, key: PathKey, place: Place) -> Option<Session> {
        let session = self.sessions.get_mut(place)?;
        session.paths.retain(|&other| other != key);
        if session.paths.is_empty() {
            return self.sessions.remove(place);
        }
        None
    }

    // Looks.

    /// A path.
    #[must_use]
    pub fn path(&self, key: PathKey) -> Option<&Path> {
        self.paths.get(key.place())
    }

    /// A path, to tell it something.
    pub fn path_mut(&mut self, key: PathKey) -> Option<&mut Path> {
        self.paths.get_mut(key.place())
    }

    /// A session.
    #[must_use]
    pub fn session(&self, key: SessionKey) -> Option<&Session> {
        self.sessions.get(key.place())
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = (SessionKey, &Session)> {
        self.sessions
            .iter()
            .map(|(place, session)| (SessionKey::of(place), session))
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = (PathKey, &Path)> {
        self.paths
            .iter()
            .map(|(place, path)| (PathKey::of(place), path))
    }

    /// When a path's timer is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.paths()
            .filter_map(|(_, path)| path.next_deadline())
            .min()
    }

    fn find_session(&self, paths_uuid: &[u8; 16]) -> Option<SessionKey> {
        self.iter()
            .find(|(_, session)| session.paths_uuid == *paths_uuid)
            .map(|(key, _)| key)
    }

    pub(super) fn find_path(
        &self,
        session: SessionKey,
        which: impl Fn(&Path) -> bool,
    ) -> Option<PathKey> {
        self.paths_of(session)
            .find(|&key| self.path(key).is_some_and(&which))
    }

    fn paths_of(&self, session: SessionKey) -> impl Iterator<Item = PathKey> {
        let session = self.session(session);
        session
            .into_iter()
            .flat_map(|session| session.paths.iter().copied())
    }
}

impl Session {
    fn take_name(
        &mut self,
        name: Name,
        claim: impl FnOnce(&Name, &[u8; 16]) -> bool,
    ) -> Result<(), Violation> {
        match self.name {
            Some(own) if own == name => Ok(()),
            Some(_) => Err(Violation::NameDiffers),
            None if claim(&name, &self.paths_uuid) => {
                self.name = Some(name);
                Ok(())
            }
            None => Err(Violation::NameTaken),
        }
    }

    /// Its identity.
    #[must_use]
    pub fn paths_uuid(&self) -> [u8; 16] {
        self.paths_uuid
    }

    /// Its name, once a path said it.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        self.name
    }

    /// Its paths.
    #[must_use]
    pub fn paths(&self) -> &[PathKey] {
        &self.paths
    }

    /// When its first connection came.
    #[must_use]
    pub fn created_at(&self) -> Nanos {
        self.created_at
    }
}

/// Whether an attempt counter is after another one; both wrap (protocol.md 7.6).
fn is_newer(attempt: u16, than: u16) -> bool {
    attempt.wrapping_sub(than).cast_signed() > 0
}

impl Decision {
    fn reject(refusal: Refusal) -> Self {
        Self {
            verdict: Err(refusal),
            superseded: None,
        }
    }

    fn accept(path: PathKey, cid: u16, new_path: bool) -> Self {
        Self {
            verdict: Ok(Accepted {
                path,
                cid,
                new_path,
            }),
            superseded: None,
        }
    }
}

impl PathKey {
    fn of((index, generation): Place) -> Self {
        Self { index, generation }
    }

    fn place(self) -> Place {
        (self.index, self.generation)
    }
}

impl SessionKey {
    fn of((index, generation): Place) -> Self {
        Self { index, generation }
    }

    fn place(self) -> Place {
        (self.index, self.generation)
    }
}
