use proptest::prelude::*;
use rnbd_base::{Errno, Nanos};
use rnbd_wire::Imm;

use super::rig::{PATH, Rig, accept, message, vector};
use crate::clt::{
    Arrival, BeginError, Direction, Done, Ended, Exposure, Invalidation, PathError, Request,
    SessionConfig, Step, Violation,
};

const RKEY: u32 = 0x30_aa07;

fn read(invalidation: Invalidation) -> Request {
    Request {
        direction: Direction::Read,
        user_bytes: 32,
        data_bytes: 4096,
        exposure: Some(Exposure {
            addr: 0xffff_8880_0abc_1000,
            rkey: RKEY,
            invalidation,
        }),
    }
}

fn write(data_bytes: u32) -> Request {
    Request {
        direction: Direction::Write,
        user_bytes: 32,
        data_bytes,
        exposure: None,
    }
}

fn answer(msg_id: u16) -> Arrival {
    Arrival::Immediate(Imm::response(msg_id, Ok(()), false))
}

fn done(msg_id: u16) -> Step {
    Step::Done(Done {
        msg_id,
        result: Ok(()),
    })
}

#[test]
fn headers_and_immediates_are_the_references() {
    let mut rig = Rig::up(accept(512, false));
    for _ in 1..5 {
        rig.begin(&write(0));
    }
    let post = rig.begin(&write(4096));
    assert_eq!((post.msg_id, post.offset), (5, 0));
    assert_eq!(
        post.imm.to_be_bytes().to_vec(),
        vector("imm_io_req_qd512_chunk5_off4128")
    );
    assert_eq!(
        post.header[..usize::from(post.header_bytes)],
        vector("rdma_write_msg")
    );
    let post = rig.begin(&read(Invalidation::Remote));
    assert_eq!(
        post.offset, 4096,
        "a read leaves room for the server's data"
    );
    assert_eq!(post.header.to_vec(), vector("rdma_read_msg_inval"));
    let post = rig.begin(&read(Invalidation::None));
    assert_eq!(post.header.to_vec(), vector("rdma_read_msg_no_inval"));
    let flush = Request {
        data_bytes: 0,
        exposure: None,
        ..read(Invalidation::None)
    };
    let post = rig.begin(&flush);
    assert_eq!(
        post.header[..usize::from(post.header_bytes)],
        vector("rdma_read_msg_no_data")
    );
}

#[test]
fn a_write_ends_when_it_was_both_answered_and_sent() {
    for sent_first in [false, true] {
        let mut rig = Rig::up(accept(16, false));
        let post = rig.begin(&write(512));
        assert!(
            post.signaled,
            "the buffer is not free before the write was sent"
        );
        let id = post.msg_id;
        if sent_first {
            assert_eq!(rig.sent(post.serial), [0; 0]);
            assert_eq!(rig.arrive(answer(id)), done(id));
        } else {
            assert_eq!(rig.arrive(answer(id)), Step::Wait);
            assert_eq!(rig.sent(post.serial), [id]);
        }
        assert_eq!(rig.channels[0].in_flight(), 0);
    }
}

#[test]
fn a_completion_stands_for_the_operations_before_it() {
    let mut rig = Rig::up(accept(16, false));
    let posts = [(); 4].map(|()| rig.begin(&write(512)));
    let ids = posts.map(|post| post.msg_id);
    for id in [ids[0], ids[2], ids[3]] {
        assert_eq!(rig.arrive(answer(id)), Step::Wait, "it is still being read");
    }
    let mut ended = rig.sent(posts[2].serial);
    ended.sort_unstable();
    assert_eq!(ended, [ids[0], ids[2]], "the second was not answered");
    assert_eq!(rig.arrive(answer(ids[1])), done(ids[1]));
    assert_eq!(rig.sent(posts[0].serial), [0; 0], "what is known stays so");
    assert_eq!(rig.sent(posts[3].serial), [ids[3]]);
    assert_eq!(rig.channels[0].in_flight(), 0);
}

#[test]
fn what_was_answered_early_ends_with_its_path() {
    let mut rig = Rig::up(accept(16, false));
    let post = rig.begin(&write(512));
    assert_eq!(rig.arrive(answer(post.msg_id)), Step::Wait);
    rig.close(1, PathError::PeerClosed);
    let ended = [(post.msg_id, Ended::Answered(Ok(())))];
    assert_eq!(rig.ended, ended);
    assert_eq!(rig.sent(post.serial), [0; 0], "it ends once");
}

#[test]
fn a_read_whose_window_we_close_ends_when_it_is_closed() {
    let mut rig = Rig::up(accept(16, false));
    let id = rig.begin(&read(Invalidation::Local)).msg_id;
    assert_eq!(rig.arrive(answer(id)), Step::Invalidate(id));
    let invalidation = rig.channels[0].begin_invalidation(PATH, id);
    assert_eq!(rig.channels[0].in_flight(), 1);
    let step = rig.channels[0].handle_sent(PATH, invalidation);
    assert_eq!(step, done(id));
}

#[test]
fn a_read_whose_window_the_server_closed_ends_with_the_answer() {
    let mut rig = Rig::up(accept(16, false));
    let id = rig.begin(&read(Invalidation::Remote)).msg_id;
    assert_eq!(rig.arrive(message(None, Some(RKEY), &[])), Step::Wait);
    let imm = Imm::response(id, Ok(()), true);
    assert_eq!(rig.arrive(Arrival::Immediate(imm)), done(id));
}

#[test]
fn an_invalidation_that_did_not_come_is_made_good() {
    for announced in [false, true] {
        let mut rig = Rig::up(accept(16, false));
        let id = rig.begin(&read(Invalidation::Remote)).msg_id;
        let imm = Imm::response(id, Err(Errno::IO), announced);
        assert_eq!(rig.arrive(Arrival::Immediate(imm)), Step::Invalidate(id));
        let over = Step::Done(Done {
            msg_id: id,
            result: Err(Errno::IO),
        });
        assert_eq!(rig.channels[0].handle_invalidated(PATH, id), over);
    }
}

#[test]
fn in_new_rkey_mode_the_next_request_uses_the_new_key() {
    let mut rig = Rig::up(accept(512, true));
    for _ in 1..5 {
        rig.begin(&write(0));
    }
    let id = rig.begin(&write(0)).msg_id;
    assert_eq!(id, 5);
    let imm = Imm::response(id, Err(Errno::NOSPC), false);
    let step = rig.arrive(message(Some(imm), None, &vector("rkey_rsp")));
    assert_eq!(
        step,
        Step::Done(Done {
            msg_id: id,
            result: Err(Errno::NOSPC)
        })
    );
    let post = rig.begin(&write(0));
    assert_eq!((post.msg_id, post.chunk.rkey), (5, 0x20_1235));
}

#[test]
fn permits_run_out_and_come_back() {
    let mut rig = Rig::up(accept(3, false));
    let ids = [rig.begin(&write(0)).msg_id, rig.begin(&write(0)).msg_id];
    assert_eq!(ids, [1, 2], "chunk 0 is kept for control messages");
    assert_eq!(
        rig.channels[0].begin(PATH, &write(0), Nanos::ZERO),
        Err(BeginError::NoPermit)
    );
    let control = rig.session.begin(PATH, &write(0), Nanos::ZERO).unwrap();
    assert_eq!(control.msg_id, 0);
    rig.arrive(answer(2));
    assert_eq!(rig.begin(&write(0)).msg_id, 2);
}

#[test]
fn what_does_not_fit_a_chunk_is_refused_before_it_takes_a_permit() {
    let mut rig = Rig::up(accept(3, false));
    let huge = write(131_072);
    for _ in 0..20 {
        assert_eq!(
            rig.channels[0].begin(PATH, &huge, Nanos::ZERO),
            Err(BeginError::TooLong)
        );
    }
    assert_eq!(rig.channels[0].in_flight(), 0);
    assert_eq!(rig.begin(&write(0)).msg_id, 1, "nor room in the queue");
}

#[test]
fn requests_of_a_lost_path_end_only_with_their_connection() {
    let mut rig = Rig::up(accept(16, false));
    let answered = rig.begin(&write(512)).msg_id;
    let lost = rig.begin(&write(512)).msg_id;
    rig.arrive(answer(answered));
    rig.close(0, PathError::PeerClosed);
    assert!(
        rig.ended.is_empty(),
        "the server may still touch their buffers"
    );
    rig.close(1, PathError::Requested);
    rig.ended.sort_by_key(|(msg_id, _)| *msg_id);
    assert_eq!(
        rig.ended,
        [(answered, Ended::Answered(Ok(()))), (lost, Ended::Unknown)]
    );
    assert_eq!(
        rig.channels[0].in_flight(),
        1,
        "the server may still use the chunk of the one without an answer"
    );
    rig.advance(Nanos::from_secs(35));
    assert_eq!(rig.channels[0].in_flight(), 0);
}

#[test]
fn a_request_that_is_not_answered_in_time_costs_the_path() {
    let config = SessionConfig {
        request_timeout: Some(Nanos::from_secs(2)),
        ..SessionConfig::default()
    };
    let mut rig = Rig::new(config, accept(16, false));
    rig.start();
    rig.play_handshake();
    rig.begin(&write(0));
    rig.advance(Nanos::from_secs(1));
    assert!(rig.session.is_up());
    rig.advance(Nanos::from_secs(1));
    rig.play_handshake();
    assert_eq!(rig.path_error(), PathError::RequestTimedOut);
}

#[test]
fn answers_to_nothing_cost_the_path() {
    let arrivals = [
        (answer(5), Violation::NotOutstanding(5)),
        (answer(0), Violation::NotOutstanding(0)),
        (answer(700), Violation::NotOutstanding(700)),
        (Arrival::Immediate(0x0000_0020), Violation::Immediate(0x20)),
        (
            Arrival::Immediate(0xf000_0000),
            Violation::Immediate(0xf000_0000),
        ),
        (message(None, None, &[]), Violation::Message),
    ];
    for (arrival, violation) in arrivals {
        let mut rig = Rig::up(accept(512, false));
        assert_eq!(rig.begin(&write(0)).msg_id, 1);
        assert_eq!(rig.arrive(arrival), Step::Wait);
        rig.play_handshake();
        assert_eq!(rig.path_error(), PathError::Violation(violation));
        assert_eq!(rig.ended, [(1, Ended::Unknown)]);
    }
}

#[test]
fn a_second_answer_does_not_end_the_next_request() {
    let mut rig = Rig::up(accept(16, false));
    let id = rig.begin(&write(512)).msg_id;
    rig.arrive(answer(id));
    rig.arrive(answer(id));
    rig.play_handshake();
    assert!(!rig.session.is_up());
}

#[test]
fn only_the_requests_own_buffer_may_be_invalidated() {
    let sequences: [&[Arrival]; 4] = [
        &[
            message(None, Some(99), &[]),
            Arrival::Immediate(Imm::response(1, Ok(()), true)),
        ],
        &[message(None, Some(RKEY), &[]), answer(1)],
        &[
            message(None, Some(RKEY), &[]),
            message(None, Some(RKEY), &[]),
        ],
        &[
            message(None, Some(RKEY), &[]),
            Arrival::Immediate(Imm::response(2, Ok(()), true)),
        ],
    ];
    for sequence in sequences {
        let mut rig = Rig::up(accept(16, false));
        rig.begin(&read(Invalidation::Remote));
        rig.begin(&read(Invalidation::None));
        for arrival in sequence {
            rig.arrive(*arrival);
        }
        rig.play_handshake();
        assert!(!rig.session.is_up(), "{sequence:?}");
    }
}

#[test]
fn new_rkey_answers_must_bring_the_key_of_their_chunk() {
    let imm = Imm::response(1, Ok(()), false);
    let mut wrong_type = vector("rkey_rsp");
    wrong_type[0] = 5;
    let arrivals = [
        Arrival::Immediate(imm),
        message(Some(imm), None, &vector("rkey_rsp")),
        message(Some(imm), None, &[4, 0, 1, 0]),
        message(Some(imm), None, &wrong_type),
        message(Some(imm), Some(1), &[4, 0, 1, 0, 0, 0, 0, 0]),
    ];
    for arrival in arrivals {
        let mut rig = Rig::up(accept(16, true));
        rig.begin(&write(0));
        rig.arrive(arrival);
        rig.play_handshake();
        assert!(!rig.session.is_up(), "{arrival:?}");
    }
}

fn any_arrival() -> impl Strategy<Value = Arrival> {
    let imm = prop_oneof![
        any::<u32>(),
        (0..20_u16, any::<bool>(), any::<bool>()).prop_map(|(id, ok, inv)| {
            let result = if ok { Ok(()) } else { Err(Errno::IO) };
            Imm::response(id, result, inv)
        }),
    ];
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..12),
        (0..20_u8).prop_map(|id| vec![4, 0, id, 0, 1, 2, 3, 4]),
    ];
    let invalidated = prop_oneof![Just(None), Just(Some(RKEY)), any::<u32>().prop_map(Some)];
    prop_oneof![
        imm.clone().prop_map(Arrival::Immediate),
        (proptest::option::of(imm), invalidated, bytes)
            .prop_map(|(imm, invalidated, bytes)| message(imm, invalidated, &bytes)),
    ]
}

#[derive(Clone, Debug)]
enum Input {
    Begin(Request),
    Arrive(Arrival),
    Sent(u32),
    Invalidated(u16),
}

fn any_input() -> impl Strategy<Value = Input> {
    let request = prop_oneof![
        Just(write(0)),
        Just(write(512)),
        Just(read(Invalidation::None)),
        Just(read(Invalidation::Local)),
        Just(read(Invalidation::Remote)),
    ];
    prop_oneof![
        request.prop_map(Input::Begin),
        any_arrival().prop_map(Input::Arrive),
        (0..80_u32).prop_map(Input::Sent),
        (0..20_u16).prop_map(Input::Invalidated),
    ]
}

proptest! {
    #[test]
    fn whatever_a_server_answers_each_request_ends_once_and_permits_are_conserved(
        inputs in proptest::collection::vec(any_input(), 0..80),
        new_rkey: bool,
    ) {
        let mut rig = Rig::up(accept(16, new_rkey));
        let (mut begun, mut ended) = (0, 0);
        for input in inputs {
            let step = match input {
                Input::Begin(request) => {
                    begun += u32::from(rig.channels[0].begin(PATH, &request, rig.now).is_ok());
                    continue;
                }
                Input::Arrive(arrival) => rig.arrive(arrival),
                Input::Sent(serial) => {
                    ended += u32::try_from(rig.sent(serial).len()).unwrap();
                    continue;
                }
                Input::Invalidated(id) => rig.channels[0].handle_invalidated(PATH, id),
            };
            ended += u32::from(matches!(step, Step::Done(_)));
            prop_assert_eq!(rig.channels[0].in_flight(), (begun - ended) as usize);
        }
        rig.close(1, PathError::PeerClosed);
        prop_assert_eq!(rig.ended.len(), (begun - ended) as usize);
        rig.play_handshake();
        rig.advance(Nanos::from_secs(35));
        prop_assert_eq!(rig.channels[0].in_flight(), 0);
    }
}
