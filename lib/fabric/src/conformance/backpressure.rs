//! A peer that is slow, or a caller that asks for too much.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Testbed;
use super::rig::{LIMITS, Rig, linked, linked_at};
use crate::{Access, CompletionKind, Fabric, PostError, RemoteAddr, WorkRequest, WrOp};

/// A message waits for its receive as long as it takes.
pub fn nothing_is_lost_while_the_peer_has_no_receives<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let cell = rig.region(link.server, 4096, Access::RemoteWrite);
    let from = rig.source(link.client, &[7; 4096]);
    for n in 0..LIMITS.send_wrs {
        let op = WrOp::WriteImm(cell.remote(0), n);
        rig.post_wr(
            link.client,
            &WorkRequest::new(op).with_sge(from.sge(0, 4096)),
        );
    }
    rig.settle();
    assert_eq!(rig.completions_waiting(1), 0);
    for n in 0..LIMITS.send_wrs {
        rig.post_empty_recvs(link.server, 1);
        assert_eq!(rig.write_imm(link.server), n);
        assert_eq!(rig.completions_waiting(1), 0, "one receive, one message");
    }
}

/// Waiting for receives holds up one connection only.
pub fn a_stalled_connection_does_not_stall_another<T: Testbed>() {
    let (mut rig, stalled, addr) = linked_at::<T>();
    let other = rig.link(addr);
    for n in 0..LIMITS.send_wrs {
        rig.post(stalled.client, WrOp::WriteImm(RemoteAddr::NONE, n));
    }
    rig.settle();
    rig.assert_alive(&other);
    rig.post_empty_recvs(stalled.server, 1);
    assert_eq!(rig.write_imm(stalled.server), 0);
}

/// A vector with little room gets the completions over several polls.
pub fn a_full_completion_vector_does_not_grow_or_lose<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    rig.node(1).batch = 3;
    rig.post_empty_recvs(link.server, 100);
    for n in 0..100 {
        rig.post(link.client, WrOp::WriteImm(RemoteAddr::NONE, n));
    }
    for n in 0..100 {
        assert_eq!(rig.write_imm(link.server), n);
    }
    rig.node(0).batch = 1;
    rig.post_empty_recvs(link.server, 10);
    for n in 0..10 {
        let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 0)).signaled(n);
        rig.post_wr(link.client, &wr);
    }
    for n in 0..10 {
        let completion = rig.completion_of(link.client);
        assert_eq!(
            (completion.kind, completion.wr_id),
            (CompletionKind::Sent, n)
        );
    }
}

/// The queues have the sizes that were agreed, and the refused post leaves no trace.
pub fn posts_beyond_the_limit_are_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    rig.post_empty_recvs(link.server, LIMITS.recv_wrs);
    let refused = rig.fabric(1).post_recv(link.server.conn, 0, None);
    assert_eq!(refused, Err(PostError::OverLimit));
    for n in 0..LIMITS.send_wrs {
        let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, n));
        let wr = if n + 1 == LIMITS.send_wrs {
            wr.signaled(1)
        } else {
            wr
        };
        rig.post_wr(link.client, &wr);
    }
    let extra = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 999));
    let refused = rig.fabric(0).post(link.client.conn, &extra);
    assert_eq!(refused, Err(PostError::OverLimit));
    for n in 0..LIMITS.send_wrs {
        assert_eq!(rig.write_imm(link.server), n);
    }
    assert_eq!(rig.completion_of(link.client).wr_id, 1);
    rig.assert_alive(&link);
}

/// After `prepare_sleep` a message makes one of the descriptors readable. Fabrics that live
/// without descriptors have nothing to show here.
pub fn descriptors_announce_a_message<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    rig.post_empty_recvs(link.server, 1);
    rig.settle();
    let Some(fds) = asleep(&mut rig, 1) else {
        return;
    };
    rig.post(link.client, WrOp::WriteImm(RemoteAddr::NONE, 77));
    let now = rig.now();
    rig.fabric(0).flush(now);
    assert!(becomes_readable(&fds), "nothing announces the message");
    assert_eq!(rig.write_imm(link.server), 77);
}

/// Polls until the fabric agrees to sleep; `None` if it does so without any descriptor.
fn asleep<T: Testbed>(rig: &mut Rig<T>, node: usize) -> Option<Vec<RawFd>> {
    let mut fds = Vec::new();
    rig.until("sleep", |rig| {
        fds.clear();
        rig.fabric(node).prepare_sleep(&mut fds).then_some(())
    });
    (!fds.is_empty()).then_some(fds)
}

fn becomes_readable(fds: &[RawFd]) -> bool {
    let mut polled: Vec<_> = fds.iter().map(|&fd| poll_fd(fd)).collect();
    let patience = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&patience)).is_ok_and(|ready| ready > 0)
}

fn poll_fd(fd: RawFd) -> PollFd<'static> {
    // SAFETY: the fabric that named the descriptor keeps it open until it is polled again, which
    // the test does only after the result is no longer used.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}
