//! Options of bdevs, and bdevs that wait for others.

use serde_json::{Value, json};

use super::Fixture;

fn with_disk() -> Fixture {
    let fixture = Fixture::running();
    let disk = json!({"name": "M0", "num_blocks": 64, "block_size": 512});
    fixture.call("bdev_malloc_create", disk);
    fixture
}

fn limits(fixture: &Fixture) -> Value {
    fixture.call("bdev_get_bdevs", json!({"name": "M0"}))[0]["assigned_rate_limits"].clone()
}

#[test]
fn limits_are_set_one_by_one_and_rounded_up() {
    let fixture = with_disk();
    let set = |params: Value| fixture.call("bdev_set_qos_limit", params);
    set(json!({"name": "M0", "rw_ios_per_sec": 1001, "r_mbytes_per_sec": 5}));
    set(json!({"name": "M0", "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 7}));
    assert_eq!(
        limits(&fixture),
        json!({
            "rw_ios_per_sec": 2000, "rw_mbytes_per_sec": 0,
            "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 7,
        })
    );
    let none = fixture.fail("bdev_set_qos_limit", json!({"name": "M0"}));
    assert_eq!(
        (none.code, &*none.message),
        (-22, "No rate limits specified")
    );
    let missing = json!({"name": "M1", "rw_ios_per_sec": 1});
    assert_eq!(fixture.fail("bdev_set_qos_limit", missing).code, -19);
}

#[test]
fn the_queue_depth_is_reported_while_it_is_sampled() {
    let fixture = with_disk();
    let set = |period: u64| {
        let params = json!({"name": "M0", "period": period});
        fixture.call("bdev_set_qd_sampling_period", params)
    };
    let iostat = || fixture.ask("bdev_get_iostat")["bdevs"][0].clone();
    assert_eq!(iostat().get("queue_depth"), None);
    set(1_000_000);
    assert_eq!(iostat()["queue_depth_polling_period"], 1_000_000);
    assert_eq!(iostat()["weighted_io_time"], 0);
    set(0);
    assert_eq!(iostat().get("queue_depth"), None);
}

#[test]
fn a_bdev_whose_base_is_missing_is_saved_and_can_be_deleted() {
    let fixture = Fixture::running();
    let error = json!({"base_name": "M0"});
    assert_eq!(fixture.call("bdev_error_create", error), json!(true));
    assert!(fixture.config().to_string().contains("bdev_error_create"));
    let name = json!({"name": "EE_M0"});
    assert_eq!(fixture.fail("bdev_delay_delete", name.clone()).code, -19);
    fixture.call("bdev_error_delete", name);
    assert!(!fixture.config().to_string().contains("bdev_error_create"));
}

#[test]
fn a_deleted_bdev_does_not_come_back_with_its_base() {
    let fixture = with_disk();
    fixture.call("bdev_error_create", json!({"base_name": "M0"}));
    fixture.call("bdev_error_delete", json!({"name": "EE_M0"}));
    fixture.call("bdev_malloc_delete", json!({"name": "M0"}));
    let disk = json!({"name": "M0", "num_blocks": 64, "block_size": 512});
    fixture.call("bdev_malloc_create", disk);
    assert_eq!(fixture.ask("bdev_get_bdevs").as_array().unwrap().len(), 1);
}

#[test]
fn without_auto_examine_bdevs_wait_until_they_are_examined() {
    let fixture = Fixture::new();
    let options = json!({"bdev_auto_examine": false});
    fixture.call("bdev_set_options", options);
    fixture.rpc.set_state(super::State::Runtime);
    fixture.call("bdev_error_create", json!({"base_name": "M0"}));
    let disk = json!({"name": "M0", "num_blocks": 64, "block_size": 512});
    fixture.call("bdev_malloc_create", disk);
    let count = || fixture.ask("bdev_get_bdevs").as_array().unwrap().len();
    assert_eq!(count(), 1);
    fixture.call("bdev_examine", json!({"name": "M0"}));
    assert_eq!(count(), 2);
}

#[test]
fn what_makes_no_sense_to_the_bdev_layer_is_refused() {
    let fixture = Fixture::new();
    let small = json!({"bdev_io_pool_size": 300, "bdev_io_cache_size": 256});
    assert_eq!(fixture.fail("bdev_set_options", small).code, -32602);
    let fixture = with_disk();
    let error = fixture.fail("bdev_examine", json!({"name": "M0"}));
    assert_eq!(error.code, -22);
    for key in ["md_size", "dif_type"] {
        let mut params = json!({"num_blocks": 64, "block_size": 512, key: 0});
        fixture.call("bdev_malloc_create", params.clone());
        params[key] = json!(8);
        let code = fixture.fail("bdev_malloc_create", params).code;
        assert!(code == -95 || code == -32602, "{key}: {code}");
    }
}
