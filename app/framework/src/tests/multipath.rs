use serde_json::{Value, json};

use super::Fixture;

const SECOND: &str = "127.0.0.2";

/// A program that is attached to itself, and listens on a second address.
fn program() -> (Fixture, String) {
    let fixture = Fixture::running();
    let port = fixture.listen();
    let allow = json!({"device_path": "disk", "allow_any_host": true});
    fixture.call("rnbd_export_allow_any_host", allow);
    let address = json!({"trtype": "TCP", "traddr": SECOND, "trsvcid": port});
    fixture.call("rtrs_add_listener", json!({ "listen_address": address }));
    let attach = attach_params("127.0.0.1", &port);
    let names = fixture.call("bdev_rnbd_attach_controller", attach);
    assert_eq!(names, json!([]));
    let map = json!({"ctrlr_name": "c0", "device_path": "disk", "bdev_name": "R0"});
    fixture.call("bdev_rnbd_map_device", map);
    (fixture, port)
}

fn attach_params(traddr: &str, port: &str) -> Value {
    json!({
        "name": "c0", "sessname": "client", "traddr": traddr, "trsvcid": port,
        "multipath": "multipath",
        "multipath_opts": { "policy": "round_robin", "min_io": 4 },
    })
}

fn controller(fixture: &Fixture) -> Value {
    fixture.call("bdev_rnbd_get_controllers", json!({"name": "c0"}))[0].clone()
}

fn states(fixture: &Fixture) -> Vec<String> {
    let controller = controller(fixture);
    let paths = controller["paths"].as_array().unwrap();
    let states = paths.iter().map(|path| path["state"].as_str().unwrap());
    states.map(str::to_owned).collect()
}

#[test]
fn paths_are_added_chosen_and_removed() {
    let (fixture, port) = program();
    let add = json!({"name": "c0", "traddr": SECOND, "trsvcid": port});
    assert_eq!(fixture.call("bdev_rnbd_add_path", add.clone()), 1);
    assert_eq!(fixture.fail("bdev_rnbd_add_path", add).code, -17);
    let known = controller(&fixture);
    assert_eq!(known["multipath_policy"], "round_robin");
    assert_eq!(known["min_io"], 4);
    assert_eq!(
        known["paths"][1]["fence"],
        json!({"agreed": true, "waiting": false})
    );
    let policy = json!({"name": "c0", "policy": "active_passive"});
    fixture.call("bdev_rnbd_set_multipath_policy", policy);
    let name = known["paths"][1]["path"].clone();
    let preferred = json!({"name": "c0", "path": name});
    fixture.call("bdev_rnbd_set_preferred_path", preferred.clone());
    assert_eq!(controller(&fixture)["preferred_path"], 1);
    let groups = fixture.ask("bdev_rnbd_get_io_paths");
    let io_paths = groups["poll_groups"][0]["io_paths"].as_array().unwrap();
    assert_eq!(io_paths.len(), 2);
    fixture.call("bdev_rnbd_remove_path", preferred.clone());
    assert_eq!(states(&fixture), ["connected"]);
    assert_eq!(fixture.fail("bdev_rnbd_remove_path", preferred).code, -2);
    let last = json!({"name": "c0", "path_id": 0});
    assert_eq!(fixture.fail("bdev_rnbd_remove_path", last).code, -16);
}

#[test]
fn a_path_is_also_added_by_attaching_again_and_saved() {
    let (fixture, port) = program();
    let again = attach_params(SECOND, &port);
    let names = fixture.call("bdev_rnbd_attach_controller", again.clone());
    assert_eq!(names, json!(["R0"]));
    assert_eq!(states(&fixture), ["connected", "connected"]);
    let same = fixture.fail("bdev_rnbd_attach_controller", again.clone());
    assert_eq!(same.code, -114);
    let mut other = again;
    other["sessname"] = json!("other");
    let other = fixture.fail("bdev_rnbd_attach_controller", other);
    assert_eq!(other.code, -22);
    let saved = fixture.config().to_string();
    for part in ["bdev_rnbd_add_path", "\"multipath\"", "round_robin", SECOND] {
        assert!(saved.contains(part), "{part} in {saved}");
    }
}

#[test]
fn controllers_are_disabled_enabled_and_reset() {
    let (fixture, port) = program();
    let add = json!({"name": "c0", "traddr": SECOND, "trsvcid": port});
    fixture.call("bdev_rnbd_add_path", add);
    let (all, one) = (json!({"name": "c0"}), json!({"name": "c0", "path_id": 1}));
    assert_eq!(
        fixture
            .fail("bdev_rnbd_enable_controller", all.clone())
            .code,
        -114
    );
    fixture.call("bdev_rnbd_disable_controller", one.clone());
    assert_eq!(states(&fixture), ["connected", "disconnected"]);
    assert_eq!(fixture.fail("bdev_rnbd_disable_controller", one).code, -114);
    fixture.call("bdev_rnbd_disable_controller", all.clone());
    assert_eq!(controller(&fixture)["state"], "disabled");
    fixture.call("bdev_rnbd_enable_controller", all.clone());
    fixture.call("bdev_rnbd_reset_controller", all);
    assert_eq!(states(&fixture), ["connected", "connected"]);
    let nowhere = json!({"name": "c0", "path_id": 7});
    assert_eq!(fixture.fail("bdev_rnbd_reset_controller", nowhere).code, -2);
    fixture.call(
        "bdev_rnbd_reset_path_stats",
        json!({"name": "c0", "path_id": 0}),
    );
    let stats = fixture.ask("bdev_rnbd_get_path_stats");
    let paths = &stats["controllers"][0]["paths"];
    assert_eq!(paths[0]["reconnects"]["successful"], 0);
    assert_ne!(paths[1]["reconnects"]["successful"], 0);
}
