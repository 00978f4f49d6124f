//! The end of paths and sessions, and what waits for it.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_rtrs::srv::{CloseCause, PathKey, PathState, SessionKey, TimerAction, Violation};
use rnbd_wire::Imm;

use super::command::Reply;
use super::notification::Notification;
use super::path_io::PathIo;
use super::shard::TargetShard;

/// Somebody waits for paths to be gone.
pub(super) struct Wait {
    paths: Vec<PathKey>,
    deadline: Nanos,
    reply: Reply<Result<(), Errno>>,
}

impl<F: Fabric> TargetShard<F> {
    // Paths.

    pub(super) fn violate(&mut self, key: PathKey, violation: Violation, now: Nanos) {
        self.counters.violations += 1;
        self.close_path(key, CloseCause::Violation(violation));
        self.remove_if_drained(key, now);
    }

    /// Starts to close a path: all its connections go down, answers that wait are dropped.
    pub(super) fn close_path(&mut self, key: PathKey, cause: CloseCause) {
        let was_up = self
            .sessions
            .path(key)
            .map(|path| path.state() == PathState::Connected);
        if !self.sessions.close_path(key, cause) {
            return;
        }
        let Some((path, io, fabric)) = self.path_parts(key) else {
            return;
        };
        for cid in 0..io.cid_num() {
            if let Some(con) = io.con(cid) {
                fabric.disconnect(con.conn);
            }
            while let Some((msg_id, status)) = io.take_parked(cid) {
                let _dropped = path.answer(msg_id, status);
            }
        }
        let (session, name) = (io.session, io.name.clone());
        self.report_closing(session, name, cause, was_up == Some(true));
    }

    fn report_closing(&mut self, key: SessionKey, path: String, cause: CloseCause, was_up: bool) {
        let session = self.sessions.session(key);
        let name = session.and_then(|session| session.name());
        let sessname = name.map_or_else(|| "(not named yet)".to_owned(), |name| name.to_string());
        let level = if self.is_orderly(key, cause) {
            log::Level::Info
        } else {
            log::Level::Warn
        };
        log::log!(level, "session {sessname}: path {path} closes: {cause}");
        if was_up {
            self.services.sink.notify(Notification::PathDown {
                sessname,
                path,
                cause: cause.to_string(),
            });
        }
    }

    /// Whether somebody wanted the end of a path. A client that goes on purpose closes its devices
    /// first; one that died closes its connections only.
    fn is_orderly(&mut self, key: SessionKey, cause: CloseCause) -> bool {
        match cause {
            CloseCause::Administrative => true,
            CloseCause::ClientClosed => {
                let client = self.client(key);
                client.is_some_and(|client| client.devices.iter().all(Option::is_none))
            }
            _ => false,
        }
    }

    /// Removes a closing path once its connections are gone and its I/O has drained; with the
    /// last path that was up the devices close, with the last path the session ends.
    pub(super) fn remove_if_drained(&mut self, key: PathKey, now: Nanos) {
        let Some(path) = self.sessions.path(key).filter(|path| path.is_drained()) else {
            return;
        };
        let session = path.session();
        if let Some(io) = self
            .paths
            .get_mut(key.index as usize)
            .and_then(Option::take)
        {
            self.release(io);
        }
        let removed = self.sessions.remove_path(key);
        if self.has_service(session) {
            self.end_drained_devices(session, now);
        } else {
            self.end_service(session);
        }
        if let Some(session) = removed.session {
            self.services.directory.ended(&session.paths_uuid());
        }
        if let Some(confirmation) = removed.confirmation {
            self.confirm_fence(&confirmation, now);
        }
        self.end_waits(key, now);
    }

    fn release(&mut self, io: PathIo) {
        for &window in &io.windows {
            self.fabric.free_window(window);
        }
        for key in [io.chunk_key, io.message_key].into_iter().flatten() {
            self.fabric.deregister(key.mr);
        }
        if let Some(domain) = io.domain {
            self.fabric.close_domain(domain);
        }
        self.services.sink.dispose(Box::new(io.into_memory()));
    }

    /// Whether a path of the session is up, or was and still has I/O in flight.
    fn has_service(&self, key: SessionKey) -> bool {
        let paths = self
            .sessions
            .session(key)
            .map_or(&[][..], |session| session.paths());
        let mut paths = paths.iter().filter_map(|&path| self.sessions.path(path));
        paths.any(|path| matches!(path.state(), PathState::Connected | PathState::Closing))
    }

    /// What a path was still sending from a device's memory no longer keeps that device. A CLOSE
    /// of the path itself may wait for it, so this does not wait for the path.
    pub(super) fn end_drained_devices(&mut self, key: SessionKey, now: Nanos) {
        let places = self.client(key).map_or(0, |client| client.devices.len());
        for place in 0..places {
            self.end_device_if_drained(key, place, now);
        }
    }

    /// No I/O of the session is in flight: every device closes at once.
    fn end_service(&mut self, key: SessionKey) {
        if self.client(key).is_none() {
            return;
        }
        let client = self
            .clients
            .get_mut(key.index as usize)
            .and_then(Option::take);
        let Some(mut client) = client else {
            return;
        };
        client.session.close_all();
        for place in 0..client.devices.len() {
            let name = client
                .session
                .device(place)
                .map(|device| device.name.to_string());
            drop(client.take_device(place));
            if let (Some(ticket), Some(name)) = (client.session.take_drained(place), name) {
                self.forget_open(ticket, client.sessname.clone(), name);
            }
        }
        log::info!("session {} is gone", client.sessname);
        self.services
            .sink
            .notify(Notification::SessionDisconnected {
                sessname: client.sessname,
            });
    }

    // Time.

    pub(super) fn handle_timers(&mut self, now: Nanos) {
        for at in 0..self.paths.len() {
            if let Some(key) = self.paths[at].as_ref().map(|io| io.key) {
                self.handle_path_timer(key, now);
            }
        }
        self.expire_waits(now);
        self.retry_opens(now);
        let waits = self.waits.iter().map(|wait| wait.deadline);
        let opens = self.late_opens.iter().map(|late| late.retry_at);
        let paths = self.sessions.next_deadline();
        self.timer_at = waits.chain(opens).chain(paths).min().unwrap_or(Nanos::MAX);
    }

    fn handle_path_timer(&mut self, key: PathKey, now: Nanos) {
        let Some(path) = self.sessions.path_mut(key) else {
            return;
        };
        let missed = path.counters().hb_missed;
        let action = path.handle_timer(now);
        if path.counters().hb_missed > missed {
            self.report_missed(key);
        }
        match action {
            TimerAction::Nothing => (),
            TimerAction::SendHeartbeat => self.signal(key, Imm::HEARTBEAT, now),
            TimerAction::Close(cause) => {
                self.close_path(key, cause);
                self.remove_if_drained(key, now);
            }
        }
    }

    fn report_missed(&mut self, key: PathKey) {
        let Some(io) = self.path_io(key) else {
            return;
        };
        let (path, session) = (io.name.clone(), io.session);
        let Some(client) = self.client(session) else {
            return;
        };
        let sessname = client.sessname.clone();
        self.services
            .sink
            .notify(Notification::HeartbeatMissed { sessname, path });
    }

    // Waits.

    /// Closes paths and replies when they are gone; at once without a deadline.
    pub(super) fn close_paths(
        &mut self,
        paths: Vec<PathKey>,
        deadline: Option<Nanos>,
        reply: Reply<Result<(), Errno>>,
        now: Nanos,
    ) {
        for &path in &paths {
            self.close_path(path, CloseCause::Administrative);
            self.remove_if_drained(path, now);
        }
        let left = |path: &PathKey| self.sessions.path(*path).is_some();
        let paths: Vec<_> = paths.into_iter().filter(left).collect();
        match deadline {
            Some(deadline) if !paths.is_empty() => {
                self.timer_at = self.timer_at.min(deadline);
                self.waits.push(Wait {
                    paths,
                    deadline,
                    reply,
                });
            }
            _ => reply(Ok(())),
        }
    }

    fn end_waits(&mut self, gone: PathKey, now: Nanos) {
        for wait in &mut self.waits {
            wait.paths.retain(|&path| path != gone);
        }
        self.reply_to_waits(|wait| wait.paths.is_empty(), Ok(()));
        self.expire_waits(now);
    }

    fn expire_waits(&mut self, now: Nanos) {
        self.reply_to_waits(|wait| now >= wait.deadline, Err(Errno::TIMEDOUT));
    }

    fn reply_to_waits(&mut self, which: impl Fn(&Wait) -> bool, result: Result<(), Errno>) {
        while let Some(at) = self.waits.iter().position(&which) {
            (self.waits.remove(at).reply)(result);
        }
    }
}
