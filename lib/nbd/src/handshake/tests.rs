use proptest::prelude::*;

use super::*;

fn export() -> ExportFacts {
    ExportFacts {
        name: "disk".to_owned(),
        description: "a disk".to_owned(),
        size_bytes: 1 << 30,
        block_bytes: 512,
        preferred_bytes: 4096,
        read_only: false,
        trim: true,
    }
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(length_of(data).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = length_of(name.as_bytes()).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| data.extend(kind.to_be_bytes()));
    option_bytes(option::GO, &data)
}

/// A client that set `flags` and has sent `input` after them: all that the server says to it.
fn talk(flags: u32, input: &[u8]) -> (Vec<u8>, Outcome) {
    let mut output = Vec::new();
    let mut handshake = Handshake::start(&mut output);
    output.clear();
    let input = [&flags.to_be_bytes(), input].concat();
    let mut rest = &input[..];
    loop {
        let (taken, outcome) = handshake.advance(&export(), rest, &mut output);
        rest = &rest[taken..];
        if outcome != Outcome::Unfinished || taken == 0 {
            return (output, outcome);
        }
    }
}

/// Kinds and data of the answers to options.
fn answers(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<20>() {
        assert_eq!(header[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let length = u32::from_be_bytes(header[16..].try_into().unwrap()) as usize;
        all.push((kind, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    all
}

#[test]
fn export_name_is_answered_with_zeroes_unless_both_sides_do_without() {
    let (with, outcome) = talk(1, &option_bytes(option::EXPORT_NAME, b"disk"));
    assert_eq!(outcome, Outcome::Transmission { structured: false });
    assert_eq!(with.len(), 8 + 2 + 124);
    assert_eq!(with[..8], (1_u64 << 30).to_be_bytes());
    let (without, _) = talk(3, &option_bytes(option::EXPORT_NAME, b""));
    assert_eq!(without[..], with[..10]);
}

#[test]
fn an_unknown_name_closes_export_name_and_is_an_error_to_go() {
    let (said, outcome) = talk(3, &option_bytes(option::EXPORT_NAME, b"other"));
    assert!(said.is_empty() && matches!(outcome, Outcome::Closed(_)));
    let (said, outcome) = talk(3, &go("other", &[]));
    assert_eq!(answers(&said), [(option_reply::ERR_UNKNOWN, vec![])]);
    assert_eq!(outcome, Outcome::Unfinished);
}

#[test]
fn go_tells_size_flags_and_blocks_and_what_was_asked_for() {
    let structured = option_bytes(option::STRUCTURED_REPLY, &[]);
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    let (said, outcome) = talk(3, &[structured, go("disk", &wanted)].concat());
    assert_eq!(outcome, Outcome::Transmission { structured: true });
    let said = answers(&said);
    let kinds: Vec<u32> = said.iter().map(|(kind, _)| *kind).collect();
    let [ack, info_kind] = [option_reply::ACK, option_reply::INFO];
    assert_eq!(
        kinds,
        [ack, info_kind, info_kind, info_kind, info_kind, ack]
    );
    assert_eq!(said[1].1, [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 0b1110_1101]);
    assert_eq!(said[2].1, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert_eq!(said[3].1, b"\0\x01disk");
    assert_eq!(said[4].1, b"\0\x02a disk");
}

#[test]
fn a_read_only_export_offers_no_way_to_change_it() {
    let export = ExportFacts {
        read_only: true,
        ..export()
    };
    let flags = export.transmission_flags(false);
    let changes = transmission_flags::SEND_TRIM | transmission_flags::SEND_WRITE_ZEROES;
    assert_eq!(flags & changes, 0);
    assert_ne!(flags & transmission_flags::READ_ONLY, 0);
}

#[test]
fn list_names_the_export_and_malformed_options_are_errors() {
    let input = [
        option_bytes(option::LIST, &[]),
        option_bytes(option::LIST, b"x"),
        option_bytes(option::STRUCTURED_REPLY, b"x"),
        option_bytes(option::GO, &[0, 0, 0, 9, b'd']),
        option_bytes(5, &[]),
        option_bytes(option::ABORT, &[]),
    ];
    let (said, outcome) = talk(3, &input.concat());
    let said = answers(&said);
    assert_eq!(
        said[0],
        (option_reply::SERVER, b"\0\0\0\x04diska disk".to_vec())
    );
    let kinds: Vec<u32> = said[1..].iter().map(|(kind, _)| *kind).collect();
    let invalid = option_reply::ERR_INVALID;
    let (ack, unsupported) = (option_reply::ACK, option_reply::ERR_UNSUP);
    assert_eq!(kinds, [ack, invalid, invalid, invalid, unsupported, ack]);
    assert_eq!(outcome, Outcome::Closed("it ended the handshake"));
}

#[test]
fn strangers_are_noticed_at_their_first_wrong_byte() {
    assert!(matches!(talk(0x4745_5420, b"").1, Outcome::Closed(_)));
    assert!(matches!(talk(3, b"IHAVX").1, Outcome::Closed(_)));
    let endless = [&OPTION_MAGIC.to_be_bytes()[..], &[0xff; 8]].concat();
    assert!(matches!(talk(3, &endless).1, Outcome::Closed(_)));
}

proptest! {
    #[test]
    fn any_bytes_are_taken_within_bounds(flags in 0..4_u32, tail: Vec<u8>, number in 0..12_u32) {
        let (_, outcome) = talk(flags, &option_bytes(number, &tail));
        let (_, again) = talk(flags, &option_bytes(number, &tail));
        prop_assert_eq!(outcome, again);
    }

    #[test]
    fn how_the_input_is_cut_makes_no_difference(cut in 0..200_usize) {
        let input = [&3_u32.to_be_bytes()[..], &option_bytes(option::LIST, &[]), &go("disk", &[3])].concat();
        let cut = cut.min(input.len());
        let mut output = Vec::new();
        let mut handshake = Handshake::start(&mut output);
        let mut start = 0;
        let mut outcomes = Vec::new();
        for end in [cut, input.len()] {
            loop {
                let (taken, outcome) = handshake.advance(&export(), &input[start..end], &mut output);
                start += taken;
                if taken == 0 {
                    break;
                }
                outcomes.push(outcome);
            }
        }
        let last = outcomes.pop();
        prop_assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Unfinished));
        prop_assert_eq!(last, Some(Outcome::Transmission { structured: false }));
        prop_assert_eq!(start, input.len());
    }
}
