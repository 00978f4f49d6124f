use proptest::prelude::*;
use rnbd_base::Errno;
use rnbd_bdev::IoOp;
use rnbd_rtrs::clt::Direction;
use rnbd_wire::Name;
use rnbd_wire::rnbd::{AccessMode, CachePolicy, Open, OpenRsp, Request, SessInfoRsp};

use super::{Client, ClientEvent, DeviceIndex, DeviceInfo, DeviceState, IoPlan};

/// A CLOSE of the device with id 7.
const CLOSE_7: [u8; 8] = [5, 0, 0, 0, 7, 0, 0, 0];

/// A vector of the protocol's reference, as bytes.
fn vector(name: &str) -> Vec<u8> {
    let all = include_str!("../../../../test/protocol-vectors.json");
    let (_, vector) = all.split_once(&format!("\"name\": \"{name}\"")).unwrap();
    let (_, hex) = vector.split_once("\"hex\": \"").unwrap();
    let (hex, _) = hex.split_once('"').unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn rsp(device_id: u32, blocks: u64) -> OpenRsp {
    OpenRsp {
        device_id,
        nsectors: blocks * 8,
        max_write_zeroes_sectors: 64,
        max_discard_sectors: 128,
        discard_granularity: 4096,
        physical_block_size: 4096,
        logical_block_size: 4096,
        cache_policy: CachePolicy::WRITE_BACK,
        ..OpenRsp::default()
    }
}

fn info() -> DeviceInfo {
    DeviceInfo::from_open_rsp(&rsp(7, 1000)).unwrap()
}

fn events(client: &mut Client) -> Vec<ClientEvent> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

/// A client whose session came up and agreed on its version.
fn up() -> Client {
    let mut client = Client::new();
    client.handle_session_up();
    let message = client.poll_message().unwrap();
    assert_eq!(message.as_bytes(), vector("rnbd_sess_info"));
    assert_eq!(
        (message.direction, message.answer_bytes),
        (Direction::Read, 36)
    );
    assert!(client.poll_message().is_none(), "one message at a time");
    client.handle_answer(Ok(&vector("rnbd_sess_info_rsp")));
    client
}

/// A client with one open device.
fn with_device() -> (Client, DeviceIndex) {
    let mut client = up();
    let index = client.map(name("ram0"), AccessMode::ReadWrite).unwrap();
    assert_eq!(
        client.poll_message().unwrap().as_bytes(),
        vector("rnbd_open_rw")
    );
    client.handle_answer(Ok(&rsp(7, 1000).to_bytes()));
    assert_eq!(events(&mut client), [ClientEvent::Opened(index, info())]);
    (client, index)
}

/// The session is lost and comes up again; the device is answered with `answer`.
fn reopen(client: &mut Client, answer: Result<&[u8], Errno>) -> Vec<ClientEvent> {
    client.handle_session_down();
    assert_eq!(events(client), [ClientEvent::Closed(DeviceIndex(0))]);
    assert!(client.poll_message().is_none());
    client.handle_session_up();
    client.poll_message().unwrap();
    client.handle_answer(Ok(&SessInfoRsp { ver: 2 }.to_bytes()));
    let open = client.poll_message().unwrap();
    assert_eq!(
        open.as_bytes(),
        vector("rnbd_open_rw"),
        "with its access mode"
    );
    client.handle_answer(answer);
    events(client)
}

#[test]
fn devices_are_opened_again_after_a_reconnect_and_may_have_grown() {
    let (mut client, index) = with_device();
    let grown = rsp(3, 2000);
    let events = reopen(&mut client, Ok(&grown.to_bytes()));
    let info = DeviceInfo::from_open_rsp(&grown).unwrap();
    assert_eq!(events, [ClientEvent::Opened(index, info)]);
    assert_eq!((info.device_id, info.num_blocks), (3, 2000));
}

#[test]
fn another_geometry_is_not_used_and_closed_on_the_server() {
    let mut other = rsp(0, 1000);
    other.logical_block_size = 512;
    for answer in [rsp(0, 999), other] {
        let (mut client, index) = with_device();
        let events = reopen(&mut client, Ok(&answer.to_bytes()));
        assert!(matches!(events[..], [ClientEvent::Unusable(device, _)] if device == index));
        let state = client.device(index).unwrap().state;
        assert_eq!(state, DeviceState::Failed(Errno::NODEV));
        assert_eq!(
            client.poll_message().unwrap().as_bytes(),
            vector("rnbd_close")
        );
    }
}

#[test]
fn a_device_that_is_refused_after_a_reconnect_keeps_its_errno() {
    let (mut client, index) = with_device();
    let events = reopen(&mut client, Err(Errno::PERM));
    assert_eq!(events, [ClientEvent::OpenFailed(index, Errno::PERM)]);
    assert_eq!(
        client.device(index).unwrap().state,
        DeviceState::Failed(Errno::PERM)
    );
}

#[test]
fn a_device_that_was_never_open_is_forgotten_with_the_session() {
    let mut client = up();
    let index = client.map(name("ram0"), AccessMode::ReadOnly).unwrap();
    client.poll_message().unwrap();
    client.handle_session_down();
    assert_eq!(
        events(&mut client),
        [ClientEvent::OpenFailed(index, Errno::NOTCONN)]
    );
    assert!(client.device(index).is_none());
    assert_eq!(
        client.map(name("ram0"), AccessMode::ReadOnly),
        Err(Errno::NOTCONN)
    );
}

#[test]
fn unmapping_closes_the_device_on_the_server() {
    let (mut client, index) = with_device();
    client.unmap(index).unwrap();
    assert_eq!(client.unmap(index), Err(Errno::ALREADY));
    let message = client.poll_message().unwrap();
    assert_eq!(message.as_bytes(), CLOSE_7);
    assert_eq!(
        (message.direction, message.answer_bytes),
        (Direction::Write, 0)
    );
    client.handle_answer(Ok(&[]));
    assert_eq!(events(&mut client), [ClientEvent::Unmapped(index)]);
    assert_eq!(client.unmap(index), Err(Errno::NODEV));
}

#[test]
fn unmapping_needs_no_server_while_the_session_is_down() {
    let (mut client, index) = with_device();
    client.handle_session_down();
    events(&mut client);
    client.unmap(index).unwrap();
    assert_eq!(events(&mut client), [ClientEvent::Unmapped(index)]);
}

#[test]
fn a_late_answer_is_not_taken_for_another_device() {
    let mut client = up();
    let index = client.map(name("ram0"), AccessMode::ReadWrite).unwrap();
    client.poll_message().unwrap();
    client.unmap(index).unwrap();
    let other = client.map(name("ram1"), AccessMode::ReadWrite).unwrap();
    assert_ne!(other, index);
    events(&mut client);
    client.handle_answer(Ok(&rsp(7, 1000).to_bytes()));
    assert_eq!(events(&mut client), []);
    let message = client.poll_message().unwrap();
    assert_eq!(message.as_bytes(), CLOSE_7, "the late one is closed again");
}

#[test]
fn a_late_answer_is_closed_before_the_same_name_is_opened_again() {
    let mut client = up();
    let index = client.map(name("ram0"), AccessMode::ReadWrite).unwrap();
    client.poll_message().unwrap();
    client.unmap(index).unwrap();
    client.map(name("ram0"), AccessMode::ReadWrite).unwrap();
    client.handle_answer(Ok(&rsp(7, 1000).to_bytes()));
    assert_eq!(client.poll_message().unwrap().as_bytes(), CLOSE_7);
    client.handle_answer(Ok(&[]));
    assert_eq!(
        client.poll_message().unwrap().as_bytes(),
        vector("rnbd_open_rw")
    );
}

#[test]
fn a_device_that_was_closed_is_closed_at_the_server_when_it_is_unmapped() {
    let (mut client, index) = with_device();
    client.handle_not_connected(index, 1);
    events(&mut client);
    client.reopen(index).unwrap();
    client.poll_message().unwrap();
    client.unmap(index).unwrap();
    client.handle_answer(Ok(&rsp(8, 1000).to_bytes()));
    let message = client.poll_message().unwrap();
    assert_eq!(message.as_bytes(), [5, 0, 0, 0, 8, 0, 0, 0]);
    client.handle_answer(Ok(&[]));
    assert!(events(&mut client).contains(&ClientEvent::Unmapped(index)));
}

#[test]
fn the_id_of_a_device_that_the_server_closed_may_be_another_device_by_now() {
    let (mut client, index) = with_device();
    client.handle_not_connected(index, 1);
    client.map(name("ram1"), AccessMode::ReadWrite).unwrap();
    client.poll_message().unwrap();
    client.handle_answer(Ok(&rsp(7, 1000).to_bytes()));
    events(&mut client);
    client.unmap(index).unwrap();
    assert_eq!(client.poll_message(), None);
    assert_eq!(events(&mut client), [ClientEvent::Unmapped(index)]);
}

#[test]
fn what_is_said_of_an_earlier_opening_leaves_the_present_one_alone() {
    let (mut client, index) = with_device();
    assert_eq!(client.device(index).unwrap().opening, 1);
    client.reopen(index).unwrap();
    client.poll_message().unwrap();
    client.handle_answer(Ok(&rsp(7, 1000).to_bytes()));
    events(&mut client);
    client.handle_not_connected(index, 1);
    assert_eq!(events(&mut client), []);
    client.handle_not_connected(index, 2);
    assert_eq!(events(&mut client), [ClientEvent::Closed(index)]);
}

#[test]
fn a_message_that_was_lost_with_its_path_is_sent_again() {
    let mut client = up();
    client.map(name("ram0"), AccessMode::ReadWrite).unwrap();
    let open = client.poll_message().unwrap();
    assert_eq!(client.poll_message(), None);
    client.handle_lost();
    assert_eq!(client.poll_message(), Some(open));
}

#[test]
fn a_session_that_is_up_again_awaits_no_old_answer() {
    let (mut client, index) = with_device();
    client.reopen(index).unwrap();
    client.poll_message().unwrap();
    client.handle_session_up();
    assert!(client.poll_message().is_some());
}

#[test]
fn a_device_is_mapped_once() {
    let (mut client, _) = with_device();
    assert_eq!(
        client.map(name("ram0"), AccessMode::ReadOnly),
        Err(Errno::EXIST)
    );
}

#[test]
fn absurd_answers_to_open_are_refused() {
    let is_refused = |change: fn(&mut OpenRsp)| {
        let mut answer = rsp(0, 1000);
        change(&mut answer);
        DeviceInfo::from_open_rsp(&answer).is_err()
    };
    assert!(!is_refused(|_| {}));
    assert!(is_refused(|rsp| rsp.logical_block_size = 0));
    assert!(is_refused(|rsp| rsp.logical_block_size = 513));
    assert!(is_refused(|rsp| rsp.logical_block_size = 256));
    assert!(is_refused(|rsp| rsp.logical_block_size = 8192));
    assert!(is_refused(|rsp| rsp.physical_block_size = 512));
    assert!(is_refused(|rsp| rsp.nsectors = 9));
    assert!(is_refused(|rsp| rsp.nsectors = u64::MAX - 7));
}

#[test]
fn ios_are_the_references() {
    let mut rsp = rsp(0, 1 << 20);
    (rsp.logical_block_size, rsp.physical_block_size) = (512, 512);
    (rsp.max_discard_sectors, rsp.max_write_zeroes_sectors) = (1 << 20, 1 << 20);
    let info = DeviceInfo::from_open_rsp(&rsp).unwrap();
    let cases = [
        ("rnbd_io_read", IoOp::Read, 2048, 8, Direction::Read, 4096),
        (
            "rnbd_io_write",
            IoOp::Write { fua: false },
            2048,
            8,
            Direction::Write,
            4096,
        ),
        (
            "rnbd_io_write_fua",
            IoOp::Write { fua: true },
            2048,
            8,
            Direction::Write,
            4096,
        ),
        ("rnbd_io_flush_v0", IoOp::Flush, 0, 0, Direction::Read, 0),
        (
            "rnbd_io_discard",
            IoOp::Unmap,
            4096,
            2048,
            Direction::Write,
            0,
        ),
        (
            "rnbd_io_write_zeroes",
            IoOp::WriteZeroes { no_unmap: false },
            4096,
            2048,
            Direction::Write,
            0,
        ),
        (
            "rnbd_io_write_zeroes_nounmap",
            IoOp::WriteZeroes { no_unmap: true },
            4096,
            2048,
            Direction::Write,
            0,
        ),
    ];
    for (name, op, offset, blocks, direction, data_bytes) in cases {
        let plan = IoPlan::new(&info, 126_976, op, offset, blocks, 0).unwrap();
        let IoPlan::Send {
            message,
            direction: way,
            data_bytes: bytes,
        } = plan
        else {
            panic!("{name} is nothing");
        };
        assert_eq!(message.to_bytes().to_vec(), vector(name), "{name}");
        assert_eq!((way, bytes), (direction, data_bytes), "{name}");
    }
}

#[test]
fn what_the_server_did_not_announce_is_not_sent() {
    let mut rsp = rsp(0, 1000);
    (rsp.max_discard_sectors, rsp.max_write_zeroes_sectors) = (0, 0);
    rsp.cache_policy = CachePolicy::empty();
    let info = DeviceInfo::from_open_rsp(&rsp).unwrap();
    let plan = |op| IoPlan::new(&info, 126_976, op, 0, 1, 0);
    assert_eq!(plan(IoOp::Unmap), Err(Errno::OPNOTSUPP));
    assert_eq!(
        plan(IoOp::WriteZeroes { no_unmap: false }),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(plan(IoOp::Flush), Ok(IoPlan::Nothing));
}

#[test]
fn what_one_request_cannot_carry_is_refused() {
    let plan = |op, blocks| IoPlan::new(&info(), 8192, op, 0, blocks, 0);
    assert!(plan(IoOp::Read, 2).is_ok());
    assert_eq!(plan(IoOp::Read, 3), Err(Errno::MSGSIZE));
    assert_eq!(plan(IoOp::Unmap, 17), Err(Errno::MSGSIZE));
    assert_eq!(
        plan(IoOp::Write { fua: false }, u64::MAX),
        Err(Errno::MSGSIZE)
    );
    assert_eq!(
        IoPlan::new(&info(), 8192, IoOp::Read, u64::MAX, 1, 0),
        Err(Errno::INVAL)
    );
}

#[derive(Clone, Debug)]
enum Input {
    Up,
    Down,
    Map(u8),
    Unmap(u16),
    Reopen(u16),
    Poll,
    Answer(Result<Vec<u8>, Errno>),
    NotConnected(u16),
    Lost,
}

fn any_input() -> impl Strategy<Value = Input> {
    let open = (any::<u32>(), 990..1010_u64).prop_map(|(id, blocks)| rsp(id, blocks).to_bytes());
    let answer = prop_oneof![
        open.prop_map(|bytes| Ok(bytes.to_vec())),
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(Ok),
        Just(Err(Errno::IO)),
    ];
    prop_oneof![
        1 => Just(Input::Up),
        1 => Just(Input::Down),
        1 => (0..4_u8).prop_map(Input::Map),
        1 => (0..4_u16).prop_map(Input::Unmap),
        1 => (0..4_u16).prop_map(Input::Reopen),
        3 => Just(Input::Poll),
        3 => answer.prop_map(Input::Answer),
        1 => (0..4_u16).prop_map(Input::NotConnected),
        1 => Just(Input::Lost),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_every_message_is_one_that_a_server_knows(
        inputs in proptest::collection::vec(any_input(), 0..80),
    ) {
        let mut client = Client::new();
        for input in inputs {
            match input {
                Input::Up => client.handle_session_up(),
                Input::Down => client.handle_session_down(),
                Input::Map(path) => {
                    let _ = client.map(name(&format!("ram{path}")), AccessMode::ReadWrite);
                }
                Input::Unmap(index) => drop(client.unmap(DeviceIndex(index))),
                Input::Reopen(index) => drop(client.reopen(DeviceIndex(index))),
                Input::Poll => {
                    if let Some(message) = client.poll_message() {
                        prop_assert!(Request::decode(message.as_bytes()).is_ok());
                        prop_assert!(message.as_bytes().len() <= Open::BYTES);
                    }
                }
                Input::Answer(answer) => {
                    client.handle_answer(answer.as_deref().map_err(|errno| *errno));
                }
                Input::NotConnected(index) => client.handle_not_connected(DeviceIndex(index), 1),
                Input::Lost => client.handle_lost(),
            }
            while client.poll_event().is_some() {}
        }
    }
}
