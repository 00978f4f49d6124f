//! What the target takes from everybody together, and from one stranger.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::sim::SimFabric;
use rnbd_proto::target::{DirectoryLimits, TargetHandle};
use rnbd_rtrs::srv::Refusal;

use crate::client::{Client, Identity};
use crate::rig::{CHUNK, DEPTH, Options, Rig, Sim};

type SimClient = Client<SimFabric>;

fn limited(limits: DirectoryLimits) -> Rig<Sim> {
    Rig::sim(Options {
        limits,
        ..Options::default()
    })
}

impl Rig<Sim> {
    /// One more connection of this client is rejected.
    fn is_refused(&mut self, client: &mut SimClient, refusal: Refusal) {
        let before = self.refusals(refusal);
        let conn = client.connect(self.addr, self.now);
        self.run(client, |client| client.rejected(conn).is_some());
        assert_eq!(client.rejected(conn), Some(refusal.errno()));
        assert_eq!(self.refusals(refusal), before + 1);
    }

    /// How many requests were rejected for this reason.
    fn refusals(&mut self, refusal: Refusal) -> u64 {
        let listeners = self.ask(TargetHandle::listeners);
        let mut counts = listeners[0].rejected.iter();
        let count = counts.find(|(reason, _)| *reason == refusal);
        count.map_or(0, |(_, count)| *count)
    }

    /// Connects one connection of a new session.
    fn stranger(&mut self, host: u8, session: u8) -> SimClient {
        let mut client = self.client_on(host, Identity::new("stranger", session));
        client.connect(self.addr, self.now);
        self.run(&mut client, |client| client.connected == 1);
        client
    }
}

fn chunks_of_a_path() -> u64 {
    u64::from(DEPTH) * u64::from(CHUNK)
}

#[test]
fn chunks_are_made_when_the_handshake_is_complete() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.client(Identity::new("clt1", 1));
    rig.connect(&mut client);
    assert!(rig.chunk_memory() <= 16384, "{}", rig.chunk_memory());
    client.send_info_req();
    rig.run(&mut client, |client| !client.chunks.is_empty());
    assert!(rig.chunk_memory() >= chunks_of_a_path());
}

#[test]
fn a_path_beyond_the_memory_budget_does_not_come_up() {
    let mut rig = Rig::sim(Options {
        memory_bytes: chunks_of_a_path() + 65536,
        ..Options::default()
    });
    let mut racing = rig.client_on(4, Identity::new("clt3", 3));
    rig.connect(&mut racing);
    let _first = rig.up(Identity::new("clt1", 1));
    let mut second = rig.client_on(3, Identity::new("clt2", 2));
    rig.is_refused(&mut second, Refusal::Resources);
    racing.send_info_req();
    rig.run(&mut racing, |racing| racing.closed.len() == 3);
    assert_eq!(rig.sessions().len(), 1);
}

#[test]
fn sessions_beyond_the_limit_are_refused() {
    let mut rig = limited(DirectoryLimits {
        sessions: 1,
        ..DirectoryLimits::default()
    });
    let mut first = rig.up(Identity::new("clt1", 1));
    let mut second = rig.client_on(3, Identity::new("clt2", 2));
    rig.is_refused(&mut second, Refusal::Sessions);
    first.disconnect();
    rig.run(&mut first, |first| first.closed.len() == 3);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    let mut third = rig.client_on(4, Identity::new("clt2", 2));
    rig.bring_up(&mut third);
}

#[test]
fn paths_beyond_the_limit_are_refused_and_leave_the_others_alone() {
    let mut rig = limited(DirectoryLimits {
        paths: 2,
        ..DirectoryLimits::default()
    });
    let (mut first, _) = rig.up_with("disk");
    let mut second = rig.added_path(3);
    let mut third = rig.client_on(4, Identity::added(4));
    rig.is_refused(&mut third, Refusal::Paths);
    for client in [&mut first, &mut second] {
        client.sess_info(0);
        rig.expect(client, Ok(()));
    }
    assert_eq!(rig.sessions()[0].paths.len(), 2);
}

#[test]
fn paths_of_a_session_beyond_the_limit_are_refused() {
    let mut options = Options::default();
    options.rtrs.paths_per_session = 1;
    let mut rig = Rig::sim(options);
    let _first = rig.up(Identity::new("clt1", 1));
    let mut second = rig.client_on(3, Identity::added(3));
    rig.is_refused(&mut second, Refusal::PathsOfSession);
}

#[test]
fn a_session_of_128_paths_serves_over_each() {
    let mut rig = Rig::sim(Options::default());
    let (first, id) = rig.up_with("disk");
    let mut clients = vec![first];
    clients.extend((3..130).map(|host| rig.added_path(host)));
    assert_eq!(rig.sessions()[0].paths.len(), 128);
    let mut one_more = rig.client_on(130, Identity::added(130));
    rig.is_refused(&mut one_more, Refusal::PathsOfSession);
    for client in &mut clients {
        client.write_block(0, id);
        rig.expect(client, Ok(()));
    }
}

#[test]
fn a_path_with_more_connections_than_allowed_is_refused() {
    let mut options = Options::default();
    options.rtrs.cons_per_path = 2;
    let mut rig = Rig::sim(options);
    let mut client = rig.client(Identity::new("clt1", 1));
    rig.is_refused(&mut client, Refusal::ConnectionsOfPath);
    assert!(rig.sessions().is_empty());
}

#[test]
fn who_does_not_finish_handshakes_is_refused_and_others_are_not() {
    let mut rig = limited(DirectoryLimits {
        connecting_per_source: 3,
        ..DirectoryLimits::default()
    });
    let strangers: Vec<_> = (1..=3).map(|number| rig.stranger(5, number)).collect();
    let mut fourth = rig.client_on(5, Identity::new("fourth", 4));
    rig.is_refused(&mut fourth, Refusal::Connecting);
    let honest = rig.up(Identity::new("honest", 9));
    drop(honest);
    // Their handshakes time out.
    let start = rig.now;
    rig.run_alone(|rig| rig.now.since(start) > Nanos::from_secs(31));
    drop(strangers);
    let mut again = rig.client_on(5, Identity::new("fourth", 4));
    rig.bring_up(&mut again);
}

#[test]
fn connections_of_paths_that_are_up_do_not_count_as_unfinished() {
    let mut rig = limited(DirectoryLimits {
        connecting_per_source: 3,
        ..DirectoryLimits::default()
    });
    let mut clients = Vec::new();
    for number in 1..=4 {
        let mut client = rig.client_on(5, Identity::new(&format!("clt{number}"), number));
        rig.bring_up(&mut client);
        clients.push(client);
    }
    assert_eq!(rig.sessions().len(), 4);
}

#[test]
fn a_flood_of_strangers_costs_little_and_passes() {
    let mut rig = Rig::sim(Options::default());
    let strangers: Vec<_> = (1..=100)
        .map(|number| rig.stranger(5 + number % 8, number))
        .collect();
    let each = rig.chunk_memory() / 100;
    assert!(each <= 16384, "{each} bytes for each");
    drop(strangers);
    rig.run_alone(|rig| rig.chunk_memory() == 0);
    assert!(rig.sessions().is_empty());
}

#[test]
fn what_is_no_request_is_counted() {
    let mut rig = Rig::sim(Options::default());
    let mut client = rig.client(Identity {
        cid_num: 0,
        ..Identity::new("clt1", 1)
    });
    rig.is_refused(&mut client, Refusal::Malformed);
    assert_eq!(Refusal::Malformed.errno(), Errno::CONNRESET);
}
