//! The paths of a session: what administrators want of them, and what becomes of that.

use std::hash::{DefaultHasher, Hash, Hasher};

use rnbd_base::Errno;
use rnbd_fabric::{Addr, Fabric};
use rnbd_rtrs::clt::{PathError, PathIndex, PathState, ServerId};

use super::service::Service;
use super::{Home, Stage, uuid_from};
use crate::control::{ControlError, Reply};
use crate::message::{Message, Route};
use crate::notification::NotificationKind;
use crate::shard::Core;

/// A path on the home core of its session.
pub(super) struct HomePath {
    pub(super) route: Route,
    pub(super) service: Service,
    /// Reconnects, successful and failed, when the counters were last reset.
    pub(super) reconnects_before: (u64, u64),
    /// Waits for the path's first connection.
    adding: Option<Reply<u16>>,
    reconnecting: Vec<Reply<()>>,
    disconnecting: Vec<Reply<()>>,
    /// Waits for the path to be gone; with an empty list it goes all the same.
    removing: Option<Vec<Reply<()>>>,
}

/// By index.
#[derive(Default)]
pub(super) struct Paths {
    slots: Vec<Option<HomePath>>,
}

impl Paths {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn get(&self, path: PathIndex) -> Option<&HomePath> {
        self.slots.get(path.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, path: PathIndex) -> Option<&mut HomePath> {
        self.slots.get_mut(path.index())?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PathIndex, &HomePath)> {
        let slots = (0..).map(PathIndex).zip(&self.slots);
        slots.filter_map(|(index, path)| Some((index, path.as_ref()?)))
    }

    fn set(&mut self, index: PathIndex, path: HomePath) {
        let count = self.slots.len().max(index.index() + 1);
        self.slots.resize_with(count, || None);
        self.slots[index.index()] = Some(path);
    }

    fn remove(&mut self, index: PathIndex) -> Option<HomePath> {
        self.slots.get_mut(index.index())?.take()
    }
}

impl Home {
    pub(super) fn service(&self, path: PathIndex) -> Option<&Service> {
        self.paths.get(path).map(|path| &path.service)
    }

    pub(super) fn service_mut(&mut self, path: PathIndex) -> Option<&mut Service> {
        self.paths.get_mut(path).map(|path| &mut path.service)
    }

    // What administrators want.

    /// Connects a new path; `adding` is answered when it is up, or with why it is not.
    pub(super) fn add_path<F: Fabric>(
        &mut self,
        route: Route,
        adding: Option<Reply<u16>>,
        core: &mut Core<F>,
    ) -> Result<(), (ControlError, Option<Reply<u16>>)> {
        if let Some((index, _)) = self.paths.iter().find(|(_, path)| path.route == route) {
            let text = format!("path {} has these addresses", index.0);
            return Err((ControlError::new(Errno::EXIST, text), adding));
        }
        let (uuid, seed) = (uuid_from(core), core.random.u64(..));
        let Ok(index) = self.machine.add_path(uuid, server_at(&route.dst), seed) else {
            let text = format!("{} has as many paths as it can have", self.name);
            return Err((ControlError::new(Errno::NOSPC, text), adding));
        };
        let path = HomePath {
            route,
            service: Service::default(),
            reconnects_before: (0, 0),
            adding,
            reconnecting: Vec::new(),
            disconnecting: Vec::new(),
            removing: None,
        };
        self.paths.set(index, path);
        self.to_cores(core, |session| Message::Route(session, index, route));
        self.machine.start(index, core.now);
        Ok(())
    }

    pub(super) fn on_add_path<F: Fabric>(
        &mut self,
        route: Route,
        reply: Reply<u16>,
        core: &mut Core<F>,
    ) {
        if matches!(self.stage, Stage::Detaching(_) | Stage::Over) {
            return reply(Err(self.is_leaving()));
        }
        if let Err((error, Some(reply))) = self.add_path(route, Some(reply), core) {
            reply(Err(error));
        }
    }

    pub(super) fn remove_path<F: Fabric>(
        &mut self,
        index: PathIndex,
        reply: Reply<()>,
        core: &mut Core<F>,
    ) {
        let staying = self.paths.iter();
        let staying = staying.filter(|(_, path)| path.removing.is_none()).count();
        let Some(path) = self.paths.get_mut(index) else {
            return reply(Err(no_path(index)));
        };
        if path.removing.is_none() && staying <= 1 {
            let text = format!("path {} is the last one; detach the controller", index.0);
            return reply(Err(ControlError::new(Errno::BUSY, text)));
        }
        path.removing.get_or_insert_default().push(reply);
        match self.machine.path(index).map(|path| path.state) {
            Some(PathState::Closed) => self.bury(index, core),
            _ => self.machine.disconnect_path(index, core.now),
        }
    }

    pub(super) fn disconnect_path<F: Fabric>(
        &mut self,
        index: PathIndex,
        reply: Reply<()>,
        core: &mut Core<F>,
    ) {
        let Some(path) = self.paths.get_mut(index) else {
            return reply(Err(no_path(index)));
        };
        if self.machine.path(index).map(|path| path.state) == Some(PathState::Closed) {
            return reply(Ok(()));
        }
        path.disconnecting.push(reply);
        self.machine.disconnect_path(index, core.now);
    }

    pub(super) fn reconnect_path<F: Fabric>(
        &mut self,
        index: PathIndex,
        reply: Reply<()>,
        core: &mut Core<F>,
    ) {
        let Some(path) = self
            .paths
            .get_mut(index)
            .filter(|path| path.removing.is_none())
        else {
            return reply(Err(no_path(index)));
        };
        path.reconnecting.push(reply);
        self.machine.reconnect_path(index, core.now);
    }

    // What becomes of it.

    pub(super) fn on_path<F: Fabric>(
        &mut self,
        index: PathIndex,
        state: PathState,
        error: PathError,
        core: &mut Core<F>,
    ) {
        let ctx = format!("{}:{}:{}", self.name, index.0, state.as_str());
        core.notify(NotificationKind::PathState, ctx);
        match state {
            PathState::Connected => self.on_path_up(index, core),
            PathState::Closed => self.on_path_closed(index, error, core),
            _ => {}
        }
    }

    fn on_path_up<F: Fabric>(&mut self, index: PathIndex, core: &Core<F>) {
        let session = self.session;
        let Some(path) = self.paths.get_mut(index) else {
            return;
        };
        for reply in path.reconnecting.drain(..) {
            reply(Ok(()));
        }
        if let Some(reply) = path.adding.take() {
            core.directory.add_path(session, index.0, path.route);
            reply(Ok(index.0));
        }
    }

    /// A path that was to be removed, or that never was up, does not stay.
    fn on_path_closed<F: Fabric>(
        &mut self,
        index: PathIndex,
        error: PathError,
        core: &mut Core<F>,
    ) {
        let is_closed = self.machine.path(index).map(|path| path.state) == Some(PathState::Closed);
        let Some(path) = self.paths.get_mut(index) else {
            return;
        };
        for reply in path.disconnecting.drain(..) {
            reply(Ok(()));
        }
        if !is_closed {
            return;
        }
        for reply in path.reconnecting.drain(..) {
            reply(Err(ControlError::new(error.errno(), error)));
        }
        if let Some(reply) = path.adding.take() {
            path.removing.get_or_insert_default();
            let text = format!("{} port {}: {error}", path.route.dst, path.route.dst.port());
            reply(Err(ControlError::new(error.errno(), text)));
        }
        if path.removing.is_some() {
            self.bury(index, core);
        }
    }

    fn bury<F: Fabric>(&mut self, index: PathIndex, core: &Core<F>) {
        if !self.machine.remove_path(index, core.now) {
            return;
        }
        core.directory.remove_path(self.session, index.0);
        let path = self.paths.remove(index);
        for reply in path.and_then(|path| path.removing).into_iter().flatten() {
            reply(Ok(()));
        }
    }

    pub(super) fn on_reconnect_failed<F: Fabric>(
        &mut self,
        index: PathIndex,
        error: PathError,
        core: &Core<F>,
    ) {
        log::info!(
            "{}: reconnecting path {} failed: {error}",
            self.name,
            index.0
        );
        let ctx = format!("{}:{}", self.name, index.0);
        core.notify(NotificationKind::ReconnectFailed, ctx);
        if error == PathError::Rejected(Errno::BUSY) {
            return; // The old life is not over yet at the server: the next attempt may succeed.
        }
        if let Some(path) = self.paths.get_mut(index) {
            for reply in path.reconnecting.drain(..) {
                reply(Err(ControlError::new(error.errno(), error)));
            }
        }
    }
}

pub(super) fn no_path(path: PathIndex) -> ControlError {
    ControlError::new(Errno::NOENT, format!("there is no path {}", path.0))
}

fn server_at(addr: &Addr) -> ServerId {
    let mut hasher = DefaultHasher::new();
    addr.hash(&mut hasher);
    ServerId(hasher.finish())
}
