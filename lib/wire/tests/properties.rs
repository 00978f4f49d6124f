//! What holds for every message, and for every sequence of bytes.

use proptest::array::uniform16;
use proptest::prelude::*;
use rnbd_base::Errno;
use rnbd_wire::extension::{Agreement, Features, PathToken, ServiceId};
use rnbd_wire::rnbd::{
    AccessMode, CachePolicy, Close, Io, IoFlags, Op, Open, OpenRsp, SessInfo, SessInfoRsp,
};
use rnbd_wire::rtrs::{
    ConReq, ConRsp, Descriptor, InfoReq, InfoRsp, PathParameters, ReadFlags, ReadMsg, RkeyRsp,
};
use rnbd_wire::{DecodeError, Imm, ImmLayout, Name, decode_any, rnbd, rtrs};

fn features() -> impl Strategy<Value = Features> {
    any::<u16>().prop_map(Features::from_bits_truncate)
}

fn token() -> impl Strategy<Value = PathToken> {
    (1..1u32 << 28).prop_map(|token| PathToken::new(token).expect("28 bits, not 0"))
}

fn agreement() -> impl Strategy<Value = Agreement> {
    (features(), token(), any::<u64>()).prop_map(|(features, token, instance)| Agreement {
        features,
        token,
        instance,
    })
}

fn con_req() -> impl Strategy<Value = ConReq> {
    let cids = (1..=4096u16).prop_flat_map(|cid_num| (0..cid_num, Just(cid_num)));
    let uuids = (uniform16(any::<u8>()), uniform16(any::<u8>()));
    let extension = proptest::option::of(features());
    (cids, any::<u16>(), uuids, any::<bool>(), extension).prop_map(
        |((cid, cid_num), recon_cnt, (sess_uuid, paths_uuid), first_conn, extension)| ConReq {
            cid,
            cid_num,
            recon_cnt,
            sess_uuid,
            paths_uuid,
            first_conn,
            extension,
        },
    )
}

fn errno() -> impl Strategy<Value = Errno> {
    (1..=511i32).prop_map(Errno::from_raw)
}

fn status() -> impl Strategy<Value = Result<(), Errno>> {
    prop_oneof![Just(Ok(())), errno().prop_map(Err)]
}

fn con_rsp() -> impl Strategy<Value = ConRsp> {
    let numbers = any::<(u16, u32, u32, bool)>();
    let accept = (numbers, proptest::option::of(agreement())).prop_map(
        |((queue_depth, max_io_size, max_hdr_size, new_rkey), extension)| {
            ConRsp::Accept(PathParameters {
                queue_depth,
                max_io_size,
                max_hdr_size,
                new_rkey,
                extension,
            })
        },
    );
    prop_oneof![accept, errno().prop_map(ConRsp::Reject)]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    (any::<u64>(), any::<u32>(), 1..=u32::MAX).prop_map(|(addr, key, len)| Descriptor {
        addr,
        key,
        len,
    })
}

fn io() -> impl Strategy<Value = Io> {
    let op = (0..=5u8).prop_map(|code| Op::from_code(code).expect("a known code"));
    (any::<(u32, u64, u32, u16)>(), op, any::<u32>()).prop_map(
        |((device_id, sector, bi_size, prio), op, flags)| Io {
            device_id,
            sector,
            op,
            flags: IoFlags::from_bits_truncate(flags),
            bi_size,
            prio,
        },
    )
}

fn name() -> impl Strategy<Value = Name> {
    proptest::collection::vec(1..=u8::MAX, 1..=254)
        .prop_map(|bytes| Name::new(bytes).expect("no NUL"))
}

fn session_name() -> impl Strategy<Value = Name> {
    proptest::string::string_regex("[a-zA-Z0-9@:_-]{1,254}")
        .expect("a regular expression")
        .prop_map(|text| Name::new(text).expect("no NUL"))
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        decode_any(&bytes);
    }

    /// Random bytes seldom get past the type; these do.
    #[test]
    fn decoders_take_any_bytes_after_a_valid_type(
        kind in 0..6u16,
        rest in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        decode_any(&[&kind.to_le_bytes()[..], &rest].concat());
    }

    #[test]
    fn no_message_decodes_when_its_last_needed_byte_is_missing(io in io(), name in name()) {
        let open = Open { access_mode: AccessMode::ReadOnly, dev_name: name };
        prop_assert!(Io::decode(&io.to_bytes()[..Io::BYTES_MIN - 1]).is_err());
        prop_assert!(Open::decode(&open.to_bytes()[..Open::BYTES_MIN - 1]).is_err());
    }

    /// Where addresses are GIDs the connection manager writes 0 over the first byte, reads the second
    /// and fills up to 92 bytes (protocol.md 3.1, 3.3).
    #[test]
    fn con_req_round_trips(message in con_req(), padding in any::<[u8; 36]>()) {
        let padded = [&message.to_bytes()[..], &padding].concat();
        prop_assert_eq!(&padded[..2], &[0, 0]);
        prop_assert_eq!(padded.len(), 92);
        prop_assert_eq!(ConReq::decode(&padded), Ok(message));
    }

    #[test]
    fn con_rsp_round_trips(message in con_rsp()) {
        prop_assert_eq!(ConRsp::decode(&message.to_bytes()), Ok(message));
    }

    /// What a kernel sends, and ignores (protocol.md 3.3, 3.4).
    #[test]
    fn nothing_of_the_extension_is_said_to_who_does_not_offer_it(
        request in con_req(),
        response in con_rsp(),
    ) {
        let request = ConReq { extension: None, ..request };
        prop_assert_eq!(&request.to_bytes()[45..], &[0; 11]);
        let response = match response {
            ConRsp::Accept(path) => ConRsp::Accept(PathParameters { extension: None, ..path }),
            reject => reject,
        };
        prop_assert_eq!(&response.to_bytes()[20..], &[0; 36]);
    }

    #[test]
    fn reserved_bytes_without_the_magic_are_no_offer(
        request in con_req(),
        reserved in any::<[u8; 11]>(),
    ) {
        prop_assume!(reserved[3..7] != *b"RNBX");
        let mut bytes = request.to_bytes();
        bytes[45..].copy_from_slice(&reserved);
        let expected = ConReq { extension: None, ..request };
        prop_assert_eq!(ConReq::decode(&bytes), Ok(expected));
    }

    #[test]
    fn features_from_the_future_are_not_agreed_to(request in con_req(), bits: u16) {
        let request = ConReq { extension: Some(Features::empty()), ..request };
        let mut bytes = request.to_bytes();
        bytes[52..54].copy_from_slice(&bits.to_le_bytes());
        let extension = Some(Features::from_bits_truncate(bits));
        prop_assert_eq!(ConReq::decode(&bytes), Ok(ConReq { extension, ..request }));
    }

    #[test]
    fn fence_immediates_round_trip(queue_depth in 1..=u16::MAX, token in token()) {
        let layout = ImmLayout::new(queue_depth).unwrap();
        prop_assert_eq!(layout.decode(Imm::fence(token)), Imm::Fence(token));
        prop_assert_eq!(layout.decode(Imm::fenced(token)), Imm::Fenced(token));
    }

    #[test]
    fn info_req_round_trips(pathname in session_name()) {
        let message = InfoReq { pathname };
        prop_assert_eq!(InfoReq::decode(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn info_rsp_round_trips(
        descriptors in proptest::collection::vec(descriptor(), 1..600),
        service: u32,
    ) {
        let service = ServiceId::new(service);
        let mut out = vec![0xa5; 8 + 16 * 600];
        let len = InfoRsp::encode(&descriptors, service, &mut out);
        let decoded = InfoRsp::decode(&out[..len]).unwrap();
        prop_assert_eq!(decoded.service(), service);
        prop_assert!(decoded.descriptors().eq(descriptors));
        prop_assert!(InfoRsp::decode(&out[..len - 1]).is_err());
    }

    #[test]
    fn read_round_trips(
        usr_len: u16,
        need_inval: bool,
        descriptor in proptest::option::of(descriptor()),
    ) {
        let flags = if need_inval { ReadFlags::NEED_INVAL } else { ReadFlags::empty() };
        let message = ReadMsg { usr_len, flags, descriptor };
        let mut out = [0xa5; ReadMsg::BYTES_MAX];
        let len = message.encode(&mut out);
        prop_assert_eq!(rtrs::Request::decode(&out[..len]), Ok(rtrs::Request::Read(message)));
        prop_assert!(ReadMsg::decode(&out[..len - 1]).is_err());
    }

    #[test]
    fn rkey_rsp_round_trips(buf_id: u16, rkey: u32) {
        let message = RkeyRsp { buf_id, rkey };
        prop_assert_eq!(RkeyRsp::decode(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn io_round_trips_and_ignores_padding(message in io(), garbage: u8) {
        let mut bytes = message.to_bytes();
        bytes[2..4].fill(garbage);
        bytes[26..].fill(garbage);
        prop_assert_eq!(rnbd::Request::decode(&bytes), Ok(rnbd::Request::Io(message)));
    }

    #[test]
    fn io_without_room_for_a_priority_has_none(message in io(), len in 24..32usize) {
        let expected = Io { prio: 0, ..message };
        prop_assert_eq!(Io::decode(&message.to_bytes()[..len]), Ok(expected));
    }

    #[test]
    fn flags_from_the_future_are_ignored(message in io(), flags: u32) {
        let mut bytes = message.to_bytes();
        let rw = u32::from(message.op.code()) | flags << 8;
        bytes[16..20].copy_from_slice(&rw.to_le_bytes());
        let flags = IoFlags::from_bits_truncate(flags << 8);
        prop_assert_eq!(Io::decode(&bytes), Ok(Io { flags, ..message }));
    }

    #[test]
    fn operations_from_the_future_are_not_supported(message in io(), code in 6..=u8::MAX) {
        let mut bytes = message.to_bytes();
        bytes[16] = code;
        let error = rnbd::Request::decode(&bytes).unwrap_err();
        prop_assert_eq!(error, DecodeError::UnknownOperation { code });
        prop_assert_eq!(error.errno(), Errno::OPNOTSUPP);
    }

    #[test]
    fn open_round_trips_and_ignores_what_follows_the_name(
        mode in 0..=2u8,
        dev_name in name(),
        garbage: u8,
    ) {
        let access_mode = AccessMode::from_code(mode).unwrap();
        let message = Open { access_mode, dev_name };
        let mut bytes = message.to_bytes();
        bytes[6 + dev_name.as_bytes().len() + 1..].fill(garbage);
        prop_assert_eq!(rnbd::Request::decode(&bytes), Ok(rnbd::Request::Open(message)));
    }

    #[test]
    fn open_rsp_round_trips(
        (device_id, nsectors, limits, sizes, cache)
            in any::<(u32, u64, [u32; 5], [u16; 4], u8)>(),
    ) {
        let message = OpenRsp {
            device_id,
            nsectors,
            max_hw_sectors: limits[0],
            max_write_zeroes_sectors: limits[1],
            max_discard_sectors: limits[2],
            discard_granularity: limits[3],
            discard_alignment: limits[4],
            physical_block_size: sizes[0],
            logical_block_size: sizes[1],
            max_segments: sizes[2],
            secure_discard: sizes[3],
            rotational: cache,
            cache_policy: CachePolicy::from_bits_truncate(cache),
        };
        prop_assert_eq!(OpenRsp::decode(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn small_messages_round_trip(device_id: u32, ver: u8) {
        prop_assert_eq!(Close::decode(&Close { device_id }.to_bytes()), Ok(Close { device_id }));
        prop_assert_eq!(SessInfo::decode(&SessInfo { ver }.to_bytes()), Ok(SessInfo { ver }));
        prop_assert_eq!(
            SessInfoRsp::decode(&SessInfoRsp { ver }.to_bytes()),
            Ok(SessInfoRsp { ver })
        );
    }

    #[test]
    fn request_immediates_round_trip(queue_depth in 1..=u16::MAX, id: u16, position: u32) {
        let layout = ImmLayout::new(queue_depth).unwrap();
        let msg_id = id % queue_depth;
        let offset = position & ((1 << layout.mem_bits()) - 1);
        let imm = layout.request(msg_id, offset);
        prop_assert_eq!(layout.decode(imm), Imm::Request { msg_id, offset });
    }

    #[test]
    fn response_immediates_round_trip(id: u16, status in status(), invalidated: bool) {
        let layout = ImmLayout::new(512).unwrap();
        let imm = Imm::response(id, status, invalidated);
        let expected = Imm::Response { msg_id: id.into(), status, invalidated };
        prop_assert_eq!(layout.decode(imm), expected);
    }
}

#[test]
fn a_peer_of_another_protocol_or_version_is_named() {
    let good = ConRsp::Reject(Errno::BUSY).to_bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        ConRsp::decode(&bytes).unwrap_err().to_string()
    };
    assert_eq!(with(0, 0), "magic is 0x1b00, not 0x1bbd");
    assert_eq!(with(3, 3), "version is 3.0, not 2.x");
    assert!(ConRsp::decode(&[]).is_err());
}

#[test]
fn an_agreement_without_a_path_token_is_named() {
    let mut bytes = ConRsp::Accept(PathParameters {
        queue_depth: 512,
        max_io_size: 126_976,
        max_hdr_size: 4096,
        new_rkey: false,
        extension: Some(Agreement {
            features: Features::FENCE,
            token: PathToken::FIRST,
            instance: 7,
        }),
    })
    .to_bytes();
    assert_eq!(bytes[20..24], *b"RNBX");
    bytes[28] = 0;
    let error = ConRsp::decode(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "path token is 0, not within 1 … 268435455"
    );
}

#[test]
fn a_connection_index_past_the_number_of_connections_is_named() {
    let mut bytes = ConReq {
        cid: 4,
        cid_num: 5,
        recon_cnt: 1,
        sess_uuid: [1; 16],
        paths_uuid: [2; 16],
        first_conn: true,
        extension: None,
    }
    .to_bytes();
    bytes[6] = 5;
    let error = ConReq::decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "cid is 5, not within 0 … 4");
    bytes[8] = 0;
    assert!(ConReq::decode(&bytes).is_err());
}
