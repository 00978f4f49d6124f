//! What a poll does: send, receive, and find out where something arrived.

use std::os::fd::RawFd;

use rnbd_base::{Nanos, Progress};

use crate::tcp::connection::{Connection, State, Watch};
use crate::tcp::fabric::TcpFabric;
use crate::tcp::inbound::{Delivery, Taken, close_reason};
use crate::tcp::socket;
use crate::tcp::watcher::Source;
use crate::types::{CloseReason, Completion, ConnId};

/// Connections that are asked in each poll; beyond that epoll is cheaper.
const HOT_MAX: usize = 8;
/// Receives in a row on one connection, as long as each gets all it asked for. What arrived in one
/// burst is then answered in one burst.
const RECEIVES_MAX: u32 = 4;
/// Polls in a row that find nothing, after which a connection is left to epoll: a few
/// milliseconds.
const COOL_AFTER: u32 = 8192;
/// While there are hot connections, epoll is asked in every n-th poll.
const LOOK_EVERY: u64 = 16;

impl TcpFabric {
    pub(super) fn poll_once(&mut self, now: Nanos, completions: &mut Vec<Completion>) -> Progress {
        let delivered_before = completions.len();
        let sent = self.transmit();
        self.deliver_sent(completions);
        let mut received = self.poll_hot(completions);
        if self.hot.is_empty() || self.stats.polls.is_multiple_of(LOOK_EVERY) {
            received |= self.look(now, completions);
        }
        self.expire(now);
        let delivered = completions.len() - delivered_before;
        let progress = Progress::from_work(sent || received || !self.events.is_empty());
        self.stats.polls += 1;
        self.stats.idle_polls += u64::from(!progress.is_busy());
        self.stats.completions += delivered as u64;
        progress
    }

    /// Hands what was posted to the kernel. Returns whether it took anything.
    pub(super) fn transmit(&mut self) -> bool {
        let mut any = false;
        for &index in &self.dirty {
            let Some(connection) = self.connections.at_mut(index) else {
                continue;
            };
            if !connection.outbound.has_unsent() || connection.send_failure.is_some() {
                continue;
            }
            self.stats.send_doorbells += 1;
            match connection.outbound.transmit(&connection.socket) {
                Ok(went) => any |= went,
                Err(errno) => connection.send_failure = Some(errno),
            }
        }
        any
    }

    /// Reports what was sent, and strikes connections off the list that have nothing more to do.
    fn deliver_sent(&mut self, completions: &mut Vec<Completion>) {
        let connections = &mut self.connections;
        self.dirty.retain(|&index| {
            let Some(connection) = connections.at_mut(index) else {
                return false;
            };
            connection.outbound.deliver(connection.id, completions);
            connection.is_dirty =
                !connection.outbound.is_empty() && connection.send_failure.is_none();
            connection.is_dirty
        });
    }

    fn poll_hot(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut any = false;
        let mut position = 0;
        while let Some(&index) = self.hot.get(position) {
            any |= self.receive(index, completions);
            // A connection that closed or cooled has left the list.
            position += usize::from(self.hot.get(position) == Some(&index));
        }
        any
    }

    /// Takes what has arrived on a connection that is up, a bounded amount. Returns whether there
    /// was anything.
    fn receive(&mut self, index: u32, completions: &mut Vec<Completion>) -> bool {
        let mut any = false;
        for _ in 0..RECEIVES_MAX {
            let taken = self.receive_once(index, completions);
            any |= taken != Taken::Nothing;
            if taken != Taken::All {
                break;
            }
        }
        any
    }

    fn receive_once(&mut self, index: u32, completions: &mut Vec<Completion>) -> Taken {
        let Some(connection) = self.connections.at_mut(index) else {
            return Taken::Nothing;
        };
        let (conn, Some(domain)) = (connection.id, connection.domain) else {
            return Taken::Nothing;
        };
        let mut delivery = Delivery {
            conn,
            domain,
            keys: &mut self.keys,
            completions,
        };
        self.stats.recv_doorbells += 1;
        let inbound = &mut connection.inbound;
        match inbound.receive(&connection.socket, &mut self.staging, &mut delivery) {
            Ok(Taken::Nothing) => self.on_nothing(conn),
            Ok(taken) => {
                connection.idle_polls = 0;
                return taken;
            }
            Err(broken) => self.close(conn, broken.into()),
        }
        // A connection that closed has something to say.
        Taken::some_if(self.connection(conn).is_none())
    }

    fn on_nothing(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        connection.idle_polls += 1;
        if let Some(errno) = connection.send_failure {
            self.close(conn, close_reason(errno));
        } else if connection.idle_polls > COOL_AFTER && connection.watch == Watch::Hot {
            self.watch(conn);
        }
    }

    /// Asks epoll.
    fn look(&mut self, now: Nanos, completions: &mut Vec<Completion>) -> bool {
        let ready = self.watcher.look();
        for nth in 0..ready {
            match self.watcher.ready(nth) {
                Source::Listener(listener) => self.take_connections(listener, now),
                Source::Connection(conn) => self.on_ready(conn, now, completions),
            }
        }
        ready > 0
    }

    fn on_ready(&mut self, conn: ConnId, now: Nanos, completions: &mut Vec<Completion>) {
        let Some(connection) = self.connection(conn) else {
            return;
        };
        match (connection.state, connection.watch) {
            (State::Up, Watch::Hot) => {}
            (State::Up, _) => self.on_cold_ready(conn, completions),
            _ => self.step_handshake(conn, now),
        }
    }

    fn on_cold_ready(&mut self, conn: ConnId, completions: &mut Vec<Completion>) {
        let received = self.receive(conn.index, completions);
        let Some(connection) = self.connection(conn) else {
            return;
        };
        if received && self.hot.len() < HOT_MAX || connection.inbound.has_backlog() {
            self.warm(conn.index);
        } else if !received {
            self.on_false_alarm(conn);
        }
    }

    /// Epoll found something that was not a frame: room to send, which nobody waits for while
    /// awake, or the failure of a connection that is not read for want of receives.
    fn on_false_alarm(&mut self, conn: ConnId) {
        let failure = self
            .connection(conn)
            .filter(|connection| connection.inbound.is_starved())
            .and_then(|connection| socket::take_error(&connection.socket).err());
        match failure {
            Some(errno) => self.close(conn, close_reason(errno)),
            None => self.watch(conn),
        }
    }

    /// Has a connection asked in each poll.
    pub(super) fn warm(&mut self, index: u32) {
        let Some(connection) = self.connections.at_mut(index) else {
            return;
        };
        if let Watch::Cold(_) = connection.watch {
            self.watcher.remove(&connection.socket);
        }
        if connection.watch != Watch::Hot {
            connection.watch = Watch::Hot;
            connection.idle_polls = 0;
            self.hot.push(index);
        }
    }

    /// Leaves a connection to epoll, or brings up to date what epoll looks for.
    pub(super) fn watch(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn.index, conn.generation) else {
            return;
        };
        let interest = connection.interest();
        let (socket, source) = (&connection.socket, Source::Connection(conn));
        let watched = match connection.watch {
            Watch::Cold(current) if current == interest => return,
            Watch::Cold(_) => self.watcher.modify(socket, source, interest),
            Watch::Hot | Watch::None => self.watcher.add(socket, source, interest),
        };
        if connection.watch == Watch::Hot {
            self.hot.retain(|&index| index != conn.index);
        }
        connection.watch = Watch::Cold(interest);
        if watched.is_err() {
            self.close(
                conn,
                CloseReason::Failed("epoll cannot take the connection"),
            );
        }
    }

    pub(super) fn go_to_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.transmit();
        if !self.events.is_empty() || self.has_work_at_hand() {
            return false;
        }
        for index in self.connections.indices() {
            if let Some(connection) = self.connections.at_mut(index) {
                let conn = connection.id;
                self.watch(conn);
            }
        }
        fds.push(self.watcher.raw_fd());
        self.events.is_empty()
    }

    /// Whether there is work that no descriptor announces.
    fn has_work_at_hand(&self) -> bool {
        let mut connections = self.connections.iter().map(|(_, connection)| connection);
        connections.any(|connection: &Connection| {
            connection.inbound.has_backlog()
                || connection.outbound.has_unreported()
                || connection.send_failure.is_some()
        })
    }
}
