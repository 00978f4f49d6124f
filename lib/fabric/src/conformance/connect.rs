//! Connecting, accepting, rejecting, handing over.

use rnbd_base::{Gid, Host, Nanos};

use super::Testbed;
use super::rig::{End, LIMITS, Link, Rig, connect_params, linked, linked_at};
use crate::{
    Addr, CloseReason, ConnectParams, DomainId, Fabric, FabricError, ListenOptions, PostError,
    PrivateData, RemoteAddr, WorkRequest, WrOp,
};

fn private(bytes: &[u8]) -> PrivateData {
    PrivateData::new(bytes).expect("short enough")
}

/// What connect and accept carry arrives, whole.
pub fn connecting_and_accepting_carry_private_data<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"hello");
    let request = rig.request(1);
    assert_eq!(&request.private_data.as_bytes()[..5], b"hello");
    rig.fabric(1)
        .accept(request.conn, None, LIMITS, &private(b"welcome"))
        .expect("the request waits");
    let (_, answer) = rig.connected(0, client);
    assert_eq!(&answer.as_bytes()[..7], b"welcome");
}

/// Connection managers may pad, but they never cut.
pub fn private_data_of_every_length_arrives<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    for len in [0, 1, 56] {
        let sent: Vec<u8> = (1..=len).collect();
        let client = rig.connect(0, addr, &sent);
        let request = rig.request(1);
        assert!(request.private_data.as_bytes().starts_with(&sent));
        let answer = [0xEE; PrivateData::MAX];
        rig.fabric(1)
            .accept(request.conn, None, LIMITS, &private(&answer))
            .expect("the request waits");
        let (_, got) = rig.connected(0, client);
        assert_eq!(got.as_bytes(), answer);
    }
}

/// A reject says why.
pub fn a_reject_carries_private_data<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"please");
    let request = rig.request(1);
    rig.fabric(1).reject(request.conn, &private(b"no"));
    match rig.closed(0, client) {
        CloseReason::Rejected(why) => assert_eq!(&why.as_bytes()[..2], b"no"),
        other => panic!("{other:?}"),
    }
    rig.closed(1, request.conn);
}

/// A host without a listener says so.
pub fn nobody_listening_refuses<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0]);
    let addr = rig.bed().unused_addr();
    let client = rig.connect(0, addr, b"");
    assert_eq!(rig.closed(0, client), CloseReason::Refused);
}

/// An attempt without an answer ends when it was told to.
pub fn no_answer_times_out<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0]);
    let params = ConnectParams {
        timeout_ns: Nanos::from_millis(50).0,
        ..connect_params(rig.bed().silent_addr(), b"")
    };
    let started = rig.now();
    let client = rig.connect_with(0, &params);
    assert_eq!(rig.closed(0, client), CloseReason::TimedOut);
    assert!(rig.now().since(started) >= Nanos::from_millis(50));
}

/// The answer to each request reaches its connector.
pub fn requests_may_be_answered_in_any_order<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let clients: Vec<_> = (0..8).map(|n| rig.connect(0, addr, &[n])).collect();
    let mut requests: Vec<_> = (0..8).map(|_| rig.request(1)).collect();
    requests.reverse();
    for request in &requests {
        let answer = private(&[100 + request.private_data.as_bytes()[0]]);
        rig.fabric(1)
            .accept(request.conn, None, LIMITS, &answer)
            .expect("the request waits");
    }
    for (n, client) in (0..).zip(clients) {
        let (_, answer) = rig.connected(0, client);
        assert_eq!(answer.as_bytes()[0], 100 + n);
    }
}

/// A receive posted before the accept takes the peer's first message.
pub fn receives_may_be_posted_before_accepting<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"");
    let request = rig.request(1);
    rig.fabric(1)
        .post_empty_recvs(request.conn, 1)
        .expect("receives may be posted");
    rig.accept(1, request.conn, None);
    rig.connected(0, client);
    let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 9));
    rig.fabric(0).post(client, &wr).expect("it is up");
    assert_eq!(rig.completion(1).conn, request.conn);
}

/// The connection is up for the acceptor when accept returns.
pub fn the_acceptor_may_send_at_once<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"");
    let request = rig.request(1);
    rig.accept(1, request.conn, None);
    let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 5));
    rig.fabric(1).post(request.conn, &wr).expect("it is up");
    rig.connected(0, client);
    rig.fabric(0).post_empty_recvs(client, 1).expect("it is up");
    assert_eq!(rig.completion(0).conn, client);
}

/// Neither side may post before the connection is up.
pub fn work_before_the_connection_is_up_is_refused<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let wr = WorkRequest::new(WrOp::Send);
    let client = rig.connect(0, addr, b"");
    assert_eq!(
        rig.fabric(0).post(client, &wr),
        Err(PostError::NotConnected)
    );
    let request = rig.request(1);
    let refused = rig.fabric(1).post(request.conn, &wr);
    assert_eq!(refused, Err(PostError::NotConnected));
}

/// Two listeners cannot share an address, even in one process.
pub fn a_taken_address_cannot_be_listened_on<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[1, 1]);
    let (_, addr) = rig.listen(0, 1);
    let refused = rig.fabric(1).listen(&addr, &ListenOptions::default());
    assert!(
        matches!(refused, Err(FabricError::AddrInUse(_))),
        "{refused:?}"
    );
}

/// An address of `InfiniBand` itself is refused by who cannot have any, and by who has not that one.
pub fn a_gid_that_no_device_has_is_refused<T: Testbed>() {
    const NOBODYS: [u8; 16] = *b"\xfe\x80\0\0\0\0\0\0nobody's";
    let mut rig = Rig::<T>::new(&[0, 1]);
    let nowhere = Addr::new(Host::Gid(Gid::from_bytes(NOBODYS)), 1234);
    let refused = rig.fabric(1).listen(&nowhere, &ListenOptions::default());
    let unsupported = matches!(refused, Err(FabricError::Unsupported(_)));
    assert!(
        unsupported || matches!(refused, Err(FabricError::NoInfiniband(_))),
        "{refused:?}"
    );
    let (params, now) = (connect_params(nowhere, b""), rig.now());
    match rig.fabric(0).connect(&params, now) {
        Err(error) => assert!(unsupported && matches!(error, FabricError::Unsupported(_))),
        Ok(conn) => {
            let reason = rig.closed(0, conn);
            assert!(!unsupported && reason != CloseReason::Local, "{reason:?}");
        }
    }
    let (_, addr) = rig.listen(1, 1);
    let params = ConnectParams {
        src: Some(nowhere),
        ..connect_params(addr, b"")
    };
    if let Ok(conn) = rig.fabric(0).connect(&params, now) {
        assert_eq!(rig.closed(0, conn), CloseReason::Unreachable);
    }
}

/// Stopping to listen ends the listener and nothing else.
pub fn after_unlisten_nobody_listens_and_connections_stay<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1]);
    let (listener, addr) = rig.listen(1, 1);
    let link = rig.link(addr);
    rig.fabric(1).unlisten(listener);
    rig.settle();
    assert!(rig.fabric(1).listen_addr(listener).is_err());
    let late = rig.connect(0, addr, b"");
    assert_eq!(rig.closed(0, late), CloseReason::Refused);
    rig.assert_alive(&link);
    let again = rig.fabric(1).listen(&addr, &ListenOptions::default());
    assert!(again.is_ok(), "{again:?}");
}

/// Domains are checked when a connection is made.
pub fn a_domain_that_does_not_exist_is_refused<T: Testbed>() {
    let (mut rig, _, addr) = linked_at::<T>();
    let domain = DomainId {
        index: 12_345,
        generation: 1,
    };
    let params = ConnectParams {
        domain: Some(domain),
        ..connect_params(addr, b"")
    };
    let now = rig.now();
    let refused = rig.fabric(0).connect(&params, now);
    assert!(matches!(refused, Err(FabricError::Stale(_))), "{refused:?}");
    rig.connect(0, addr, b"");
    let request = rig.request(1);
    let refused = rig
        .fabric(1)
        .accept(request.conn, Some(domain), LIMITS, &PrivateData::EMPTY);
    assert!(matches!(refused, Err(FabricError::Stale(_))), "{refused:?}");
}

/// A request taken out of one fabric goes on in another of its host, and is gone in the first.
pub fn a_request_is_handed_to_another_fabric<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"to core 2");
    let request = rig.request(1);
    let incoming = rig.fabric(1).detach(request.conn).expect("it waits");
    let server = rig.fabric(2).adopt(incoming).expect("there is room");
    let server_domain = rig.accept(2, server, None);
    let (client_domain, _) = rig.connected(0, client);
    let end = |node, conn, domain| End { node, conn, domain };
    let link = Link {
        client: end(0, client, client_domain),
        server: end(2, server, server_domain),
    };
    rig.assert_alive(&link);
    rig.fabric(2).disconnect(server);
    rig.both_closed(&link);
    assert!(
        rig.is_silent(1),
        "the first fabric has nothing to do with it"
    );
    assert!(rig.fabric(1).detach(request.conn).is_err());
}

/// A connector that gives up while its request is between two fabrics leaves nothing behind.
pub fn a_request_whose_peer_left_on_the_way_ends<T: Testbed>() {
    let mut rig = Rig::<T>::new(&[0, 1, 1]);
    let (_, addr) = rig.listen(1, 1);
    let client = rig.connect(0, addr, b"");
    let request = rig.request(1);
    let incoming = rig.fabric(1).detach(request.conn).expect("it waits");
    rig.fabric(0).disconnect(client);
    rig.closed(0, client);
    rig.settle();
    if let Ok(conn) = rig.fabric(2).adopt(incoming) {
        rig.closed(2, conn);
    }
    assert!(rig.is_silent(1));
}

/// A connection that is up stays where it is.
pub fn only_pending_requests_can_be_detached<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    assert!(rig.fabric(1).detach(link.server.conn).is_err());
    assert!(rig.fabric(0).detach(link.client.conn).is_err());
    rig.assert_alive(&link);
}
