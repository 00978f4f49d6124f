//! The methods of the target, on a program that is connected to itself.

use rnbd_rpc::State;
use serde_json::json;

use super::Fixture;

#[test]
fn counters_are_shown_for_a_session_or_each_path_and_reset() {
    let fixture = Fixture::running();
    fixture.connect();
    let stats = fixture.call("rtrs_get_stats", json!({"reset_mode": "all"}));
    let session = &stats["sessions"][0];
    assert!(session["total"]["read_count"].as_u64() > Some(0), "{stats}");
    assert_eq!(
        session["paths"][0]["read_count"],
        session["total"]["read_count"]
    );
    let stats = fixture.call("rtrs_get_stats", json!({"per_path": false}));
    let session = &stats["sessions"][0];
    assert_eq!(session["total"]["read_count"], 0);
    assert!(session.get("paths").is_none(), "{stats}");
}

#[test]
fn two_programs_of_this_project_agree_on_the_fence_unless_told_not_to() {
    for (peer_extension, interval_ms) in [(true, 1500), (false, 5000)] {
        let fixture = Fixture::new();
        let options = json!({"peer_extension": peer_extension, "peer_hb_interval_ms": 1500});
        fixture.call("rtrs_set_options", options);
        fixture.rpc.set_state(State::Runtime);
        fixture.connect();
        let sessions = fixture.ask("rtrs_get_sessions");
        let path = &sessions[0]["paths"][0];
        let fence = json!({"agreed": peer_extension, "waiting": 0});
        assert_eq!(path["fence"], fence);
        assert_eq!(path["hb"]["interval_ms"], interval_ms);
    }
}

#[test]
fn a_path_that_is_named_is_reset_and_disconnected_alone() {
    let fixture = Fixture::running();
    fixture.connect();
    let sessions = fixture.ask("rtrs_get_sessions");
    let path = sessions[0]["paths"][0]["path"].clone();
    let one = |path| json!({"sessname": "client", "path": path});
    fixture.call("rtrs_reset_stats", one(path.clone()));
    let stats = fixture.ask("rtrs_get_stats");
    assert_eq!(stats["sessions"][0]["total"]["read_count"], 0);

    let other = one(json!("ip:192.0.2.1@ip:192.0.2.2"));
    for method in ["rtrs_reset_stats", "rtrs_disconnect_session"] {
        assert_eq!(fixture.fail(method, other.clone()).code, -2, "{method}");
    }
    fixture.call("rtrs_disconnect_session", one(path));
    assert_eq!(fixture.ask("rtrs_get_sessions"), json!([]));
}

#[test]
fn what_becomes_of_missing_devices_is_an_option() {
    let fixture = Fixture::running();
    let options = fixture.ask("rnbd_get_options");
    assert_eq!(options["missing_device"], "fail");
    assert_eq!(options["open_timeout_ms"], 5000);
    let set = json!({"missing_device": "wait", "open_timeout_ms": 50});
    fixture.call("rnbd_set_options", set.clone());
    let options = fixture.ask("rnbd_get_options");
    for name in ["missing_device", "open_timeout_ms"] {
        assert_eq!(options[name], set[name]);
    }
    let port = fixture.listen();
    assert_eq!(fixture.attach(&port, "absent").unwrap_err().code, -2);
}
