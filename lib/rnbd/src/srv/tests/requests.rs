//! User messages: what is done, and what is answered.

use proptest::prelude::*;
use rnbd_base::Errno;
use rnbd_bdev::IoOp;
use rnbd_rtrs::srv::{Direction, Request};
use rnbd_wire::rnbd::{Io, IoFlags, Op, Open, SessInfo};

use super::devices::opened;
use crate::srv::*;

pub(super) const VIEW: DeviceView = DeviceView {
    read_only: false,
    block_bytes: 4096,
    num_blocks: 100,
    max_discard_bytes: 1 << 20,
    max_write_zeroes_bytes: 1 << 20,
};

const READ: Request = Request {
    msg_id: 0,
    direction: Direction::Read,
    data_len: 4096,
    usr_len: 32,
    has_descriptor: true,
};
const WRITE: Request = Request {
    direction: Direction::Write,
    has_descriptor: false,
    ..READ
};
const EMPTY_READ: Request = Request {
    data_len: 0,
    has_descriptor: false,
    ..READ
};
const EMPTY_WRITE: Request = Request {
    data_len: 0,
    ..WRITE
};

fn io(op: Op, sector: u64, bi_size: u32) -> Io {
    Io {
        device_id: 0,
        sector,
        op,
        flags: IoFlags::empty(),
        bi_size,
        prio: 0,
    }
}

fn planned(op: IoOp, offset_blocks: u64, num_blocks: u64) -> Result<Plan, Errno> {
    Ok(Plan::Io {
        op,
        offset_blocks,
        num_blocks,
        flush_first: false,
    })
}

pub(super) fn flush_of(session: &mut Session, device_id: u32) -> Command {
    let message = Io {
        device_id,
        ..io(Op::Flush, u64::MAX, 0)
    };
    session.handle_message(&EMPTY_READ, &message.to_bytes())
}

#[test]
fn reads_and_writes_are_counted_in_blocks() {
    let read = VIEW.plan(&io(Op::Read, 16, 4096), &READ);
    assert_eq!(read, planned(IoOp::Read, 2, 1));
    let write = VIEW.plan(&io(Op::Write, 99 * 8, 4096), &WRITE);
    assert_eq!(write, planned(IoOp::Write { fua: false }, 99, 1));
}

#[test]
fn flags_of_a_write_are_carried() {
    let mut write = io(Op::Write, 0, 4096);
    write.flags = IoFlags::FUA | IoFlags::PREFLUSH | IoFlags::SYNC;
    let expected = Plan::Io {
        op: IoOp::Write { fua: true },
        offset_blocks: 0,
        num_blocks: 1,
        flush_first: true,
    };
    assert_eq!(VIEW.plan(&write, &WRITE), Ok(expected));
}

#[test]
fn a_flush_comes_in_either_direction_with_any_sector() {
    let flush = planned(IoOp::Flush, 0, 0);
    for request in [EMPTY_READ, EMPTY_WRITE] {
        assert_eq!(VIEW.plan(&io(Op::Flush, u64::MAX, 0), &request), flush);
    }
    assert_eq!(VIEW.plan(&io(Op::Write, 0, 0), &EMPTY_WRITE), flush);
    assert_eq!(VIEW.plan(&io(Op::Flush, 0, 0), &WRITE), Err(Errno::INVAL));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let discard = VIEW.plan(&io(Op::Discard, 8, 8192), &EMPTY_WRITE);
    assert_eq!(discard, planned(IoOp::Unmap, 1, 2));
    let mut zeroes = io(Op::WriteZeroes, 8, 8192);
    zeroes.flags = IoFlags::NOUNMAP;
    let no_unmap = IoOp::WriteZeroes { no_unmap: true };
    assert_eq!(VIEW.plan(&zeroes, &EMPTY_WRITE), planned(no_unmap, 1, 2));
    let too_long = io(Op::Discard, 0, (1 << 20) + 4096);
    assert_eq!(VIEW.plan(&too_long, &EMPTY_WRITE), Err(Errno::INVAL));
    assert_eq!(
        VIEW.plan(&io(Op::Discard, 0, 0), &EMPTY_WRITE),
        Err(Errno::INVAL)
    );
}

#[test]
fn what_was_not_offered_is_not_supported() {
    let view = DeviceView {
        max_discard_bytes: 0,
        max_write_zeroes_bytes: 0,
        ..VIEW
    };
    let unsupported = Err(Errno::OPNOTSUPP);
    for op in [Op::Discard, Op::WriteZeroes, Op::SecureErase] {
        assert_eq!(
            view.plan(&io(op, 0, 4096), &EMPTY_WRITE),
            unsupported,
            "{op:?}"
        );
    }
    let write_same = VIEW.plan(&io(Op::WriteZeroes, 0, 4096), &WRITE);
    assert_eq!(write_same, unsupported, "code 5 with data");
}

#[test]
fn contradictions_are_invalid() {
    let invalid = |io: &Io, request: &Request| {
        assert_eq!(
            VIEW.plan(io, request),
            Err(Errno::INVAL),
            "{io:?} {request:?}"
        );
    };
    invalid(&io(Op::Read, 0, 8192), &READ);
    invalid(&io(Op::Write, 0, 8192), &WRITE);
    invalid(&io(Op::Read, 0, 4096), &WRITE);
    invalid(&io(Op::Write, 0, 4096), &READ);
    invalid(&io(Op::Discard, 0, 4096), &EMPTY_READ);
    invalid(
        &io(Op::Read, 0, 4096),
        &Request {
            has_descriptor: false,
            ..READ
        },
    );
    invalid(&io(Op::Read, 1, 4096), &READ);
    invalid(
        &io(Op::Read, 0, 512),
        &Request {
            data_len: 512,
            ..READ
        },
    );
    assert_eq!(
        VIEW.plan(&io(Op::Read, 3, 0), &EMPTY_READ),
        Ok(Plan::Nothing)
    );
}

#[test]
fn beyond_the_end_is_no_space_to_write_and_an_error_to_read() {
    for sector in [100 * 8, u64::MAX / 512 * 512 / 4096 * 8, u64::MAX - 7] {
        assert_eq!(
            VIEW.plan(&io(Op::Read, sector, 4096), &READ),
            Err(Errno::IO)
        );
        let write = VIEW.plan(&io(Op::Write, sector, 4096), &WRITE);
        assert_eq!(write, Err(Errno::NOSPC));
    }
    assert_eq!(
        VIEW.plan(&io(Op::Discard, 99 * 8, 8192), &EMPTY_WRITE),
        Err(Errno::NOSPC)
    );
}

#[test]
fn a_read_only_opener_changes_nothing() {
    let view = DeviceView {
        read_only: true,
        ..VIEW
    };
    let refused = Err(Errno::ROFS);
    assert_eq!(view.plan(&io(Op::Write, 0, 4096), &WRITE), refused);
    assert_eq!(view.plan(&io(Op::Discard, 0, 4096), &EMPTY_WRITE), refused);
    assert_eq!(
        view.plan(&io(Op::WriteZeroes, 0, 4096), &EMPTY_WRITE),
        refused
    );
    assert!(view.plan(&io(Op::Read, 0, 4096), &READ).is_ok());
    assert!(view.plan(&io(Op::Flush, 0, 0), &EMPTY_READ).is_ok());
}

#[test]
fn the_priority_counts_from_version_2_on() {
    let mut session = Session::new(1);
    opened(&mut session, "disk");
    let message = Io {
        prio: 0x4001,
        ..io(Op::Read, 0, 4096)
    };
    let prio = |session: &mut Session| match session.handle_message(&READ, &message.to_bytes()) {
        Command::Io { prio, .. } => prio,
        other => panic!("{other:?}"),
    };
    assert_eq!(prio(&mut session), 0);
    for (client, agreed) in [(1, 1), (2, 2), (9, 2)] {
        let info = session.handle_message(&READ, &SessInfo { ver: client }.to_bytes());
        assert!(matches!(info, Command::SessInfo(rsp) if rsp.ver == agreed));
        assert_eq!(prio(&mut session), if agreed < 2 { 0 } else { 0x4001 });
    }
}

#[test]
fn answers_need_room_to_go_to() {
    let mut session = Session::new(1);
    let invalid = Command::Answer(Err(Errno::INVAL));
    let info = SessInfo { ver: 2 }.to_bytes();
    let open = Open {
        access_mode: rnbd_wire::rnbd::AccessMode::ReadOnly,
        dev_name: rnbd_wire::Name::new("disk").unwrap(),
    };
    let small = |data_len| Request { data_len, ..READ };
    assert_eq!(session.handle_message(&small(35), &info), invalid);
    assert_eq!(
        session.handle_message(&small(55), &open.to_bytes()),
        invalid
    );
    assert_eq!(session.handle_message(&WRITE, &open.to_bytes()), invalid);
    assert_eq!(
        session.handle_message(&small(56), &open.to_bytes()),
        Command::Open(open)
    );
}

#[test]
fn messages_that_are_none_are_invalid_and_unknown_operations_unsupported() {
    let mut session = Session::new(1);
    opened(&mut session, "disk");
    let mut answer = |message: &[u8]| session.handle_message(&READ, message);
    for short in [
        &[][..],
        &[4, 0],
        &[4, 0, 0, 0],
        &[0, 0, 0, 0],
        &[99, 0, 0, 0],
    ] {
        assert_eq!(
            answer(short),
            Command::Answer(Err(Errno::INVAL)),
            "{short:?}"
        );
    }
    let mut unknown = io(Op::Read, 0, 4096).to_bytes();
    unknown[16] = 77;
    assert_eq!(answer(&unknown), Command::Answer(Err(Errno::OPNOTSUPP)));
    let mut name_without_end = [b'x'; 264];
    name_without_end[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0]);
    assert_eq!(
        answer(&name_without_end),
        Command::Answer(Err(Errno::INVAL))
    );
}

proptest! {
    #[test]
    fn whatever_is_planned_lies_on_the_device(
        op in 0..6_u8,
        sector: u64,
        bi_size: u32,
        flags: u32,
        data_len in prop_oneof![Just(0_u32), 0..200_000_u32],
        write: bool,
        has_descriptor: bool,
    ) {
        let direction = if write { Direction::Write } else { Direction::Read };
        let request = Request { msg_id: 0, direction, data_len, usr_len: 32, has_descriptor };
        let sector = if flags % 2 == 0 { sector % 1000 } else { sector };
        let bi_size = if flags % 3 == 0 { data_len } else { bi_size };
        let io = Io {
            device_id: 0,
            sector,
            op: Op::from_code(op).unwrap(),
            flags: IoFlags::from_bits_truncate(flags),
            bi_size,
            prio: 0,
        };
        if let Ok(Plan::Io { op, offset_blocks, num_blocks, .. }) = VIEW.plan(&io, &request) {
            prop_assert!(offset_blocks + num_blocks <= VIEW.num_blocks);
            let bytes = num_blocks * u64::from(VIEW.block_bytes);
            if op.has_data() {
                prop_assert_eq!(bytes, u64::from(data_len));
            }
        }
    }

    #[test]
    fn no_message_makes_us_panic(
        message in proptest::collection::vec(any::<u8>(), 0..300),
        data_len: u32,
        write: bool,
        has_descriptor: bool,
    ) {
        let direction = if write { Direction::Write } else { Direction::Read };
        let request = Request { msg_id: 0, direction, data_len, usr_len: 32, has_descriptor };
        let mut session = Session::new(1);
        opened(&mut session, "disk");
        let _ = session.handle_message(&request, &message);
    }
}
