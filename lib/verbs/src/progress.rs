//! What a poll does.

use std::os::fd::RawFd;

use rnbd_base::{Nanos, Progress};
use rnbd_fabric::{CloseReason, Completion, CompletionKind};

use crate::connection::{State, WorkToken};
use crate::fabric::VerbsFabric;
use crate::handshake::STOPPED;
use crate::sys::{AsyncEvent, DeviceKey, WcKind, WcStatus, WorkCompletion, is_any_readable};

/// How often the connection manager and the devices are asked for events while connections get up:
/// each time is a system call.
const LOOK_INTERVAL: Nanos = Nanos::from_micros(100);
/// And otherwise. What comes during a sleep ends it, and is asked for then if this long has passed.
const CALM_LOOK_INTERVAL: Nanos = Nanos::from_millis(1);
/// Events taken at once.
const EVENTS_MAX: usize = 64;

impl VerbsFabric {
    pub(crate) fn poll_once(&mut self, completions: &mut Vec<Completion>) -> Progress {
        self.stats.polls += 1;
        let mut did_work = self.take_mail();
        self.transmit();
        self.quieten();
        let already = completions.len();
        let ended_before = self.ending.len();
        let is_drained = self.take_completions(completions);
        did_work |= completions.len() > already;
        if is_drained {
            did_work |= self.close_ended(ended_before);
        }
        if self.now >= self.next_look {
            did_work |= self.take_events();
            self.next_look = self.now + self.look_interval();
        }
        self.expire();
        self.transmit();
        self.stats.idle_polls += u64::from(!did_work);
        if !did_work && self.devices.need_processor() {
            std::thread::yield_now();
        }
        Progress::from_work(did_work)
    }

    // Completions.

    /// Takes completions until there are none, which it returns, or no room for more.
    fn take_completions(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut empty_queues = 0;
        while completions.len() < completions.capacity() {
            if let Some(completion) = self.batch.next() {
                self.on_completion(&completion, completions);
                continue;
            }
            if empty_queues >= self.devices.cqs().len() {
                return true;
            }
            empty_queues = if self.fill_batch() {
                0
            } else {
                empty_queues + 1
            };
        }
        false
    }

    /// Asks the next queue; returns whether it had something.
    fn fill_batch(&mut self) -> bool {
        let cqs = self.devices.cqs();
        self.next_cq = (self.next_cq + 1) % cqs.len().max(1);
        let Some(cq) = cqs.get(self.next_cq) else {
            return false;
        };
        self.stats.recv_doorbells += 1;
        // A queue that cannot be polled belongs to a device that is going; its event comes.
        self.batch.fill(cq).unwrap_or(false)
    }

    fn on_completion(&mut self, done: &WorkCompletion, completions: &mut Vec<Completion>) {
        let token = WorkToken::from_bits(done.wr_id);
        if self.connection(token.conn).is_none() {
            return;
        }
        match done.status {
            WcStatus::Success => self.on_success(token, done.kind, completions),
            WcStatus::Flushed => self.end(token.conn, STOPPED),
            WcStatus::NoAnswer => self.close(token.conn, CloseReason::TimedOut),
            status if token.is_recv => self.close(token.conn, failed_receive(status)),
            status => self.close(token.conn, failed_send(status)),
        }
    }

    fn on_success(&mut self, token: WorkToken, kind: WcKind, completions: &mut Vec<Completion>) {
        let conn = token.conn;
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let told = if token.is_recv {
            connection.recvs.complete()
        } else {
            connection.sends.complete()
        };
        let is_first_message = token.is_recv && connection.state == State::Accepted;
        if let WcKind::Recv {
            invalidated: Some(rkey),
            ..
        } = kind
        {
            self.keys.note_invalidated(rkey);
        }
        if let Some(wr_id) = told {
            self.stats.completions += 1;
            let kind = completion_kind(kind);
            completions.push(Completion { conn, wr_id, kind });
        }
        if is_first_message {
            self.confirm(conn);
        }
        self.mark_dirty(conn);
    }

    /// Closes the first `count` connections that are known to be over: the completions that came
    /// before their end are delivered by now.
    fn close_ended(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some(&conn) = self.ending.first() else {
                break;
            };
            let reason = self.connection(conn).and_then(|it| it.ending);
            self.close(conn, reason.unwrap_or(CloseReason::Local));
        }
        count > 0
    }

    // Events.

    fn look_interval(&self) -> Nanos {
        if self.handshakes.is_empty() {
            CALM_LOOK_INTERVAL
        } else {
            LOOK_INTERVAL
        }
    }

    fn take_events(&mut self) -> bool {
        let devices = self.devices.iter().map(|(_, it)| it.device.async_fd());
        let fds = std::iter::once(self.channel.fd()).chain(devices);
        if !is_any_readable(fds, &mut self.polled) {
            return false;
        }
        let mut count = 0;
        while count < EVENTS_MAX
            && let Some(event) = self.channel.next()
        {
            self.handle_cm_event(event);
            count += 1;
        }
        self.take_async_events() || count > 0
    }

    fn take_async_events(&mut self) -> bool {
        let mut did_work = false;
        while let Some((key, event)) = self.next_async_event() {
            did_work = true;
            self.on_device_event(key, event);
        }
        did_work
    }

    fn next_async_event(&self) -> Option<(DeviceKey, AsyncEvent)> {
        let mut adapters = self.devices.iter();
        adapters.find_map(|(_, adapter)| {
            let event = adapter.device.next_async_event()?;
            Some((adapter.device.key(), event))
        })
    }

    pub(crate) fn on_stopped(&mut self, key: DeviceKey, number: u32, is_violation: bool) {
        let connections = self.connections.iter();
        let mut named = connections.filter(|(_, connection)| {
            let link = connection.link.as_ref();
            link.is_some_and(|link| link.qp.number() == number)
                && connection.cm.device_key() == Some(key)
        });
        let Some((conn, _)) = named.next() else {
            return;
        };
        let reason = if is_violation {
            STOPPED
        } else {
            CloseReason::Failed("the device stopped the queue pair")
        };
        drop(named);
        log::info!("verbs: {conn:?}: its device stopped queue pair {number}: {reason:?}");
        self.end(conn, reason);
    }

    // Sleep.

    pub(crate) fn go_to_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        if !self.dirty.is_empty() || !self.ending.is_empty() || !self.events.is_empty() {
            return false;
        }
        if !self.arm() || self.has_completions() || self.inbox.has_mail() {
            return false;
        }
        fds.push(self.inbox.fd());
        fds.push(self.channel.fd());
        fds.extend(self.devices.channels().map(|(channel, _)| channel.fd()));
        fds.extend(self.devices.iter().map(|(_, it)| it.device.async_fd()));
        true
    }

    fn arm(&mut self) -> bool {
        self.is_armed = true;
        self.devices.cqs().iter().all(|cq| cq.arm().is_ok())
    }

    /// Whether something completed before the queues were armed; it stays for the next poll.
    fn has_completions(&mut self) -> bool {
        let queues = self.devices.cqs().len();
        !self.batch.is_empty() || (0..queues).any(|_| self.fill_batch())
    }

    /// Takes what the completion channels told, after a sleep.
    fn quieten(&mut self) {
        if !self.is_armed {
            return;
        }
        self.is_armed = false;
        for (channel, queues) in self.devices.channels() {
            channel.quieten(queues);
        }
    }
}

fn failed_receive(status: WcStatus) -> CloseReason {
    match status {
        WcStatus::NotAllowed => CloseReason::Violation("an operation that its keys do not allow"),
        WcStatus::TooLong => CloseReason::Violation("a send longer than the receive"),
        other => {
            log::warn!("verbs: a receive failed: {other:?}");
            CloseReason::Failed("the device failed a receive")
        }
    }
}

fn failed_send(status: WcStatus) -> CloseReason {
    CloseReason::Failed(match status {
        WcStatus::NotAllowed => "the peer refused an operation",
        WcStatus::BindFailed => "a memory window could not be bound",
        other => {
            log::warn!("verbs: an operation failed: {other:?}");
            "the device failed an operation"
        }
    })
}

fn completion_kind(kind: WcKind) -> CompletionKind {
    match kind {
        WcKind::Sent => CompletionKind::Sent,
        WcKind::WriteImm(imm) => CompletionKind::WriteImm(imm),
        WcKind::Recv {
            bytes,
            imm,
            invalidated,
        } => CompletionKind::Recv {
            bytes,
            imm,
            invalidated,
        },
    }
}
