//! The chunk images of a kernel client, as the protocol's vectors have them.

use rnbd_proto::srv::Export;
use rnbd_wire::rtrs::{Descriptor, ReadMsg};
use serde_json::Value;

use crate::client::{Client, Identity, Image};
use crate::rig::{Options, Rig, Sim, World};

const VECTORS: &str = include_str!("../../../../test/protocol-vectors.json");

/// What the vectors open.
const EXPORT: &str = "ram0";

fn vector(name: &str) -> Value {
    let file: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    let found = vectors.iter().find(|vector| vector["name"] == name);
    found.unwrap().clone()
}

fn bytes_of(vector: &Value) -> Vec<u8> {
    let hex = vector["hex"].as_str().unwrap();
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn number(vector: &Value, field: &str) -> usize {
    usize::try_from(vector["fields"][field].as_u64().unwrap()).unwrap()
}

/// Plays a vector; returns its chunk. Only what no vector can know is changed in it: where this
/// client's buffer is, and its key.
fn play(rig: &mut Rig<Sim>, client: &mut Client<<Sim as World>::Fabric>, name: &str) -> u16 {
    let vector = vector(name);
    let msg_id = u16::try_from(number(&vector, "msg_id")).unwrap();
    let mut bytes = bytes_of(&vector);
    let data_len = number(&vector, "data_len");
    let has_descriptor = vector["fields"]["sg_cnt"] == 1;
    let rkey = has_descriptor.then(|| client.bind_window(0, msg_id, data_len));
    if let Some(rkey) = rkey {
        let at = bytes.len() - Descriptor::BYTES;
        let addr = client.dest_span(msg_id, data_len).addr();
        bytes[at..at + 8].copy_from_slice(&addr.to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&rkey.to_le_bytes());
        assert_eq!(bytes.len(), number(&vector, "usr_len") + ReadMsg::BYTES_MAX);
    }
    let image = Image {
        at: usize::try_from(vector["chunk_offset"].as_u64().unwrap()).unwrap(),
        bytes,
        header_at: u32::try_from(number(&vector, "msg_off")).unwrap(),
    };
    assert_eq!(
        format!("{:#010x}", client.request_imm(msg_id, image.header_at)),
        vector["imm"].as_str().unwrap()
    );
    client.post_image(0, msg_id, &image);
    let answer = rig.answer(client);
    assert_eq!(answer.msg_id, u32::from(msg_id));
    assert_eq!(answer.status, Ok(()), "{name}");
    assert_eq!(answer.invalidated, Vec::from_iter(rkey), "{name}");
    msg_id
}

#[test]
fn a_kernel_client_opens_writes_reads_and_closes() {
    for new_rkey in [false, true] {
        let mut options = Options::default();
        options.rtrs.queue_depth = 512;
        options.rtrs.chunk_bytes = 128 * 1024;
        options.rtrs.new_rkey = new_rkey;
        let mut rig = Rig::sim(options);
        let export = Export {
            allow_any_host: true,
            ..Export::new(EXPORT, "Malloc0")
        };
        rig.services.exports.create(export).unwrap();
        let mut client = rig.up(Identity::new("clt1-srv1", 1));

        play(&mut rig, &mut client, "wire_sess_info");
        let opened = play(&mut rig, &mut client, "wire_open_rw");
        assert_eq!(client.open_rsp(opened).device_id, 0);
        play(&mut rig, &mut client, "wire_write_512");
        play(&mut rig, &mut client, "wire_flush");
        let read = play(&mut rig, &mut client, "wire_read_512");
        let written = bytes_of(&vector("wire_write_512"));
        assert_eq!(
            client.data(read, 512),
            written[..512],
            "both at sector 2048"
        );
        play(&mut rig, &mut client, "wire_discard");
        assert_eq!(rig.sessions()[0].devices[0].counters.writes.bytes, 512);
        play(&mut rig, &mut client, "wire_close");
        assert!(rig.sessions()[0].devices.is_empty());
    }
}
