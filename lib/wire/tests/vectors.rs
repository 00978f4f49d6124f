//! Every vector of `test/protocol-vectors.json`, in both directions.

use rnbd_base::Errno;
use rnbd_wire::rnbd::{
    AccessMode, CachePolicy, Close, Io, IoFlags, Op, Open, OpenRsp, SessInfo, SessInfoRsp,
};
use rnbd_wire::rtrs::{
    ConReq, ConRsp, Descriptor, InfoReq, InfoRsp, PathParameters, ReadFlags, ReadMsg, RkeyRsp,
    WriteMsg,
};
use rnbd_wire::{Imm, ImmLayout, Name, rnbd, rtrs};
use serde_json::Value;

struct Vector {
    name: String,
    kind: String,
    json: Value,
    bytes: Vec<u8>,
}

impl Vector {
    fn new(json: &Value) -> Self {
        Self {
            name: text(json, "name"),
            kind: text(json, "struct"),
            bytes: unhex(&text(json, "hex")),
            json: json.clone(),
        }
    }

    fn number<T: TryFrom<i64>>(&self, field: &str) -> T {
        number(&self.json["fields"], field)
    }

    fn text(&self, field: &str) -> String {
        text(&self.json["fields"], field)
    }

    fn uuid(&self, field: &str) -> [u8; 16] {
        let bytes = unhex(&self.text(field).replace('-', ""));
        bytes.try_into().expect("a uuid has 16 bytes")
    }

    fn descriptors(&self) -> Vec<Descriptor> {
        let list = self.json["fields"]["desc"].as_array().expect("a list");
        let descriptor = |json| Descriptor {
            addr: u64::from_str_radix(&text(json, "addr")[2..], 16).expect("hexadecimal"),
            key: u32::from_str_radix(&text(json, "key")[2..], 16).expect("hexadecimal"),
            len: number(json, "len"),
        };
        list.iter().map(descriptor).collect()
    }

    fn check(&self) {
        match self.kind.as_str() {
            "rtrs_msg_conn_req" => self.check_con_req(&self.bytes),
            "cm_req_private_data" => self.check_padded_con_req(),
            "rtrs_msg_conn_rsp" => self.check_con_rsp(),
            "rtrs_msg_info_req" => self.check_info_req(),
            "rtrs_msg_info_rsp" => self.check_info_rsp(),
            "rtrs_msg_rkey_rsp" => self.check_rkey_rsp(),
            "rtrs_msg_rdma_write" => self.check_write(),
            "rtrs_msg_rdma_read" => self.check_read(),
            "rnbd_msg_sess_info" => self.check_sess_info(),
            "rnbd_msg_sess_info_rsp" => self.check_sess_info_rsp(),
            "rnbd_msg_open" => self.check_open(),
            "rnbd_msg_open_rsp" => self.check_open_rsp(),
            "rnbd_msg_close" => self.check_close(),
            "rnbd_msg_io" => self.check_io(),
            "imm" => self.check_imm(),
            "chunk_write" => self.check_chunk_write(),
            unknown => panic!("{}: no test for {unknown}", self.name),
        }
    }

    fn check_con_req(&self, bytes: &[u8]) {
        let message = ConReq {
            cid: self.number("cid"),
            cid_num: self.number("cid_num"),
            recon_cnt: self.number("recon_cnt"),
            sess_uuid: self.uuid("sess_uuid"),
            paths_uuid: self.uuid("paths_uuid"),
            first_conn: self.number::<u8>("first_conn") == 1,
            extension: None,
        };
        assert_eq!(message.to_bytes(), bytes, "{}", self.name);
        assert_eq!(ConReq::decode(bytes), Ok(message), "{}", self.name);
    }

    /// The connection manager's own header precedes the message and never reaches its receiver.
    fn check_padded_con_req(&self) {
        let message = ConReq::decode(&self.bytes[36..]).expect("a CON_REQ");
        assert_eq!(message.to_bytes(), self.bytes[36..], "{}", self.name);
    }

    fn check_con_rsp(&self) {
        let message = match self.number::<i32>("errno") {
            0 => ConRsp::Accept(PathParameters {
                queue_depth: self.number("queue_depth"),
                max_io_size: self.number("max_io_size"),
                max_hdr_size: self.number("max_hdr_size"),
                new_rkey: self.number::<u32>("flags") == 2,
                extension: None,
            }),
            errno => ConRsp::Reject(Errno::from_raw(errno)),
        };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(ConRsp::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_info_req(&self) {
        let pathname = Name::new(self.text("pathname")).expect("a name");
        let message = InfoReq { pathname };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(InfoReq::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_info_rsp(&self) {
        let descriptors = self.descriptors();
        let mut out = [0xa5; 256];
        let len = InfoRsp::encode(&descriptors, None, &mut out);
        assert_eq!(out[..len], self.bytes, "{}", self.name);
        let decoded = InfoRsp::decode(&self.bytes).expect("an INFO_RSP");
        assert!(decoded.descriptors().eq(descriptors), "{}", self.name);
    }

    fn check_rkey_rsp(&self) {
        let message = RkeyRsp {
            buf_id: self.number("buf_id"),
            rkey: self.number("rkey"),
        };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(RkeyRsp::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_write(&self) {
        let message = WriteMsg {
            usr_len: self.number("usr_len"),
        };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(WriteMsg::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_read(&self) {
        let message = ReadMsg {
            usr_len: self.number("usr_len"),
            flags: ReadFlags::from_bits_retain(self.number("flags")),
            descriptor: self.descriptors().first().copied(),
        };
        let mut out = [0xa5; ReadMsg::BYTES_MAX];
        let len = message.encode(&mut out);
        assert_eq!(out[..len], self.bytes, "{}", self.name);
        assert_eq!(ReadMsg::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_sess_info(&self) {
        let ver = self.number("ver");
        assert_eq!(SessInfo { ver }.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(SessInfo::decode(&self.bytes), Ok(SessInfo { ver }));
    }

    fn check_sess_info_rsp(&self) {
        let ver = self.number("ver");
        assert_eq!(SessInfoRsp { ver }.to_bytes(), self.bytes[..]);
        assert_eq!(SessInfoRsp::decode(&self.bytes), Ok(SessInfoRsp { ver }));
    }

    fn check_open(&self) {
        let message = Open {
            access_mode: AccessMode::from_code(self.number("access_mode")).expect("a mode"),
            dev_name: Name::new(self.text("dev_name")).expect("a name"),
        };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(Open::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_open_rsp(&self) {
        let message = OpenRsp {
            device_id: self.number("device_id"),
            nsectors: self.number("nsectors"),
            max_hw_sectors: self.number("max_hw_sectors"),
            max_write_zeroes_sectors: self.number("max_write_zeroes_sectors"),
            max_discard_sectors: self.number("max_discard_sectors"),
            discard_granularity: self.number("discard_granularity"),
            discard_alignment: self.number("discard_alignment"),
            physical_block_size: self.number("physical_block_size"),
            logical_block_size: self.number("logical_block_size"),
            max_segments: self.number("max_segments"),
            secure_discard: self.number("secure_discard"),
            rotational: self.number("rotational"),
            cache_policy: CachePolicy::from_bits_retain(self.number("cache_policy")),
        };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(OpenRsp::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_close(&self) {
        let device_id = self.number("device_id");
        assert_eq!(Close { device_id }.to_bytes(), self.bytes[..]);
        assert_eq!(Close::decode(&self.bytes), Ok(Close { device_id }));
    }

    fn check_io(&self) {
        let [code, ..] = self.number::<u32>("rw").to_le_bytes();
        let message = Io {
            device_id: self.number("device_id"),
            sector: match &self.json["fields"]["sector"] {
                Value::String(hex) => u64::from_str_radix(&hex[2..], 16).expect("hexadecimal"),
                sector => sector.as_u64().expect("a number"),
            },
            op: Op::from_code(code).expect("an operation"),
            flags: IoFlags::from_bits_retain(self.number::<u32>("rw") & !0xff),
            bi_size: self.number("bi_size"),
            prio: self.number("prio"),
        };
        assert_eq!(message.to_bytes(), self.bytes[..], "{}", self.name);
        assert_eq!(Io::decode(&self.bytes), Ok(message), "{}", self.name);
    }

    fn check_imm(&self) {
        let fields = &self.json["fields"];
        let value = u32::from_be_bytes(self.bytes[..].try_into().expect("four bytes"));
        assert_eq!(format!("{value:#010x}"), text(&self.json, "value"));
        let queue_depth = fields
            .get("queue_depth")
            .map_or(512, |_| self.number("queue_depth"));
        let layout = ImmLayout::new(queue_depth).expect("a depth");
        match self.number::<u32>("type") {
            0 => self.check_request_imm(value, layout),
            1 => self.check_response_imm(value, layout, false),
            2 => self.check_response_imm(value, layout, true),
            8 => assert_eq!(
                (Imm::HEARTBEAT, layout.decode(value)),
                (value, Imm::Heartbeat)
            ),
            9 => assert_eq!(
                (Imm::HEARTBEAT_ACK, layout.decode(value)),
                (value, Imm::HeartbeatAck)
            ),
            unknown => panic!("{}: type {unknown}", self.name),
        }
    }

    fn check_request_imm(&self, value: u32, layout: ImmLayout) {
        let (msg_id, offset) = (self.number("msg_id"), self.number("off"));
        assert_eq!(
            layout.chunk_bits(),
            self.number::<u32>("chunk_bits"),
            "{}",
            self.name
        );
        assert_eq!(
            layout.mem_bits(),
            self.number::<u32>("mem_bits"),
            "{}",
            self.name
        );
        assert_eq!(layout.request(msg_id, offset), value, "{}", self.name);
        assert_eq!(
            layout.decode(value),
            Imm::Request { msg_id, offset },
            "{}",
            self.name
        );
    }

    fn check_response_imm(&self, value: u32, layout: ImmLayout, invalidated: bool) {
        let msg_id: u32 = self.number("msg_id");
        let status = match self.number::<i32>("errno") {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        };
        let expected = Imm::Response {
            msg_id,
            status,
            invalidated,
        };
        assert_eq!(layout.decode(value), expected, "{}", self.name);
        // The field has room for more indexes than a session has chunks; only those are sent.
        if let Ok(msg_id) = u16::try_from(msg_id) {
            assert_eq!(
                Imm::response(msg_id, status, invalidated),
                value,
                "{}",
                self.name
            );
        }
    }

    /// What a client writes into a chunk: data of a write, user message, RTRS header.
    fn check_chunk_write(&self) {
        let layout = ImmLayout::new(self.number("queue_depth")).expect("a depth");
        let offset: u32 = self.number("msg_off");
        let imm = layout.request(self.number("msg_id"), offset);
        assert_eq!(
            format!("{imm:#010x}"),
            text(&self.json, "imm"),
            "{}",
            self.name
        );

        let chunk_offset: usize = number(&self.json, "chunk_offset");
        let header_start = offset as usize - chunk_offset;
        let header = rtrs::Request::decode(&self.bytes[header_start..]).expect("a header");
        assert_eq!(
            header.usr_len(),
            self.number::<u16>("usr_len"),
            "{}",
            self.name
        );

        let user_start = header_start - usize::from(header.usr_len());
        let user = &self.bytes[user_start..header_start];
        assert_eq!(user_bytes(user), user, "{}", self.name);
        assert_eq!(
            header_bytes(header),
            self.bytes[header_start..],
            "{}",
            self.name
        );
    }
}

fn user_bytes(user: &[u8]) -> Vec<u8> {
    match rnbd::Request::decode(user).expect("a user message") {
        rnbd::Request::SessInfo(message) => message.to_bytes().to_vec(),
        rnbd::Request::Open(message) => message.to_bytes().to_vec(),
        rnbd::Request::Io(message) => message.to_bytes().to_vec(),
        rnbd::Request::Close(message) => message.to_bytes().to_vec(),
    }
}

fn header_bytes(header: rtrs::Request) -> Vec<u8> {
    match header {
        rtrs::Request::Write(message) => message.to_bytes().to_vec(),
        rtrs::Request::Read(message) => {
            let mut out = vec![0; message.bytes()];
            message.encode(&mut out);
            out
        }
    }
}

fn text(json: &Value, field: &str) -> String {
    json[field].as_str().expect("a string").to_owned()
}

/// A number that the file writes in decimal, or in hexadecimal as a string.
fn number<T: TryFrom<i64>>(json: &Value, field: &str) -> T {
    let value = match &json[field] {
        Value::String(hex) => i64::from_str_radix(&hex[2..], 16).expect("hexadecimal"),
        value => value
            .as_i64()
            .unwrap_or_else(|| panic!("{field} is no number")),
    };
    T::try_from(value).unwrap_or_else(|_| panic!("{field} is out of range"))
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair| {
        let text = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(text, 16).expect("hexadecimal")
    };
    digits.map(byte).collect()
}

#[test]
fn all_vectors_encode_and_decode() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../test/protocol-vectors.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 61);
    for json in vectors {
        Vector::new(json).check();
    }
}
