//! Opening and closing devices.

use std::collections::VecDeque;

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_rtrs::srv::{PathKey, SessionKey};
use rnbd_wire::rnbd::OpenRsp;

use super::device_io::{DeviceIo, Service};
use super::late_opens::OpenAttempt;
use super::notification::Notification;
use super::shard::{FOUND_MAX, TargetShard};
use crate::srv::{
    Closing, DeviceState, Grant, Lookup, OpenPath, OpenRequest, StartOpen, Ticket, describe,
};

/// A file below the search path is open as a bdev, or not.
#[derive(Debug)]
pub(super) struct Found {
    opening: Opening,
    result: Result<String, Errno>,
}

/// An OPEN request under way.
#[derive(Clone, Copy, Debug)]
struct Opening {
    attempt: OpenAttempt,
    session: SessionKey,
    /// The device's place in the session.
    place: usize,
}

impl<F: Fabric> TargetShard<F> {
    // Opening.

    /// Opens at once, or `None` if that takes a while. `EAGAIN` asks for another try.
    pub(super) fn try_open(&mut self, attempt: OpenAttempt) -> Result<Option<OpenRsp>, Errno> {
        let session = self.path_io(attempt.path).ok_or(Errno::NOTCONN)?.session;
        let client = self.client(session).ok_or(Errno::NOTCONN)?;
        let place = match client.session.start_open(&attempt.open)? {
            StartOpen::Existing(place) => return self.describe_again(session, place).map(Some),
            StartOpen::New(place) => place,
            StartOpen::Later => return Err(Errno::AGAIN),
        };
        let opening = Opening {
            attempt,
            session,
            place,
        };
        let looked_up = self.with_request(&opening, |exports, request| exports.open(request));
        let opened = looked_up.and_then(|lookup| match lookup {
            Lookup::Granted(grant) => self.attach(&opening, grant).map(Some),
            Lookup::Search(file) => self.search(opening, file).map(|()| None),
        });
        opened.inspect_err(|_| self.fail_open(&opening))
    }

    /// Asks for a file to be opened elsewhere; it may block.
    fn search(&mut self, opening: Opening, file: OpenPath) -> Result<(), Errno> {
        if self.pending_opens >= FOUND_MAX {
            return Err(Errno::AGAIN);
        }
        self.pending_opens += 1;
        let sender = self.found_sender.clone();
        let reply = move |result| {
            if sender.send(Found { opening, result }).is_err() {
                log::error!("an opened file was lost: more opens than were asked for");
            }
        };
        self.services.opener.open(file, Box::new(reply));
        Ok(())
    }

    pub(super) fn handle_found(&mut self, found: Found, now: Nanos) {
        self.pending_opens = self.pending_opens.saturating_sub(1);
        let Found { opening, result } = found;
        let attempt = opening.attempt;
        let opened = result.and_then(|bdev_name| self.attach_found(&opening, &bdev_name));
        match opened {
            Ok(rsp) => self.respond(attempt.path, attempt.msg_id, &rsp.to_bytes(), now),
            Err(errno) => {
                self.fail_open(&opening);
                self.postpone_or_fail(attempt, errno, now);
            }
        }
    }

    fn attach_found(&mut self, opening: &Opening, bdev_name: &str) -> Result<OpenRsp, Errno> {
        let granted = self
            .with_request(opening, |exports, request| {
                exports.grant_found(request, bdev_name)
            })
            .and_then(|grant| self.attach(opening, grant));
        if granted.is_err() && !self.is_open_somewhere(bdev_name) {
            self.services.opener.closed(bdev_name);
        }
        granted
    }

    fn is_open_somewhere(&self, bdev_name: &str) -> bool {
        let opens = self.services.exports.opens();
        opens.iter().any(|open| open.bdev_name == bdev_name)
    }

    fn with_request<T>(
        &self,
        opening: &Opening,
        ask: impl FnOnce(&crate::srv::Exports, &OpenRequest<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let client = self.clients.get(opening.session.index as usize);
        let client = client.and_then(Option::as_ref).ok_or(Errno::NOTCONN)?;
        let device = client.session.device(opening.place).ok_or(Errno::NOTCONN)?;
        let open = &opening.attempt.open;
        let request = OpenRequest {
            sessname: &client.sessname,
            client: client.client,
            dev_name: open.dev_name.to_str().map_err(|_| Errno::INVAL)?,
            mode: open.access_mode,
            device_id: device.id,
        };
        ask(&self.services.exports, &request)
    }

    /// Opens the bdev of a grant and a channel to it.
    fn attach(&mut self, opening: &Opening, grant: Grant) -> Result<OpenRsp, Errno> {
        let ticket = grant.ticket;
        let attached = self.try_attach(opening, grant);
        if attached.is_err() {
            let _kept_by_the_caller = self.services.exports.close(ticket);
        }
        attached
    }

    fn try_attach(&mut self, opening: &Opening, grant: Grant) -> Result<OpenRsp, Errno> {
        let write = !grant.view.read_only;
        let desc = self
            .services
            .registry
            .open(&grant.bdev_name, write)
            .map_err(|error| {
                log::info!("export {}: {error}", opening.attempt.open.dev_name);
                error.errno()
            })?;
        let depth = u32::from(self.config.rtrs.queue_depth);
        let channel = desc.open_channel(self.core, depth)?;
        let in_place = !self.caps.needs_local_keys && desc.bdev().memory().is_some();
        let max_io_bytes = self.config.rtrs.max_io_bytes();
        let client = self.client(opening.session).ok_or(Errno::NOTCONN)?;
        let id = client
            .session
            .device(opening.place)
            .ok_or(Errno::NOTCONN)?
            .id;
        let features = desc.bdev().features();
        let (rsp, view) = describe(id, desc.geometry(), &features, &grant.view, max_io_bytes)?;
        client
            .session
            .finish_open(opening.place, grant.ticket, view);
        let device = DeviceIo {
            desc,
            channel,
            waiting: VecDeque::new(),
            export: grant.view,
            bdev_name: grant.bdev_name,
            in_place,
            counters: super::counters::DeviceCounters::default(),
            waiters: Vec::new(),
            listed: false,
        };
        client.put_device(opening.place, device);
        let opened = Notification::DeviceOpened {
            sessname: client.sessname.clone(),
            device: opening.attempt.open.dev_name.to_string(),
        };
        self.services.sink.notify(opened);
        self.make_room(opening);
        Ok(rsp)
    }

    /// What is kept per device is made to fit here, so that it never grows while I/O runs.
    fn make_room(&mut self, opening: &Opening) {
        for io in self.paths.iter_mut().flatten() {
            if io.session == opening.session {
                io.make_room_for_device(opening.place);
            }
        }
        let clients = self.clients.iter().flatten();
        let devices: usize = clients.map(|client| client.devices.len()).sum();
        self.active
            .reserve(devices.saturating_sub(self.active.len()));
    }

    fn fail_open(&mut self, opening: &Opening) {
        if let Some(client) = self.client(opening.session) {
            client.session.fail_open(opening.place);
        }
    }

    /// The client opens what it has open: it learns the size of now.
    fn describe_again(&mut self, session: SessionKey, place: usize) -> Result<OpenRsp, Errno> {
        let max_io_bytes = self.config.rtrs.max_io_bytes();
        let client = self.client(session).ok_or(Errno::NOTCONN)?;
        let id = client.session.device(place).ok_or(Errno::NOTCONN)?.id;
        let device = client.device_mut(place).ok_or(Errno::NOTCONN)?;
        let features = device.desc.bdev().features();
        let geometry = device.desc.geometry();
        let (rsp, view) = describe(id, geometry, &features, &device.export, max_io_bytes)?;
        client.session.refresh(place, view);
        Ok(rsp)
    }

    /// Whether the device is larger than the client was told, in which case it may use all of it
    /// from now on: there is no message for a new size, so the client's administrator tells the
    /// client (protocol.md 9.10).
    pub(super) fn take_growth(&mut self, session: SessionKey, place: usize) -> bool {
        let blocks = |shard: &mut Self| {
            let device = shard.client(session)?.session.device(place)?;
            Some(device.view.num_blocks)
        };
        let before = blocks(self);
        self.describe_again(session, place).is_ok() && blocks(self) > before
    }

    // Closing.

    /// CLOSE is answered when the device's I/O has drained; also for an unknown id.
    pub(super) fn close_device(&mut self, key: PathKey, msg_id: u16, id: u32, now: Nanos) {
        let session = self.path_io(key).map(|io| io.session);
        let closing = match session.and_then(|session| self.client(session)) {
            Some(client) => close_and_wait(client, id, (key, msg_id)),
            None => Closing::Nothing,
        };
        match (closing, session) {
            (Closing::Device(place), Some(session)) => {
                self.end_device_if_drained(session, place, now);
            }
            _ => self.finish(key, msg_id, Ok(()), now),
        }
    }

    /// Ends a device that was closed or taken away, once nothing of it is in flight: neither I/O
    /// nor answers that send its memory in place.
    pub(super) fn end_device_if_drained(&mut self, key: SessionKey, place: usize, now: Nanos) {
        let service = self.client(key).map(|client| &client.session);
        let drained = service.is_some_and(|session| session.is_drained(place));
        if !drained || self.is_sending(key, place) {
            return;
        }
        let Some(client) = self.client(key) else {
            return;
        };
        let name = client
            .session
            .device(place)
            .map(|device| device.name.to_string());
        let (Some(ticket), Some(name)) = (client.session.take_drained(place), name) else {
            return;
        };
        let sessname = client.sessname.clone();
        let waiters = client.take_device(place).map(|device| device.waiters);
        self.forget_open(ticket, sessname, name);
        for (path, msg_id) in waiters.unwrap_or_default() {
            self.finish(path, msg_id, Ok(()), now);
        }
    }

    fn is_sending(&self, key: SessionKey, place: usize) -> bool {
        let mut paths = self.paths.iter().flatten();
        paths.any(|io| io.session == key && io.is_sending(place))
    }

    pub(super) fn forget_open(&self, ticket: Ticket, sessname: String, device: String) {
        if let Some(bdev_name) = self.services.exports.close(ticket) {
            self.services.opener.closed(&bdev_name);
        }
        let closed = Notification::DeviceClosed { sessname, device };
        self.services.sink.notify(closed);
    }

    /// Takes devices away from their clients. Returns how many were open.
    pub(super) fn revoke_devices(
        &mut self,
        which: impl Fn(&Service, usize) -> bool,
        now: Nanos,
    ) -> usize {
        let mut revoked = 0;
        for at in 0..self.clients.len() {
            let places = self.clients[at]
                .as_ref()
                .map_or(0, |client| client.devices.len());
            for place in 0..places {
                revoked += usize::from(self.revoke_device(at, place, &which, now));
            }
        }
        revoked
    }

    fn revoke_device(
        &mut self,
        at: usize,
        place: usize,
        which: impl Fn(&Service, usize) -> bool,
        now: Nanos,
    ) -> bool {
        let Some(client) = self.clients[at].as_mut() else {
            return false;
        };
        if !which(client, place) || !client.session.revoke(place) {
            return false;
        }
        let key = client.key;
        self.end_device_if_drained(key, place, now);
        true
    }

    /// Lets go of devices that were removed.
    pub(super) fn look_at_devices(&mut self, now: Nanos) {
        let removed = |client: &Service, place: usize| {
            let device = client.devices.get(place).and_then(Option::as_ref);
            device.is_some_and(|device| device.desc.is_removed())
        };
        self.revoke_devices(removed, now);
    }
}

fn close_and_wait(client: &mut Service, id: u32, waiter: (PathKey, u16)) -> Closing {
    let closing = client.session.close(id);
    if let Closing::Device(place) = closing {
        match client.device_mut(place) {
            Some(device) => device.waiters.push(waiter),
            None => return Closing::Nothing,
        }
    }
    closing
}

/// Whether a device is shown as taken away.
pub(super) fn is_force_closed(state: DeviceState) -> bool {
    matches!(state, DeviceState::Revoking | DeviceState::Reserved)
}
