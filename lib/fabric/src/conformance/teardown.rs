//! Every connection ends once, and then it is over.

use super::Testbed;
use super::rig::{End, LIMITS, Link, Rig, linked, linked_at};
use crate::{Access, CloseReason, Fabric, FabricError, PostError, PrivateData, WorkRequest, WrOp};

const LEN: usize = 16_384;

/// Fills both directions with signalled writes, more than the peer has receives for.
fn load<T: Testbed>(rig: &mut Rig<T>, link: &Link) {
    for (from, to) in [(link.client, link.server), (link.server, link.client)] {
        let region = rig.region(to, LEN, Access::RemoteWrite);
        let source = rig.source(from, &[3; LEN]);
        rig.post_empty_recvs(to, 20);
        for n in 0..40 {
            let op = WrOp::WriteImm(region.remote(0), n);
            let wr = WorkRequest::new(op)
                .with_sge(source.sge(0, LEN))
                .signaled(u64::from(n));
            rig.post_wr(from, &wr);
        }
    }
}

fn close_under_load<T: Testbed>(pick: impl Fn(&Link) -> (End, End), turns: usize) {
    let (mut rig, link, addr) = linked_at::<T>();
    let other = rig.link(addr);
    load(&mut rig, &link);
    for _ in 0..turns {
        rig.turn();
    }
    let (near, far) = pick(&link);
    rig.fabric(near.node).disconnect(near.conn);
    assert_eq!(rig.closed(near.node, near.conn), CloseReason::Local);
    let reason = rig.closed(far.node, far.conn);
    assert_eq!(reason, CloseReason::PeerClosed);
    rig.settle();
    for node in 0..2 {
        while rig.completions_waiting(node) > 0 {
            rig.completion(node);
        }
    }
    rig.assert_alive(&other);
}

/// The side that connected leaves.
pub fn the_connector_closes_with_work_in_flight<T: Testbed>() {
    for turns in 0..4 {
        close_under_load::<T>(|link| (link.client, link.server), turns);
    }
}

/// The side that accepted leaves.
pub fn the_acceptor_closes_with_work_in_flight<T: Testbed>() {
    for turns in 0..4 {
        close_under_load::<T>(|link| (link.server, link.client), turns);
    }
}

/// Neither waits for the other.
pub fn both_sides_close_at_once<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    load(&mut rig, &link);
    rig.fabric(0).disconnect(link.client.conn);
    rig.fabric(1).disconnect(link.server.conn);
    rig.both_closed(&link);
    rig.settle();
}

/// Before and after `Closed`.
pub fn disconnecting_again_changes_nothing<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    rig.fabric(0).disconnect(link.client.conn);
    rig.fabric(0).disconnect(link.client.conn);
    rig.both_closed(&link);
    rig.fabric(0).disconnect(link.client.conn);
    rig.fabric(1).disconnect(link.server.conn);
    rig.settle();
    assert!(rig.is_silent(0) && rig.is_silent(1));
}

/// A request ends with its connector, answered or not.
pub fn a_connector_that_leaves_ends_the_request<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"");
    let request = rig.request(1);
    rig.fabric(0).disconnect(client);
    assert_eq!(rig.closed(0, client), CloseReason::Local);
    rig.closed(1, request.conn);
    rig.settle();
    assert!(rig.is_silent(0) && rig.is_silent(1));
}

/// Disconnecting a request ends both sides.
pub fn an_acceptor_may_disconnect_instead_of_rejecting<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"");
    let request = rig.request(1);
    rig.fabric(1).disconnect(request.conn);
    rig.closed(1, request.conn);
    rig.closed(0, client);
}

/// What took the place of a connection is not reached through the handle of the old one.
pub fn a_dead_handle_reaches_nothing<T: Testbed>() {
    let (mut rig, link, addr) = linked_at::<T>();
    rig.fabric(0).disconnect(link.client.conn);
    rig.both_closed(&link);
    let next = rig.link(addr);
    assert_ne!(next.client.conn, link.client.conn);
    for old in [link.client, link.server] {
        let fabric = rig.fabric(old.node);
        let wr = WorkRequest::new(WrOp::Send);
        assert_eq!(fabric.post(old.conn, &wr), Err(PostError::NotConnected));
        let refused = fabric.post_recv(old.conn, 0, None);
        assert_eq!(refused, Err(PostError::NotConnected));
        let refused = fabric.accept(old.conn, None, LIMITS, &PrivateData::EMPTY);
        assert!(matches!(refused, Err(FabricError::Stale(_))), "{refused:?}");
        assert!(fabric.detach(old.conn).is_err());
        fabric.reject(old.conn, &PrivateData::EMPTY);
        fabric.disconnect(old.conn);
    }
    rig.assert_alive(&next);
}

/// The peer of a process that ends learns of it.
pub fn a_fabric_that_goes_away_closes_its_connections<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    load(&mut rig, &link);
    rig.turn();
    rig.drop_last_node();
    let reason = rig.closed(0, link.client.conn);
    assert_eq!(reason, CloseReason::PeerClosed);
}

/// After `Closed` the memory is the owner's alone, even while it is still registered.
pub fn no_write_lands_after_closed<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    let source = rig.source(link.client, &[9; LEN]);
    rig.post_empty_recvs(link.server, 100);
    for n in 0..100 {
        let wr = WorkRequest::new(WrOp::WriteImm(region.remote(0), n));
        rig.post_wr(link.client, &wr.with_sge(source.sge(0, LEN)));
    }
    let now = rig.now();
    rig.fabric(0).flush(now);
    rig.fabric(1).disconnect(link.server.conn);
    rig.closed(1, link.server.conn);
    region.span.fill(0);
    rig.closed(0, link.client.conn);
    rig.settle();
    assert!(region.span.is_zeroed());
}
