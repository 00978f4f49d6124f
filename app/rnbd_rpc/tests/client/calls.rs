use serde_json::json;

use crate::support::{Server, program, run};

fn server() -> Server {
    Server::start(json!({
        "bdev_malloc_create": "Malloc0",
        "bdev_examine": true,
        "bdev_rnbd_attach_controller": ["rnbd0"],
        "framework_get_config": null,
        "log_get_flags": {"rtrs": false, "nbd": true},
        "rtrs_add_listener": true,
    }))
}

#[test]
fn people_see_names_bare_and_mere_success_not_at_all() {
    let server = server();
    let create = "bdev_malloc_create --num-blocks 8 --block-size 512";
    assert_eq!(server.run(create).ok(), "Malloc0\n");
    assert_eq!(server.run("bdev_examine --name a").ok(), "");
    let flags = "{\n  \"rtrs\": false,\n  \"nbd\": true\n}\n";
    assert_eq!(server.run("log_get_flags").ok(), flags);
}

#[test]
fn scripts_see_json_on_one_line() {
    let server = server();
    let create = "bdev_malloc_create --num-blocks 8 --block-size 512";
    for arguments in [format!("--json {create}"), format!("{create} --json")] {
        assert_eq!(server.run(&arguments).ok(), "\"Malloc0\"\n");
    }
    assert_eq!(server.run("bdev_examine --name a --json").ok(), "true\n");
    let flags = "{\"rtrs\":false,\"nbd\":true}\n";
    assert_eq!(server.run("--json log_get_flags").ok(), flags);
    let config = server.run("--json framework_get_config --name nbd");
    assert_eq!(config.ok(), "null\n");
}

#[test]
fn options_become_parameters() {
    let server = server();
    server
        .run("rtrs_add_listener --traddr 127.0.0.1 --trsvcid 0")
        .ok();
    let address = r#"{"traddr":"127.0.0.1","trsvcid":"0","trtype":"TCP"}"#;
    let expected = format!(r#"rtrs_add_listener {{"listen_address":{address}}}"#);
    assert_eq!(server.calls(), [expected]);
}

#[test]
fn the_environment_names_the_socket_unless_an_option_does() {
    let server = server();
    let mut command = program();
    command.env("RNBD_RPC_SOCK", server.socket());
    let output = run(command.args(["bdev_examine", "--name", "a"]), "");
    output.ok();
    let output = run(command.args(["-s", "/nonexistent/socket"]), "");
    assert!(output.error(1).contains("/nonexistent/socket"));
}

#[test]
fn any_method_can_be_called_with_json() {
    let server = server();
    let params = r#"{"num_blocks": 8, "block_size": 512}"#;
    let arguments = ["call", "bdev_malloc_create", params];
    assert_eq!(server.run_args(&arguments, "").ok(), "Malloc0\n");
    let arguments = ["call", "bdev_malloc_create", "-"];
    assert_eq!(server.run_args(&arguments, params).ok(), "Malloc0\n");
    assert_eq!(
        server.run("call of_tomorrow").error(1),
        "rnbd_rpc: of_tomorrow: Method not found (code -32601)\n"
    );
}

#[test]
fn help_comes_from_the_schema_and_needs_no_server() {
    let output = run(program().args(["bdev_error_inject_error", "--help"]), "");
    let help = output.ok();
    for part in [
        "Makes the next I/Os of a bdev fail.",
        "--error-type <WORD>",
        "corrupt_data",
        "[default: 1]",
        "Result: true",
        "-19 ENODEV",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
}

#[test]
fn help_tells_what_json_is_made_of() {
    let arguments = ["bdev_rnbd_attach_controller", "--help"];
    let help = run(program().args(arguments), "").ok();
    let words: Vec<&str> = help.split_whitespace().collect();
    let members = "[members: device_path, access_mode, bdev_name";
    assert!(words.join(" ").contains(members), "{help}");
}

#[test]
fn methods_are_listed_by_what_their_names_contain() {
    let list = run(program().args(["methods", "malloc"]), "").ok();
    let names = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next());
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["bdev_malloc_create", "bdev_malloc_delete"]
    );
}
