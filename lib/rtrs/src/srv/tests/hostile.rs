//! What a client should not say.

use super::*;

#[test]
fn immediates_that_name_nothing_close_the_path() {
    let mut bed = Bed::with(Config {
        queue_depth: 6,
        chunk_bytes: CHUNK,
        ..Config::default()
    });
    let key = bed.up();
    let imm = |msg_id, offset| ImmLayout::new(6).unwrap().request(msg_id, offset);
    assert_eq!(bed.imm(key, 1, imm(6, 8)), Err(Violation::ChunkIndex));
    assert_eq!(
        bed.imm(key, 1, imm(0, CHUNK - 3)),
        Err(Violation::ChunkOffset)
    );
    assert!(bed.imm(key, 1, imm(0, CHUNK - 4)).is_ok());
}

/// As Linux does (protocol.md section 4).
#[test]
fn immediates_of_types_that_no_client_sends_are_ignored_and_counted() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    let unknown = [Imm::response(0, Ok(()), false), 0xa000_0001, 0xf000_0000];
    for (nth, imm) in unknown.into_iter().enumerate() {
        let ignored = bed.imm(key, 1, imm);
        assert_eq!(ignored, Ok(Inbound::Ignored { first: nth == 0 }));
    }
    assert_eq!(bed.path(key).counters().ignored, 3);
}

#[test]
fn nothing_is_valid_before_the_handshake_is_complete() {
    let mut bed = Bed::new(false);
    let key = bed.connect(1, 1);
    for imm in [request_imm(0, 8), Imm::HEARTBEAT] {
        assert_eq!(bed.imm(key, 0, imm), Err(Violation::OutOfTurn));
    }
}

#[test]
fn a_chunk_holds_one_request_at_a_time() {
    for new_rkey in [false, true] {
        let mut bed = Bed::new(new_rkey);
        let key = bed.up();
        bed.imm(key, 1, request_imm(3, 8)).unwrap();
        assert_eq!(
            bed.imm(key, 2, request_imm(3, 8)),
            Err(Violation::ChunkBusy)
        );
    }
}

/// CVE-2026-97413: the user message cannot start before the chunk.
#[test]
fn a_user_message_longer_than_its_offset_is_refused() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    for (msg_id, usr_len) in [(0, 33), (1, u16::MAX), (2, 3), (3, 0)] {
        let write = bed.arrive(key, msg_id, 32, &write_header(usr_len)).unwrap();
        assert_eq!(write, Err(Errno::INVAL), "usr_len {usr_len}");
        assert_eq!(
            bed.path(key).answer(msg_id, write.map(drop)).unwrap().imm >> 28,
            1
        );
    }
}

/// CVE-2026-64269: a READ never writes more than it read.
#[test]
fn a_descriptor_of_another_length_than_the_data_is_refused() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    for len in [1, 511, 513, CHUNK, u32::MAX] {
        let header = read_header(32, true, Some(len));
        let read = bed.arrive(key, 0, 544, &header).unwrap();
        assert_eq!(read, Err(Errno::INVAL), "length {len}");
        let answer = bed.path(key).answer(0, Err(Errno::INVAL)).unwrap();
        assert_eq!((answer.data, answer.invalidate), (None, Some(77)));
    }
}

#[test]
fn a_malformed_read_is_answered_and_an_unknown_type_is_not() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    let mut header = read_header(32, false, Some(512));
    header[6] = 2;
    assert_eq!(
        bed.arrive(key, 0, 544, &header),
        Ok(Err(Errno::INVAL)),
        "two descriptors"
    );
    let header = read_header(32, false, Some(512));
    let cut = bed.arrive(key, 1, CHUNK - 8, &header[..8]);
    assert_eq!(
        cut,
        Ok(Err(Errno::INVAL)),
        "its descriptor lies beyond the chunk"
    );
    let cut = bed.arrive(key, 2, CHUNK - 4, &header[..4]);
    assert_eq!(cut, Ok(Err(Errno::INVAL)), "it lies beyond the chunk");
    let unknown = bed.arrive(key, 3, 32, &[9, 0, 4, 0]);
    assert_eq!(unknown, Err(Violation::MessageType));
}

#[test]
#[should_panic(expected = "answered twice")]
fn answering_twice_is_our_own_fault() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    bed.arrive(key, 0, 8, &write_header(8)).unwrap().unwrap();
    bed.path(key).answer(0, Ok(()));
    bed.path(key).answer(0, Ok(()));
}

/// One thing that may happen to a path.
#[derive(Clone, Debug)]
enum Step {
    Imm(u16, u32),
    Request(u16, u32, Vec<u8>),
    Answer(usize),
    Timer(u64),
    Lose(u16),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let header = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..24),
        (
            any::<u16>(),
            any::<bool>(),
            proptest::option::of(0..9000_u32)
        )
            .prop_map(|(usr_len, inval, len)| read_header(usr_len, inval, len)),
        any::<u16>().prop_map(write_header),
    ];
    prop_oneof![
        2 => (0..3_u16, any::<u32>()).prop_map(|(cid, imm)| Step::Imm(cid, imm)),
        8 => (0..DEPTH, 0..CHUNK, header).prop_map(|(id, at, header)| Step::Request(id, at, header)),
        8 => any::<usize>().prop_map(Step::Answer),
        2 => (0..10_u64).prop_map(Step::Timer),
        1 => (0..3_u16).prop_map(Step::Lose),
        1 => Just(Step::Close),
    ]
}

/// What a caller knows: the requests that it owes an answer.
struct Model {
    bed: Bed,
    key: PathKey,
    owed: Vec<u16>,
}

impl Model {
    fn run(&mut self, step: &Step) {
        let outcome = match step {
            Step::Imm(cid, imm) => self.imm(*cid, *imm, &[]),
            Step::Request(msg_id, offset, header) => {
                self.imm(1, request_imm(*msg_id, *offset), header)
            }
            Step::Answer(which) => {
                if !self.owed.is_empty() {
                    let msg_id = self.owed.swap_remove(which % self.owed.len());
                    self.bed.path(self.key).answer(msg_id, Ok(()));
                }
                Ok(())
            }
            Step::Timer(seconds) => {
                self.bed.now += Nanos::from_secs(*seconds);
                let now = self.bed.now;
                self.bed.path(self.key).handle_timer(now);
                Ok(())
            }
            Step::Lose(cid) => {
                self.bed
                    .path(self.key)
                    .close(CloseCause::ConnectionLost("test"));
                self.bed.path(self.key).handle_con_closed(*cid);
                Ok(())
            }
            Step::Close => {
                self.bed.path(self.key).close(CloseCause::Administrative);
                Ok(())
            }
        };
        if let Err(violation) = outcome {
            self.bed.path(self.key).close(violation.into());
        }
    }

    fn imm(&mut self, cid: u16, imm: u32, header: &[u8]) -> Result<(), Violation> {
        let msg_id = match self.bed.imm(self.key, cid, imm)? {
            Inbound::Request { msg_id, .. } => msg_id,
            Inbound::Revoke { msg_id, .. } => {
                self.bed.path(self.key).handle_revoked(msg_id).unwrap();
                msg_id
            }
            Inbound::Nothing | Inbound::AckHeartbeat | Inbound::Ignored { .. } => return Ok(()),
            Inbound::Fence(_) => unreachable!("a kernel client may not ask"),
        };
        let _accepted_or_refused = self.bed.path(self.key).handle_header(msg_id, header)?;
        assert!(!self.owed.contains(&msg_id), "a chunk in two hands");
        self.owed.push(msg_id);
        Ok(())
    }

    fn check(&mut self) {
        let owed = self.owed.len();
        let path = self.bed.path(self.key);
        assert_eq!(path.inflight() as usize, owed);
        let free = usize::from(DEPTH) - owed;
        assert_eq!(path.free_chunks(), free, "a chunk was lost or made up");
    }
}

proptest! {
    #[test]
    fn no_client_makes_us_panic_or_lose_a_chunk(
        steps in proptest::collection::vec(step(), 0..60),
        new_rkey: bool,
    ) {
        let mut bed = Bed::new(new_rkey);
        let key = bed.up();
        let mut model = Model { bed, key, owed: Vec::new() };
        for step in &steps {
            model.run(step);
            model.check();
        }
        while !model.owed.is_empty() {
            model.run(&Step::Answer(0));
        }
        model.bed.lose(key);
        prop_assert!(model.bed.path(key).is_drained());
        prop_assert!(model.bed.sessions.remove_path(key).session.is_some());
        prop_assert_eq!(model.bed.sessions.iter().count(), 0);
    }

    #[test]
    fn no_private_data_makes_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..196)) {
        let mut bed = Bed::new(false);
        let _ = bed.sessions.handle_con_req(&bytes, route(1), NOW);
    }
}
