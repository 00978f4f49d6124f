use clap::Command;
use serde_json::json;

use super::*;
use crate::method;

/// What the options of a method give.
fn try_params(name: &str, options: &[&str]) -> Result<Option<Value>, String> {
    let schema = Schema::builtin();
    let method = schema.method(name).unwrap();
    let command: Command = method::command(schema, method);
    let arguments = [&[name], options].concat();
    let matches = command
        .try_get_matches_from(arguments)
        .map_err(|error| error.to_string())?;
    method_params(schema, method, &matches)
}

fn params(name: &str, options: &[&str]) -> Value {
    try_params(name, options).unwrap().unwrap()
}

fn refusal(name: &str, options: &[&str]) -> String {
    try_params(name, options).unwrap_err()
}

const EXPORT: [&str; 2] = ["--device-path=disk0", "--bdev-name=Malloc0"];

fn export_with(option: &str) -> Value {
    params("rnbd_create_export", &[EXPORT[0], EXPORT[1], option])
}

fn export_refusal(option: &str) -> String {
    refusal("rnbd_create_export", &[EXPORT[0], EXPORT[1], option])
}

#[test]
fn only_what_was_given_is_sent() {
    let expected = json!({"device_path": "disk0", "bdev_name": "Malloc0"});
    assert_eq!(params("rnbd_create_export", &EXPORT), expected);
    assert_eq!(try_params("bdev_get_bdevs", &[]), Ok(None));
    assert_eq!(try_params("spdk_get_version", &[]), Ok(None));
}

#[test]
fn names_may_have_hyphens_or_underscores() {
    let with_underscores = ["--device_path", "disk0", "--bdev_name", "Malloc0"];
    assert_eq!(
        params("rnbd_create_export", &with_underscores),
        params("rnbd_create_export", &EXPORT)
    );
}

#[test]
fn booleans_are_flags_that_may_say_no() {
    for (option, value) in [
        ("--read-only", true),
        ("--read-only=true", true),
        ("--read-only=false", false),
        ("--no-read-only", false),
    ] {
        assert_eq!(export_with(option)["read_only"], value, "{option}");
    }
    assert!(export_refusal("--read-only=perhaps").contains("perhaps"));
}

#[test]
fn words_are_those_of_the_schema_in_any_case() {
    assert_eq!(export_with("--write-cache=off")["write_cache"], "off");
    assert_eq!(
        params("rtrs_create_transport", &["--trtype=tcp"])["trtype"],
        "tcp"
    );
    let text = export_refusal("--write-cache=maybe");
    assert!(text.contains("auto, on, off"), "{text}");
}

#[test]
fn numbers_may_be_hexadecimal_or_negative() {
    assert_eq!(export_with("--max-io-size=0x1000")["max_io_size"], 4096);
    let options = ["--name=box0", "--max-reconnect-attempts", "-1"];
    let given = params("bdev_rnbd_set_reconnect", &options);
    assert_eq!(given["max_reconnect_attempts"], -1);
}

#[test]
fn a_wrong_number_is_refused_with_its_limits() {
    for number in ["0", "256", "-1", "many", "1.5", "0x", ""] {
        let text = export_refusal(&format!("--max-writers={number}"));
        assert!(text.contains("--max-writers"), "{text}");
        assert!(text.contains("from 1 to 255"), "{text}");
    }
}

#[test]
fn the_greatest_number_passes_unchanged() {
    let options = ["--id=18446744073709551615"];
    assert_eq!(params("notify_get_notifications", &options)["id"], u64::MAX);
    refusal("notify_get_notifications", &["--id=18446744073709551616"]);
}

#[test]
fn missing_and_unknown_parameters_are_named() {
    let text = refusal("rnbd_create_export", &EXPORT[..1]);
    assert!(text.contains("--bdev-name"), "{text}");
    let text = export_refusal("--read-onyl");
    assert!(text.contains("--read-onyl"), "{text}");
    assert!(
        text.contains("similar argument exists: '--read-only'"),
        "{text}"
    );
}

#[test]
fn what_only_the_schema_knows_is_checked_before_sending() {
    let create = ["--num-blocks=8", "--block-size=512"];
    let text = refusal("bdev_malloc_create", &[create[0], create[1], "--uuid=12"]);
    assert_eq!(text, "'uuid' must be a UUID");
    let long = format!("--name={}", "x".repeat(256));
    let text = refusal("bdev_malloc_create", &[create[0], create[1], &long]);
    assert_eq!(text, "'name' may have at most 255 bytes");
}

#[test]
fn an_object_is_json_or_has_its_members_as_options() {
    let expected = json!({"listen_address": {"traddr": "127.0.0.1", "trsvcid": "0"}});
    let text = expected["listen_address"].to_string();
    assert_eq!(
        params("rtrs_add_listener", &["--traddr=127.0.0.1", "--trsvcid=0"]),
        expected
    );
    assert_eq!(
        params("rtrs_add_listener", &["--listen-address", &text]),
        expected
    );
}

#[test]
fn an_object_is_not_given_in_both_ways() {
    let options = ["--listen-address", r#"{"traddr": "::"}"#, "--trsvcid=1"];
    let text = refusal("rtrs_add_listener", &options);
    assert!(text.contains("cannot be used with"), "{text}");
}

#[test]
fn an_object_that_is_missing_or_incomplete_is_refused() {
    assert!(refusal("rtrs_add_listener", &[]).contains("--traddr"));
    let text = refusal("rtrs_add_listener", &["--listen-address={}"]);
    assert_eq!(text, "'listen_address.traddr' is missing");
    let text = refusal("rtrs_add_listener", &["--listen-address={"]);
    assert!(text.contains("this is no JSON"), "{text}");
}

#[test]
fn a_list_has_commas_or_is_json() {
    for list in ["Malloc0,1", r#"["Malloc0", "1"]"#] {
        let given = params("bdev_get_iostat", &["--names", list]);
        assert_eq!(given["names"], json!(["Malloc0", "1"]));
    }
    let options = ["--name=Malloc0", "--borders=10,20,1000"];
    let given = params("bdev_get_histogram_borders", &options);
    assert_eq!(given["borders"], json!([10, 20, 1000]));
    let text = refusal("bdev_get_histogram_borders", &["--name=a", "--borders=1,x"]);
    assert!(text.contains("'x' is no integer"), "{text}");
}
