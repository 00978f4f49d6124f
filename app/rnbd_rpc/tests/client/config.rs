use std::fs;

use rnbd_rpc::State;
use serde_json::{Value, json};

use crate::support::Server;

fn subsystems() -> Value {
    json!([
        {"subsystem": "bdev", "depends_on": []},
        {"subsystem": "rtrs", "depends_on": ["bdev"]},
        {"subsystem": "nbd", "depends_on": ["bdev"]},
    ])
}

fn saving() -> Server {
    Server::start(json!({
        "framework_get_subsystems": subsystems(),
        "framework_get_config": [{"method": "bdev_examine", "params": {"name": "ä"}}],
    }))
}

/// As Python's `json.dump` prints it with an indent of 2, and a newline.
const SAVED: &str = r#"{
  "subsystems": [
    {
      "subsystem": "nbd",
      "config": [
        {
          "method": "bdev_examine",
          "params": {
            "name": "\u00e4"
          }
        }
      ]
    }
  ]
}
"#;

#[test]
fn a_saved_configuration_has_the_bytes_of_spdks_client() {
    let server = Server::start(json!({
        "framework_get_subsystems": [{"subsystem": "nbd", "depends_on": []}],
        "framework_get_config": [{"method": "bdev_examine", "params": {"name": "ä"}}],
    }));
    assert_eq!(server.run("save_config").ok(), SAVED);
    let file = server.file("saved.json");
    let path = file.to_str().unwrap();
    assert_eq!(server.run_args(&["save_config", path], "").ok(), "");
    assert_eq!(fs::read_to_string(file).unwrap(), SAVED);
    let line = concat!(
        r#"{"subsystems": [{"subsystem": "nbd", "config": [{"method": "bdev_examine", "#,
        r#""params": {"name": "\u00e4"}}]}]}"#,
        "\n"
    );
    assert_eq!(server.run("save_config -i -1").ok(), line);
}

#[test]
fn saving_some_subsystems_saves_what_they_depend_on() {
    let server = saving();
    let text = server.run("save_config --subsystems rtrs").ok();
    let saved: Value = serde_json::from_str(&text).unwrap();
    let names = saved["subsystems"].as_array().unwrap().iter();
    let names: Vec<&str> = names.map(|s| s["subsystem"].as_str().unwrap()).collect();
    assert_eq!(names, ["bdev", "rtrs"]);
    let error = server.run("save_config --subsystems nvmf").error(1);
    assert!(error.contains("no subsystem nvmf"), "{error}");
}

fn loading(state: State) -> Server {
    Server::in_state(
        state,
        json!({"bdev_set_options": true, "bdev_examine": true, "rnbd_set_options": true}),
    )
}

fn config() -> String {
    let config = json!({"subsystems": [
        {"subsystem": "bdev", "config": [
            {"method": "bdev_set_options", "params": {}},
            {"method": "bdev_examine", "params": {"name": "a"}},
            [{"method": "bdev_examine", "params": {"name": "b"}}],
            []]},
        {"subsystem": "rnbd", "config": [{"method": "rnbd_set_options"}]},
        {"subsystem": "nbd", "config": null},
    ]});
    config.to_string()
}

#[test]
fn a_configuration_is_loaded_in_the_order_of_states() {
    let server = loading(State::Startup);
    server.run_args(&["load_config"], &config()).ok();
    let expected = [
        "bdev_set_options {}",
        "rnbd_set_options {}",
        "framework_start_init",
        r#"bdev_examine {"name":"a"}"#,
        r#"bdev_examine {"name":"b"}"#,
    ];
    assert_eq!(server.calls(), expected);
}

#[test]
fn loading_says_what_came_too_late() {
    let server = loading(State::Runtime);
    let file = server.file("config.json");
    fs::write(&file, config()).unwrap();
    let output = server.run_args(&["load_config", file.to_str().unwrap()], "");
    assert_eq!(output.status, 0);
    assert!(output.stderr.contains("left out"), "{}", output.stderr);
    assert!(
        output.stderr.contains("bdev_set_options"),
        "{}",
        output.stderr
    );
    assert_eq!(server.calls().len(), 3);
}

#[test]
fn an_empty_configuration_still_starts_the_subsystems() {
    let server = loading(State::Startup);
    let text = r#"{"subsystems": []}"#;
    server.run_args(&["load_config", "-"], text).ok();
    assert_eq!(server.calls(), ["framework_start_init"]);
}

#[test]
fn nothing_is_loaded_if_a_method_is_unknown() {
    let server = loading(State::Startup);
    let text = config().replace("rnbd_set_options", "of_tomorrow");
    let error = server.run_args(&["load_config"], &text).error(1);
    assert!(error.contains("of_tomorrow"), "{error}");
    assert_eq!(server.calls(), [""; 0]);
}

#[test]
fn loading_ends_at_the_first_failure() {
    let server = loading(State::Runtime);
    let call = |method: &str, name: &str| json!({"method": method, "params": {"name": name}});
    let calls = [
        call("bdev_examine", "a"),
        call("bdev_malloc_delete", "b"),
        call("bdev_examine", "c"),
    ];
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]});
    let error = server
        .run_args(&["load_config"], &config.to_string())
        .error(1);
    assert!(
        error.contains("bdev_malloc_delete: No such device"),
        "{error}"
    );
    assert_eq!(server.calls(), [r#"bdev_examine {"name":"a"}"#]);
}

#[test]
fn what_is_no_configuration_is_refused_by_name() {
    let server = loading(State::Runtime);
    let error = server.run("load_config /nonexistent.json").error(1);
    assert!(
        error.contains("/nonexistent.json cannot be read"),
        "{error}"
    );
    let error = server.run_args(&["load_config"], "[1]").error(1);
    assert!(
        error.contains("standard input is no configuration"),
        "{error}"
    );
}
