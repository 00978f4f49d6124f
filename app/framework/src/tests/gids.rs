//! Addresses of InfiniBand itself, where there is none.

use serde_json::{Value, json};

use super::Fixture;

const GID: &str = "gid:fe80::200:5aee:feaa:20a2";

fn fails(fixture: &Fixture, method: &str, params: Value, code: i64, text: &str) {
    let error = fixture.fail(method, params);
    assert_eq!(error.code, code, "{method}: {error}");
    assert!(error.message.contains(text), "{method}: {error}");
}

#[test]
fn a_gid_is_refused_over_tcp_by_name() {
    let fixture = Fixture::running();
    fixture.connect();
    let listen = |address: Value| json!({ "listen_address": address });
    let spellings = [
        json!({"trtype": "TCP", "traddr": GID}),
        json!({"trtype": "TCP", "traddr": GID, "adrfam": "ib"}),
        json!({"trtype": "TCP", "traddr": "fe80::1", "adrfam": "ib"}),
    ];
    for address in spellings {
        fails(&fixture, "rtrs_add_listener", listen(address), -95, "a GID");
    }
    let attach = json!({"name": "c1", "sessname": "other", "traddr": GID});
    fails(
        &fixture,
        "bdev_rnbd_attach_controller",
        attach,
        -95,
        "gid:fe80:0000:",
    );
    let path = json!({"name": "c0", "traddr": "fe80::1", "adrfam": "ib"});
    fails(&fixture, "bdev_rnbd_add_path", path, -95, "a GID");
    let controllers = fixture.ask("bdev_rnbd_get_controllers");
    assert_eq!(controllers.as_array().map(Vec::len), Some(1));
    assert_eq!(controllers[0]["paths"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_gid_and_an_ip_address_make_no_path() {
    let fixture = Fixture::running();
    let attach = |more: Value| {
        let mut params = json!({"name": "c0", "sessname": "client"});
        let all = params.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        params
    };
    let mixed = [
        json!({"traddr": GID, "hostaddr": "192.0.2.1"}),
        json!({"traddr": "192.0.2.1", "hostaddr": GID}),
    ];
    for ends in mixed {
        let method = "bdev_rnbd_attach_controller";
        fails(&fixture, method, attach(ends), -22, "both GIDs");
    }
    let family = json!({"traddr": GID, "adrfam": "ipv6"});
    fails(
        &fixture,
        "bdev_rnbd_attach_controller",
        attach(family),
        -22,
        "Ipv6",
    );
}

#[test]
fn a_rule_for_gids_is_kept_as_one() {
    let fixture = Fixture::running();
    fixture.listen();
    let rule = json!({"device_path": "disk", "host": "*", "traddr": "gid:fe80::/64"});
    fixture.call("rnbd_export_add_host", rule);
    let saved = fixture.config().to_string();
    let written = "gid:fe80:0000:0000:0000:0000:0000:0000:0000/64";
    assert!(saved.contains(written), "{saved}");
    let rule = json!({"device_path": "disk", "host": "*", "traddr": written});
    let again = fixture.fail("rnbd_export_add_host", rule);
    assert_eq!(again.code, -17, "{again}");
}
