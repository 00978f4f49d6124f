use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::json;

use crate::support::{Output, Server, program, run, run_at};

#[test]
fn an_error_of_the_server_has_its_method_code_and_name() {
    let server = Server::start(json!({}));
    assert_eq!(
        server.run("bdev_malloc_delete --name Malloc7").error(1),
        "rnbd_rpc: bdev_malloc_delete: No such device (code -19, ENODEV)\n"
    );
}

#[test]
fn what_a_server_does_not_have_yet_or_any_more_is_explained_by_it() {
    let server = Server::start(json!({}));
    let text = server.run("framework_start_init").error(1);
    assert!(
        text.starts_with("rnbd_rpc: framework_start_init: "),
        "{text}"
    );
    assert!(text.ends_with("(code -1)\n"), "{text}");
}

#[test]
fn without_a_socket_one_is_told_what_to_do() {
    let text = run_at(Path::new("/nonexistent/socket"), &["bdevs"]).error(1);
    assert_eq!(
        text,
        "rnbd_rpc: there is no socket /nonexistent/socket: is rnbd_tgt running? \
         -s names its socket\n"
    );
}

#[test]
fn a_socket_on_which_nobody_listens_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("stale.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let text = run_at(&socket, &["bdevs"]).error(1);
    assert!(text.contains("nobody listens on"), "{text}");
}

#[test]
fn an_answer_that_does_not_come_is_not_waited_for_longer_than_told() {
    let server = Server::start(json!({}));
    assert_eq!(
        server.run("-t 0.05 bdev_wait_for_examine").error(1),
        "rnbd_rpc: bdev_wait_for_examine: no answer within 0.05 s; -t sets how long to wait\n"
    );
}

/// Runs the program against a server that takes a request and closes the connection.
fn closed_during(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("rpc.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 1 << 16];
        assert!(stream.read(&mut request).unwrap() > 0);
    });
    let output = run_at(&socket, arguments);
    server.join().unwrap();
    output
}

#[test]
fn a_connection_that_closes_is_a_failure_unless_the_server_was_to_end() {
    assert_eq!(
        closed_during(&["log_get_level"]).error(1),
        "rnbd_rpc: log_get_level: the server closed the connection without an answer\n"
    );
    closed_during(&["spdk_kill_instance", "--sig-name", "SIGTERM"]).ok();
}

/// How wrong use is refused, for which no server is asked.
fn wrong_use(arguments: &[&str]) -> String {
    run(program().args(arguments), "").error(2)
}

#[test]
fn an_unknown_command_is_answered_with_those_that_are_like_it() {
    let text = wrong_use(&["rnbd_get_export"]);
    assert!(text.contains("unrecognized subcommand"), "{text}");
    assert!(text.contains("'rnbd_get_exports'"), "{text}");
}

#[test]
fn wrong_parameters_are_named_and_not_sent() {
    let text = wrong_use(&["bdev_malloc_create", "--block-size", "512"]);
    assert!(text.contains("--num-blocks"), "{text}");
    let text = wrong_use(&["bdev_examine", "--name=a", "--nmae=b"]);
    assert!(text.contains("--nmae"), "{text}");
    let text = wrong_use(&[
        "bdev_null_create",
        "--name=a",
        "--num-blocks=1",
        "--block-size=9",
    ]);
    assert!(text.contains("from 512 to 4294967295"), "{text}");
}

#[test]
fn no_command_at_all_is_wrong_use_and_shows_the_help() {
    let text = wrong_use(&[]);
    assert!(text.contains("Usage: rnbd_rpc"), "{text}");
}
