//! The program, and a server for it to talk to.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use futures_channel::oneshot;
use rnbd_base::Errno;
use rnbd_rpc::{ControlLoop, Params, Registry, Rpc, RpcError, RpcServer, Schema, State};
use serde_json::{Value, json};

/// A call that the server was asked for, as `method params`.
type Log = Arc<Mutex<Vec<String>>>;

/// Answers calls on a thread of its own until it is dropped.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    log: Log,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A server whose methods answer what `answers` says; others it does not have, but for some
    /// that misbehave or serve the configuration.
    pub(crate) fn start(answers: Value) -> Self {
        Self::in_state(State::Runtime, answers)
    }

    pub(crate) fn in_state(state: State, answers: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("rpc.sock");
        let log = Log::default();
        let (listening, listens) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel();
        let calls = Arc::clone(&log);
        let thread = std::thread::spawn(move || {
            let control = ControlLoop::new().unwrap();
            let rpc = rpc(&control, &answers, &calls);
            rpc.set_state(state);
            let _server = RpcServer::listen(&rpc, &socket).unwrap();
            listening.send(()).unwrap();
            // Ends with an error, which is to be expected when the server is dropped.
            let _ = control.run(ended);
        });
        listens.recv().unwrap();
        Self {
            directory,
            log,
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("rpc.sock")
    }

    /// Runs the program with these arguments, which are separated by spaces.
    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.run_args(&arguments.split(' ').collect::<Vec<_>>(), "")
    }

    pub(crate) fn run_args(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = program();
        command.arg("-s").arg(self.socket()).args(arguments);
        run(&mut command, input)
    }

    /// What the server was asked for so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// A file beside the socket.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn rpc(control: &ControlLoop, answers: &Value, log: &Log) -> Rpc {
    let schema = Schema::builtin();
    let mut registry = Registry::new(schema);
    for (method, answer) in answers.as_object().unwrap() {
        // The registry takes names that live as long as the schema.
        let method = schema.method(method).unwrap().name.as_str();
        let (answer, log) = (answer.clone(), Arc::clone(log));
        registry.register(method, move |params: Params| {
            let call = format!("{method} {}", Value::Object(params.members().clone()));
            log.lock().unwrap().push(call);
            let answer = answer.clone();
            async move { Ok(answer) }
        });
    }
    registry.register("bdev_malloc_delete", |_| async {
        Err::<Value, RpcError>(Errno::NODEV.into())
    });
    registry.register("bdev_wait_for_examine", |_| std::future::pending());
    let this: Rc<RefCell<Option<Rpc>>> = Rc::default();
    let (to_start, log) = (Rc::clone(&this), Arc::clone(log));
    registry.register("framework_start_init", move |_| {
        log.lock().unwrap().push("framework_start_init".to_owned());
        to_start
            .borrow()
            .as_ref()
            .unwrap()
            .set_state(State::Runtime);
        async { Ok(json!(true)) }
    });
    let rpc = Rpc::new(&control.handle(), registry).unwrap();
    this.replace(Some(rpc.clone()));
    rpc
}

/// How the program ended.
pub(crate) struct Output {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Standard output of a run that succeeded and had nothing to complain about.
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""));
        self.stdout
    }

    /// Standard error of a run that failed with `status`.
    pub(crate) fn error(self, status: i32) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (status, ""));
        self.stderr
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rnbd_rpc"));
    command.env_remove("RNBD_RPC_SOCK");
    command
}

pub(crate) fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that wants no input may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Output {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the program against a socket.
pub(crate) fn run_at(socket: &Path, arguments: &[&str]) -> Output {
    run(program().arg("-s").arg(socket).args(arguments), "")
}
