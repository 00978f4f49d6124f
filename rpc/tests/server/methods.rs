//! Errors, states, discovery and the socket's files (spdk-conventions.md A.1, A.3, A.4).

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use crate::support::{Options, Server};
use rnbd_rpc::{
    Client, ClientError, ControlLoop, ListenError, RegisterError, Registry, Rpc, RpcError,
    RpcServer, Schema,
};
use serde_json::{Value, json};

fn client(server: &Server) -> Client {
    Client::connect(server.path()).unwrap()
}

fn rpc_error(result: Result<Value, ClientError>) -> RpcError {
    match result {
        Err(ClientError::Rpc(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_error_has_its_code_and_text() {
    let server = Server::start();
    let mut client = client(&server);
    let rows = [
        ("nothing", None, -32601, "Method not found"),
        (
            "echo",
            None,
            -32602,
            "Invalid parameters: 'text' is missing",
        ),
        (
            "echo",
            Some(json!({"text": 1})),
            -32602,
            "Invalid parameters: 'text' must be a string",
        ),
        (
            "echo",
            Some(json!(["x"])),
            -32602,
            "Invalid parameters: parameters must be given by name, in an object",
        ),
        (
            "echo",
            Some(json!({"text": "x", "txt": 1})),
            -32602,
            "Invalid parameters: 'txt' is not known; known are text, times",
        ),
        (
            "at_any_time",
            Some(json!({})),
            -32602,
            "at_any_time requires no parameters",
        ),
        ("fail", Some(json!({"errno": 19})), -19, "No such device"),
        ("fail", Some(json!({"errno": 17})), -17, "File exists"),
        (
            "fail",
            Some(json!({"errno": 16})),
            -16,
            "Device or resource busy",
        ),
        (
            "fail",
            Some(json!({"errno": 1})),
            -1,
            "Operation not permitted",
        ),
    ];
    for (method, params, code, message) in rows {
        let error = rpc_error(client.call(method, params));
        assert_eq!(error, RpcError::new(code, message));
    }
}

#[test]
fn states_decide_what_may_be_called_and_what_is_listed() {
    let server = Server::start();
    let mut client = client(&server);
    let after =
        "Method may only be called after framework is initialized using framework_start_init RPC.";
    let before = "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter and then issue this RPC before the framework_start_init RPC.";
    let current = |client: &mut Client| {
        let names = client.call("rpc_get_methods", Some(json!({"current": true})));
        let names: Vec<String> = serde_json::from_value(names.unwrap()).unwrap();
        names
    };
    let error = rpc_error(client.call("at_runtime", None));
    assert_eq!(error, RpcError::new(-1, after));
    assert!(current(&mut client).contains(&"framework_start_init".to_owned()));

    assert_eq!(
        client.call("framework_start_init", None).unwrap(),
        json!(true)
    );
    assert_eq!(client.call("at_runtime", None).unwrap(), json!(true));
    let error = rpc_error(client.call("framework_start_init", None));
    assert_eq!(error, RpcError::new(-1, before));
    assert!(!current(&mut client).contains(&"framework_start_init".to_owned()));
    assert!(current(&mut client).contains(&"at_runtime".to_owned()));
}

#[test]
fn methods_are_listed_last_registered_first_and_aliases_when_asked_for() {
    let server = Server::start();
    let mut client = client(&server);
    let expected = [
        "rpc_get_methods",
        "notify_get_notifications",
        "notify_get_types",
        "release",
        "hold",
        "fail",
        "echo",
        "at_any_time",
        "at_runtime",
        "framework_start_init",
    ];
    assert_eq!(
        client.call("rpc_get_methods", None).unwrap(),
        json!(expected)
    );
    let explicit = json!({"current": false, "include_aliases": false});
    assert_eq!(
        client.call("rpc_get_methods", Some(explicit)).unwrap(),
        json!(expected)
    );
    let aliases = client.call("rpc_get_methods", Some(json!({"include_aliases": true})));
    let aliases = aliases.unwrap();
    assert_eq!(
        (&aliases[7], &aliases[8]),
        (&json!("at_any_time"), &json!("at_any_old_time"))
    );
    assert_eq!(client.call("at_any_old_time", None).unwrap(), json!(true));
}

#[test]
fn methods_outside_the_allow_list_look_as_if_they_were_not_there() {
    let allowed = ["rpc_get_methods", "at_any_time", "no_such_method"];
    let server = Server::with(Options {
        allowed: Some(allowed.map(String::from).to_vec()),
        ..Options::default()
    });
    let mut client = client(&server);
    assert_eq!(
        rpc_error(client.call("fail", None)),
        RpcError::method_not_found()
    );
    assert_eq!(client.call("at_any_time", None).unwrap(), json!(true));
    let listed = client.call("rpc_get_methods", None).unwrap();
    assert_eq!(listed, json!(["rpc_get_methods", "at_any_time"]));
}

#[test]
fn a_paused_server_lets_clients_connect_and_answers_when_it_resumes() {
    let mut server = Server::with(Options {
        paused: true,
        ..Options::default()
    });
    let mut early = client(&server);
    early.set_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(matches!(
        early.call("at_any_time", None),
        Err(ClientError::TimedOut)
    ));
    server.resume();
    let mut raw = server.connect();
    assert!(
        raw.ask(r#"{"method":"at_any_time","id":1}"#)
            .contains("true")
    );
}

#[test]
fn the_socket_is_for_its_owner_only_whatever_the_umask() {
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let server = Server::start();
    rustix::process::umask(before);
    for name in ["rpc.sock", "rpc.sock.lock"] {
        let metadata = std::fs::metadata(server.directory().join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

fn listen(path: &Path) -> Result<RpcServer, ListenError> {
    let control = ControlLoop::new().unwrap();
    let rpc = Rpc::new(&control.handle(), Registry::new(Schema::builtin())).unwrap();
    RpcServer::listen(&rpc, path)
}

#[test]
fn a_path_in_use_is_refused_and_a_stale_socket_replaced() {
    let server = Server::start();
    let error = listen(server.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is in use by another process", server.path().display())
    );
    assert_eq!(
        client(&server).call("at_any_time", None).unwrap(),
        json!(true)
    );

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stale.sock");
    drop(UnixListener::bind(&path).unwrap());
    std::fs::write(directory.path().join("stale.sock.lock"), "").unwrap();
    let server = listen(&path).unwrap();
    assert_eq!(server.path(), path);
    drop(server);
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn a_path_that_cannot_be_listened_on_is_named() {
    let error = listen(Path::new("/nonexistent/rpc.sock")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot listen on /nonexistent/rpc.sock")
    );
    let long = std::env::temp_dir().join("x".repeat(120));
    let error = listen(&long).unwrap_err();
    assert!(matches!(error, ListenError::Io { .. }), "{error}");
}

#[test]
fn names_that_the_schema_lacks_or_that_are_taken_are_refused() {
    let control = ControlLoop::new().unwrap();
    let try_names = |names: &[&str]| {
        let mut registry = Registry::new(Schema::builtin());
        for name in names {
            registry.register(name, |_| async { Ok(json!(true)) });
        }
        Rpc::new(&control.handle(), registry).map(drop)
    };
    let twice = ["log_get_flags", "log_get_flags"];
    assert_eq!(
        try_names(&twice),
        Err(RegisterError::Duplicate("log_get_flags".into()))
    );
    assert_eq!(
        try_names(&["nothing"]),
        Err(RegisterError::NotInSchema("nothing".into()))
    );
    let own = ["rpc_get_methods"];
    assert_eq!(
        try_names(&own),
        Err(RegisterError::Duplicate("rpc_get_methods".into()))
    );
    assert_eq!(try_names(&["log_get_flags"]), Ok(()));
}

#[test]
fn the_program_calls_methods_as_a_connection_does() {
    let control = ControlLoop::new().unwrap();
    let rpc = Rpc::new(&control.handle(), Registry::new(Schema::builtin())).unwrap();
    let listed = control.run(rpc.call("rpc_get_methods", None));
    assert_eq!(listed, Ok(json!(["rpc_get_methods"])));
    let refused = control.run(rpc.call("rpc_get_methods", Some(json!({"current": 1}))));
    assert_eq!(refused.unwrap_err().code, -32602);
    let unknown = control.run(rpc.call("bdev_get_bdevs", None));
    assert_eq!(unknown, Err(RpcError::method_not_found()));
}
