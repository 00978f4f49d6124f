//! Requests and their answers, in both modes.

use super::*;

#[test]
fn a_read_is_answered_with_its_data() {
    for (need_inval, kind) in [(false, 1), (true, 2)] {
        let mut bed = Bed::new(false);
        let key = bed.up();
        let header = read_header(32, need_inval, Some(512));
        let request = bed.arrive(key, 5, 544, &header).unwrap().unwrap();
        assert_eq!(
            request,
            Request {
                msg_id: 5,
                direction: Direction::Read,
                data_len: 512,
                usr_len: 32,
                has_descriptor: true,
            }
        );
        let answer = bed.path(key).answer(5, Ok(())).unwrap();
        let data = DataWrite {
            addr: 0xabc0,
            key: 77,
            len: 512,
        };
        let expected = Answer {
            cid: 1,
            data: Some(data),
            invalidate: need_inval.then_some(77),
            imm: (kind << 28) | 5,
        };
        assert_eq!(answer, expected);
    }
}

#[test]
fn a_failed_read_sends_no_data_but_invalidates() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    bed.arrive(key, 5, 544, &read_header(32, true, Some(512)))
        .unwrap()
        .unwrap();
    let answer = bed.path(key).answer(5, Err(Errno::IO)).unwrap();
    assert_eq!((answer.data, answer.invalidate), (None, Some(77)));
    assert_eq!(answer.imm, 0x2028_0005, "vector imm_io_rsp_id5_err5_winv");
}

#[test]
fn need_inval_without_a_descriptor_is_ignored() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    bed.arrive(key, 5, 32, &read_header(32, true, None))
        .unwrap()
        .unwrap();
    let answer = bed.path(key).answer(5, Ok(())).unwrap();
    assert_eq!((answer.data, answer.invalidate), (None, None));
    assert_eq!(answer.imm, 0x1000_0005);
}

#[test]
fn the_header_of_a_vector_is_understood() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    // Vector wire_write_512: 512 bytes of data, a message of 32, then this header at 544.
    let write = bed
        .arrive(key, 6, 544, &[0x02, 0x00, 0x20, 0x00])
        .unwrap()
        .unwrap();
    assert_eq!((write.direction, write.data_len), (Direction::Write, 512));
    // Vector wire_flush: no data and no descriptor.
    let header = [0x03, 0x00, 0x20, 0x00, 0, 0, 0, 0];
    let flush = bed.arrive(key, 7, 32, &header).unwrap().unwrap();
    assert_eq!((flush.direction, flush.data_len), (Direction::Read, 0));
    assert!(!flush.has_descriptor);
}

#[test]
fn the_answer_goes_out_where_the_request_came_in() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    for cid in [0, 2] {
        bed.imm(key, cid, request_imm(3, 8)).unwrap();
        bed.path(key)
            .handle_header(3, &write_header(8))
            .unwrap()
            .unwrap();
        assert_eq!(bed.path(key).cid_of(3), cid);
        assert_eq!(bed.path(key).answer(3, Ok(())).unwrap().cid, cid);
    }
}

#[test]
fn with_new_rkey_a_chunk_is_looked_at_only_after_its_revocation() {
    let mut bed = Bed::new(true);
    let key = bed.up();
    let inbound = bed.imm(key, 1, request_imm(3, 520)).unwrap();
    let (msg_id, offset) = (3, 520);
    assert_eq!(inbound, Inbound::Revoke { msg_id, offset });
    let early = bed.path(key).handle_header(3, &write_header(8));
    assert_eq!(early, Err(Violation::OutOfTurn));
    let early = bed.path(key).handle_open_header(3, &write_header(8), 511);
    assert_eq!(early, Ok(None), "what it writes must not change any more");
    assert_eq!(bed.path(key).handle_revoked(3), Some(520));
    assert_eq!(bed.path(key).handle_revoked(3), None, "once");
    bed.path(key)
        .handle_header(3, &write_header(8))
        .unwrap()
        .unwrap();
    bed.path(key).answer(3, Ok(())).unwrap();
    assert_eq!(bed.path(key).counters().rkey_refreshes, 1);
}

#[test]
fn with_new_rkey_a_write_that_is_copied_waits_for_no_revocation() {
    let mut bed = Bed::new(true);
    let key = bed.up();
    bed.imm(key, 1, request_imm(3, 520)).unwrap();
    let header = write_header(8);
    let write = bed.path(key).handle_open_header(3, &header, 512).unwrap();
    let write = write.unwrap().unwrap();
    assert_eq!(
        (write.direction, write.data_len),
        (Direction::Write, 512),
        "as large as what can be copied"
    );
    assert_eq!(bed.path(key).handle_revoked(3), None);
    bed.path(key).answer(3, Ok(())).unwrap();
    assert_eq!(bed.path(key).counters().rkey_refreshes, 1);
}

#[test]
fn with_new_rkey_a_read_waits_for_no_revocation() {
    const READ: [u8; 8] = [0x03, 0x00, 0x20, 0x00, 0, 0, 0, 0];
    let mut bed = Bed::new(true);
    let key = bed.up();
    bed.imm(key, 1, request_imm(3, 32)).unwrap();
    let read = bed.path(key).handle_open_header(3, &READ, 0).unwrap();
    assert_eq!(read.unwrap().unwrap().direction, Direction::Read);
    let again = bed.path(key).handle_open_header(3, &READ, 0);
    assert_eq!(again, Ok(None), "once");
    assert_eq!(bed.path(key).handle_revoked(3), None);
    bed.path(key).answer(3, Ok(())).unwrap();
    assert_eq!(bed.path(key).counters().rkey_refreshes, 1);
}

#[test]
fn heartbeats_count_on_the_service_connection_only() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    assert_eq!(bed.imm(key, 0, Imm::HEARTBEAT), Ok(Inbound::AckHeartbeat));
    assert_eq!(bed.imm(key, 1, Imm::HEARTBEAT), Ok(Inbound::Nothing));
    assert_eq!(bed.imm(key, 1, Imm::HEARTBEAT_ACK), Ok(Inbound::Nothing));
}

#[test]
fn what_arrives_on_a_closing_path_is_dropped() {
    let mut bed = Bed::new(true);
    let key = bed.up();
    bed.imm(key, 1, request_imm(1, 8)).unwrap();
    bed.path(key).close(CloseCause::Administrative);
    assert_eq!(bed.path(key).handle_revoked(1), None);
    assert_eq!(bed.imm(key, 1, request_imm(2, 8)), Ok(Inbound::Nothing));
    assert_eq!(bed.path(key).free_chunks(), usize::from(DEPTH));
    assert!(
        !bed.path(key).close(CloseCause::Superseded),
        "the first cause is kept"
    );
    assert_eq!(bed.path(key).cause(), Some(CloseCause::Administrative));
}

#[test]
fn requests_are_counted_as_the_kernel_does() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    bed.arrive(key, 0, 544, &read_header(32, false, Some(512)))
        .unwrap()
        .unwrap();
    bed.arrive(key, 1, 4128, &write_header(32))
        .unwrap()
        .unwrap();
    bed.arrive(key, 2, 4128, &write_header(3))
        .unwrap()
        .unwrap_err();
    let counters = bed.path(key).counters();
    assert_eq!((counters.reads, counters.read_bytes), (1, 544));
    assert_eq!((counters.writes, counters.write_bytes), (1, 4128));
    assert_eq!(counters.refused, 1);
    bed.path(key).reset_counters();
    assert_eq!(bed.path(key).counters(), PathCounters::default());
}
