//! What Linux' own client and server said to each other, captured once by `test/vm/run golden`
//! (Linux 6.1, soft-RoCE): every message decodes, and encodes to the same bytes again, apart from
//! those that Linux leaves unset.

mod capture;
mod conversation;

use std::collections::BTreeMap;
use std::path::Path;

use capture::messages;
use conversation::Conversation;

/// Every kind of message that Linux 6.1 sends when all goes well, and an answer that says no.
const KINDS: [&str; 18] = [
    "CON_REQ",
    "CON_RSP",
    "INFO_REQ",
    "INFO_RSP",
    "SESS_INFO",
    "SESS_INFO_RSP",
    "OPEN",
    "OPEN_RSP",
    "CLOSE",
    "READ",
    "WRITE",
    "read",
    "write",
    "flush",
    "discard",
    "failure",
    "heartbeat",
    "heartbeat ack",
];

/// Compares all messages of a capture; returns how many there were of each kind.
fn compare(capture: &str) -> BTreeMap<&'static str, usize> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let file = std::fs::read(folder.join(capture)).expect("a capture beside this test");
    let mut conversation = Conversation::default();
    for message in messages(&file) {
        conversation.hear(&message);
    }
    let heard = conversation.heard();
    for kind in KINDS {
        assert!(heard.contains_key(kind), "no {kind} among {heard:?}");
    }
    heard
}

#[test]
fn kernel_peers_in_plain_mode_say_what_we_would() {
    let heard = compare("kernel-N.pcap");
    assert!(!heard.contains_key("RKEY_RSP"), "{heard:?}");
}

#[test]
fn kernel_peers_in_new_rkey_mode_say_what_we_would() {
    let heard = compare("kernel-Y.pcap");
    assert_eq!(heard["RKEY_RSP"], heard["success"] + heard["failure"]);
}
