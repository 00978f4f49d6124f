use proptest::prelude::*;
use rnbd_wire::rtrs::{ConRsp, Descriptor, InfoRsp, PathParameters};

use super::rig::{Rig, accept, vector};
use crate::clt::{ChunkTable, PathError, PathParams, SessionConfig, Violation};

fn said(change: impl FnOnce(&mut PathParameters)) -> Result<PathParams, PathError> {
    let mut params = accept(512, false);
    change(&mut params);
    PathParams::from_accept(&ConRsp::Accept(params).to_bytes())
}

#[test]
fn absurd_parameters_are_refused_before_anything_is_sized_by_them() {
    let is_violation = |result| {
        matches!(
            result,
            Err(PathError::Violation(Violation::ConnectionResponse(_)))
        )
    };
    assert!(said(|_| {}).is_ok());
    assert!(is_violation(said(|params| params.queue_depth = 0)));
    // CVE-2024-47695: the size of the header part ruled how far a clean-up loop ran.
    for bytes in [0, 511, (1 << 20) + 1, u32::MAX] {
        assert!(
            is_violation(said(|params| params.max_hdr_size = bytes)),
            "{bytes}"
        );
    }
    for bytes in [0, 4095, u32::MAX - 4096, u32::MAX] {
        assert!(
            is_violation(said(|params| params.max_io_size = bytes)),
            "{bytes}"
        );
    }
    assert!(
        is_violation(said(|params| params.queue_depth = u16::MAX)),
        "over 256 MiB"
    );
}

#[test]
fn strangers_and_other_versions_are_told_apart() {
    let mut bytes = vector("con_rsp_accept_no_inval");
    bytes[3] = 3;
    assert_eq!(
        PathParams::from_accept(&bytes),
        Err(PathError::Version(0x0300))
    );
    bytes[0] = 0;
    let magic = Violation::ConnectionResponse("wrong magic");
    assert_eq!(PathParams::from_accept(&bytes), Err(magic.into()));
    let short = Violation::ConnectionResponse("too short");
    assert_eq!(PathParams::from_accept(&bytes[..55]), Err(short.into()));
}

#[test]
fn all_connections_of_a_path_must_be_told_the_same() {
    let config = SessionConfig {
        channels: 2,
        ..SessionConfig::default()
    };
    let mut rig = Rig::new(config, accept(512, false));
    rig.start();
    rig.accept(0, &ConRsp::Accept(accept(512, false)).to_bytes());
    rig.accept(1, &ConRsp::Accept(accept(512, false)).to_bytes());
    rig.accept(2, &ConRsp::Accept(accept(256, false)).to_bytes());
    let violation = rig.path_error();
    assert!(matches!(
        violation,
        PathError::Violation(Violation::ConnectionResponse(_))
    ));
}

fn table(descriptors: &[(u64, u32)]) -> Result<ChunkTable, Violation> {
    let params = PathParams::from_accept(&ConRsp::Accept(accept(4, false)).to_bytes()).unwrap();
    let descriptor = |&(addr, len)| Descriptor { addr, key: 1, len };
    let descriptors: Vec<_> = descriptors.iter().map(descriptor).collect();
    let mut message = vec![0; InfoRsp::bytes(u16::try_from(descriptors.len()).unwrap())];
    InfoRsp::encode(&descriptors, None, &mut message);
    ChunkTable::from_info_rsp(&message, &params)
}

#[test]
fn descriptors_must_cover_the_chunks_exactly() {
    const CHUNK: u32 = 131_072;
    assert!(table(&[(0, 4 * CHUNK)]).is_ok());
    assert!(table(&[(0, 2 * CHUNK), (0, 2 * CHUNK)]).is_ok());
    let bad: [&[(u64, u32)]; 8] = [
        &[],
        &[(0, 3 * CHUNK)],
        &[(0, 5 * CHUNK)],
        &[(0, 4 * CHUNK - 1)],
        &[(0, 4 * CHUNK), (0, 0)],
        &[(0, CHUNK), (0, CHUNK), (0, 2 * CHUNK)],
        &[(0, CHUNK); 5],
        &[(u64::MAX - 4096, 4 * CHUNK)],
    ];
    for descriptors in bad {
        assert!(table(descriptors).is_err(), "{descriptors:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_of_a_server_never_panic(
        accept_bytes in proptest::collection::vec(any::<u8>(), 0..80),
        info_bytes in proptest::collection::vec(any::<u8>(), 0..200),
        depth in 1_u16..20,
    ) {
        let _ = PathParams::from_accept(&accept_bytes);
        let _ = PathError::from_reject(&accept_bytes);
        let params = ConRsp::Accept(accept(depth, false)).to_bytes();
        let params = PathParams::from_accept(&params).unwrap();
        if let Ok(table) = ChunkTable::from_info_rsp(&info_bytes, &params) {
            let all = crate::clt::PermitRange { first: 0, count: depth };
            prop_assert!(table.range(all).is_some());
        }
    }
}
