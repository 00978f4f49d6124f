//! Windows: keys that open a part of a region and close again.
//!
//! A kind that a fabric does not have ([`Caps`](crate::Caps)) has nothing to show here.

use super::Testbed;
use super::rig::{End, Link, Region, Rig, linked, linked_at};
use crate::{
    Access, CompletionKind, Fabric, PostError, RemoteAddr, WindowId, WindowKind, WorkRequest, WrOp,
};

const LEN: usize = 4096;

/// The kinds that the fabric has.
fn kinds<T: Testbed>() -> Vec<WindowKind> {
    let caps = Rig::<T>::new(&[0]).fabric(0).caps();
    let mut kinds = Vec::new();
    if caps.domain_windows {
        kinds.push(WindowKind::Domain);
    }
    if caps.connection_windows {
        kinds.push(WindowKind::Connection);
    }
    kinds
}

/// A region of `end` that only windows open, and a window of `kind`, not bound.
fn unbound<T: Testbed>(rig: &mut Rig<T>, end: End, kind: WindowKind) -> (Region, WindowId) {
    let region = rig.region(end, LEN, Access::Local);
    let window = rig
        .fabric(end.node)
        .alloc_window(end.domain, kind)
        .expect("the fabric has this kind");
    (region, window)
}

/// Posts a bind of the window to `len` bytes from `offset` on; returns what a peer writes to once
/// it is executed.
fn post_bind<T: Testbed>(
    rig: &mut Rig<T>,
    end: End,
    region: &Region,
    window: WindowId,
    (offset, len): (usize, usize),
) -> RemoteAddr {
    let span = region.span.slice(offset, len).expect("the test's range");
    let rkey = rig
        .fabric(end.node)
        .bind(end.conn, window, region.key.mr, span)
        .expect("it can be bound");
    let addr = span.addr();
    RemoteAddr { addr, rkey }
}

/// The same, and waits until it is executed: the completion of what is posted behind it says so.
fn bind<T: Testbed>(
    rig: &mut Rig<T>,
    end: End,
    region: &Region,
    window: WindowId,
    range: (usize, usize),
) -> RemoteAddr {
    let remote = post_bind(rig, end, region, window, range);
    let behind = WorkRequest::new(WrOp::Write(RemoteAddr::NONE)).signaled(41);
    rig.post_wr(end, &behind);
    let completion = rig.completion_of(end);
    assert_eq!(
        (completion.wr_id, completion.kind),
        (41, CompletionKind::Sent)
    );
    remote
}

/// The client writes `len` bytes to `remote` and announces it.
fn write<T: Testbed>(rig: &mut Rig<T>, link: &Link, remote: RemoteAddr, len: usize) {
    rig.post_empty_recvs(link.server, 1);
    let from = rig.source(link.client, &vec![0xCD; len]);
    let wr = WorkRequest::new(WrOp::WriteImm(remote, 1)).with_sge(from.sge(0, len));
    rig.post_wr(link.client, &wr);
}

fn assert_open<T: Testbed>(rig: &mut Rig<T>, link: &Link, remote: RemoteAddr, len: usize) {
    write(rig, link, remote, len);
    assert_eq!(rig.write_imm(link.server), 1);
}

fn assert_shut<T: Testbed>(rig: &mut Rig<T>, link: &Link, region: &Region, remote: RemoteAddr) {
    region.span.fill(0);
    write(rig, link, remote, 1);
    rig.assert_violated(link);
    assert!(region.span.is_zeroed());
}

/// Posts the invalidation and waits for it.
fn invalidate<T: Testbed>(rig: &mut Rig<T>, end: End, window: WindowId) {
    let wr = WorkRequest::new(WrOp::Invalidate(window)).signaled(42);
    rig.post_wr(end, &wr);
    let completion = rig.completion_of(end);
    assert_eq!(
        (completion.wr_id, completion.kind),
        (42, CompletionKind::Sent)
    );
}

/// Its bytes, and not one beside them.
pub fn a_window_opens_exactly_what_it_is_bound_to<T: Testbed>() {
    for kind in kinds::<T>() {
        for outside in [-1_i64, 1] {
            let (mut rig, link) = linked::<T>();
            let (region, window) = unbound(&mut rig, link.server, kind);
            let remote = bind(&mut rig, link.server, &region, window, (1024, 512));
            assert_open(&mut rig, &link, remote, 512);
            assert_eq!(region.bytes(1024, 512), [0xCD; 512]);
            assert_eq!(region.bytes(0, 1024), [0; 1024]);
            let addr = remote.addr.wrapping_add_signed(outside);
            write(&mut rig, &link, RemoteAddr { addr, ..remote }, 512);
            rig.assert_violated(&link);
            assert_eq!(
                (region.bytes(1023, 1), region.bytes(1536, 1)),
                (vec![0], vec![0])
            );
        }
    }
}

/// A key may be told to the peer in the message posted right behind its bind.
pub fn a_bind_takes_effect_before_what_is_posted_after_it<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        rig.post_empty_recvs(link.client, 20);
        for _ in 0..20 {
            let remote = post_bind(&mut rig, link.server, &region, window, (0, LEN));
            rig.post(link.server, WrOp::WriteImm(RemoteAddr::NONE, remote.rkey));
            let told = rig.write_imm(link.client);
            assert_open(
                &mut rig,
                &link,
                RemoteAddr {
                    rkey: told,
                    ..remote
                },
                LEN,
            );
            invalidate(&mut rig, link.server, window);
        }
    }
}

/// A window that was never bound has no key that opens anything: the region's own does not.
pub fn an_unbound_window_opens_nothing<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, _window) = unbound(&mut rig, link.server, kind);
        let remote = region.remote(0);
        assert_shut(&mut rig, &link, &region, remote);
    }
}

/// Freeing a bound window closes it.
pub fn a_freed_window_opens_nothing<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        let remote = bind(&mut rig, link.server, &region, window, (0, LEN));
        assert_open(&mut rig, &link, remote, LEN);
        rig.fabric(1).free_window(window);
        assert_shut(&mut rig, &link, &region, remote);
    }
}

/// When the invalidation has completed, nothing follows through the old key.
pub fn an_invalidated_window_opens_nothing<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        let remote = bind(&mut rig, link.server, &region, window, (0, LEN));
        assert_open(&mut rig, &link, remote, LEN);
        invalidate(&mut rig, link.server, window);
        assert_shut(&mut rig, &link, &region, remote);
    }
}

/// Where invalidating is a matter of one side alone, it has taken effect when the call returns.
pub fn a_window_invalidated_at_once_opens_nothing<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        let remote = bind(&mut rig, link.server, &region, window, (0, LEN));
        assert_open(&mut rig, &link, remote, LEN);
        if rig.fabric(1).invalidate_now(window) {
            assert_shut(&mut rig, &link, &region, remote);
        } else {
            assert_open(&mut rig, &link, remote, LEN);
        }
    }
}

/// A key of an earlier bind stays closed after the next one, and is closed by it.
pub fn each_bind_has_its_own_key<T: Testbed>() {
    for (kind, is_open) in kinds::<T>()
        .into_iter()
        .flat_map(|it| [(it, false), (it, true)])
    {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        let old = bind(&mut rig, link.server, &region, window, (0, LEN));
        if !is_open {
            invalidate(&mut rig, link.server, window);
        }
        let new = bind(&mut rig, link.server, &region, window, (0, LEN));
        assert_ne!(old.rkey, new.rkey);
        assert_open(&mut rig, &link, new, LEN);
        assert_shut(&mut rig, &link, &region, old);
    }
}

/// A window does not outlive the registration that it is bound to.
pub fn deregistering_closes_the_windows<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        let remote = bind(&mut rig, link.server, &region, window, (0, LEN));
        rig.fabric(1).deregister(region.key.mr);
        assert_shut(&mut rig, &link, &region, remote);
    }
}

/// Whichever connection of the domain the peer uses.
pub fn a_domain_window_serves_every_connection<T: Testbed>() {
    if !kinds::<T>().contains(&WindowKind::Domain) {
        return;
    }
    let (mut rig, first, addr) = linked_at::<T>();
    let second = rig.link_beside(addr, &first);
    let stranger = rig.link(addr);
    let (region, window) = unbound(&mut rig, first.server, WindowKind::Domain);
    let remote = bind(&mut rig, first.server, &region, window, (0, LEN));
    assert_open(&mut rig, &first, remote, LEN);
    assert_open(&mut rig, &second, remote, LEN);
    invalidate(&mut rig, second.server, window);
    let remote = bind(&mut rig, second.server, &region, window, (0, LEN));
    assert_open(&mut rig, &first, remote, LEN);
    assert_shut(&mut rig, &stranger, &region, remote);
}

/// A window for one connection is shut to the others of the domain.
pub fn a_connection_window_serves_its_connection_only<T: Testbed>() {
    if !kinds::<T>().contains(&WindowKind::Connection) {
        return;
    }
    let (mut rig, first, addr) = linked_at::<T>();
    let second = rig.link_beside(addr, &first);
    let (region, window) = unbound(&mut rig, first.server, WindowKind::Connection);
    let remote = bind(&mut rig, first.server, &region, window, (0, LEN));
    assert_open(&mut rig, &first, remote, LEN);
    let span = region.span;
    let elsewhere = rig
        .fabric(1)
        .bind(second.server.conn, window, region.key.mr, span);
    assert_eq!(elsewhere, Err(PostError::NoWindow));
    assert_shut(&mut rig, &second, &region, remote);
    assert_open(&mut rig, &first, remote, LEN);
}

/// The peer closes the window that it was given, says so, and cannot use it any more.
pub fn a_send_with_invalidate_closes_the_window<T: Testbed>() {
    if !kinds::<T>().contains(&WindowKind::Connection) {
        return;
    }
    let (mut rig, link) = linked::<T>();
    let (region, window) = unbound(&mut rig, link.server, WindowKind::Connection);
    let remote = bind(&mut rig, link.server, &region, window, (0, LEN));
    assert_open(&mut rig, &link, remote, LEN);
    rig.post_empty_recvs(link.server, 1);
    rig.post(link.client, WrOp::SendInv(remote.rkey));
    let kind = rig.completion_of(link.server).kind;
    let expected = CompletionKind::Recv {
        bytes: 0,
        imm: None,
        invalidated: Some(remote.rkey),
    };
    assert_eq!(kind, expected);
    let again = bind(&mut rig, link.server, &region, window, (0, LEN));
    assert_ne!(again.rkey, remote.rkey);
    assert_open(&mut rig, &link, again, LEN);
    assert_shut(&mut rig, &link, &region, remote);
}

/// A region, a window of the domain, or nothing at all cannot be invalidated by a peer.
pub fn a_send_cannot_invalidate_what_is_not_a_window_here<T: Testbed>() {
    let mut targets = vec![None];
    if kinds::<T>().contains(&WindowKind::Domain) {
        targets.push(Some(WindowKind::Domain));
    }
    for target in targets {
        let (mut rig, link) = linked::<T>();
        let rkey = match target {
            None => rig.region(link.server, LEN, Access::RemoteWrite).key.rkey,
            Some(kind) => {
                let (region, window) = unbound(&mut rig, link.server, kind);
                bind(&mut rig, link.server, &region, window, (0, LEN)).rkey
            }
        };
        rig.post_empty_recvs(link.server, 1);
        rig.post(link.client, WrOp::SendInv(rkey));
        rig.assert_violated(&link);
    }
}

/// A window opens nothing that its region does not have.
pub fn a_bind_outside_the_region_is_refused<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        let other = rig.region(link.server, LEN, Access::Local);
        let refused = rig
            .fabric(1)
            .bind(link.server.conn, window, region.key.mr, other.span);
        assert!(refused.is_err(), "{refused:?}");
        rig.assert_alive(&link);
    }
}

/// A handle of a window that is gone is good for nothing.
pub fn a_freed_window_cannot_be_bound<T: Testbed>() {
    for kind in kinds::<T>() {
        let (mut rig, link) = linked::<T>();
        let (region, window) = unbound(&mut rig, link.server, kind);
        rig.fabric(1).free_window(window);
        let refused = rig
            .fabric(1)
            .bind(link.server.conn, window, region.key.mr, region.span);
        assert_eq!(refused, Err(PostError::NoWindow));
        let wr = WorkRequest::new(WrOp::Invalidate(window)).signaled(1);
        let refused = rig.fabric(1).post(link.server.conn, &wr);
        assert_eq!(refused, Err(PostError::NoWindow));
    }
}
