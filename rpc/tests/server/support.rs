//! A server with a few methods, on a thread of its own, and a socket to talk to it byte by byte.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;

use futures_channel::oneshot;
use rnbd_base::Errno;
use rnbd_rpc::{
    ControlLoop, Notifications, Params, Registry, Rpc, RpcError, RpcServer, Schema, State,
};
use serde::Deserialize;
use serde_json::{Value, json};

const SCHEMA: &str = r"
methods:
- {name: rpc_get_methods, description: d, result: r, states: [startup, runtime], params: [
    {name: current, type: boolean, default: false, description: d},
    {name: include_aliases, type: boolean, default: false, description: d}]}
- {name: framework_start_init, description: d, result: r, states: [startup]}
- {name: at_runtime, description: d, result: r}
- {name: at_any_time, alias: at_any_old_time, description: d, result: r, states: [startup, runtime]}
- {name: echo, description: d, result: r, states: [startup, runtime], params: [
    {name: text, type: string, required: true, description: d},
    {name: times, type: uint32, default: 1, description: d}]}
- {name: fail, description: d, result: r, states: [startup, runtime], params: [
    {name: errno, type: int32, required: true, description: d}]}
- {name: hold, description: d, result: r, states: [startup, runtime]}
- {name: release, description: d, result: r, states: [startup, runtime]}
- {name: notify_get_types, description: d, result: r}
- {name: notify_get_notifications, description: d, result: r, params: [
    {name: id, type: uint64, default: 0, description: d},
    {name: max, type: uint64, description: d}]}
";

/// How a server is started.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) allowed: Option<Vec<String>>,
    pub(crate) paused: bool,
}

/// Ends when it is dropped.
pub(crate) struct Server {
    path: PathBuf,
    /// Sent to resume a paused server; dropped to end it.
    resume: Option<oneshot::Sender<()>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rpc.sock");
        let (listening, listens) = std::sync::mpsc::channel();
        let (resume, resumed) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let socket = path.clone();
        let thread = std::thread::spawn(move || {
            let control = ControlLoop::new().unwrap();
            let rpc = rpc(&control);
            if let Some(allowed) = options.allowed {
                rpc.set_allowed(allowed);
            }
            let server = RpcServer::listen(&rpc, &socket).unwrap();
            if options.paused {
                server.pause();
            }
            listening.send(()).unwrap();
            control.run(async {
                if resumed.await.is_ok() {
                    server.resume();
                }
                let _ = ended.await;
            });
        });
        listens.recv().unwrap();
        Self {
            path,
            resume: Some(resume),
            end: Some(end),
            thread: Some(thread),
            directory,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn resume(&mut self) {
        self.resume.take().unwrap().send(()).unwrap();
    }

    pub(crate) fn connect(&self) -> Raw {
        Raw {
            stream: UnixStream::connect(&self.path).unwrap(),
        }
    }

    /// Sends `requests`, none of which may wait, and returns what is answered, line by line.
    pub(crate) fn exchange(&self, requests: &str) -> Vec<String> {
        let mut raw = self.connect();
        raw.send(requests);
        // Calls that do not wait are answered in their order.
        raw.send(r#"{"method":"at_any_time","id":"the last"}"#);
        let lines = std::iter::repeat_with(|| raw.line());
        lines
            .take_while(|line| !line.contains("the last"))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.resume.take());
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A connection without a client's help.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

impl Raw {
    pub(crate) fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// The next reply, without its newline.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            if byte == *b"\n" {
                return String::from_utf8(line).unwrap();
            }
            line.push(byte[0]);
        }
    }

    /// Sends a call and returns its reply, which must be the next one.
    pub(crate) fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.line()
    }

    /// How the server closed the connection, which it must do without sending more.
    pub(crate) fn closing(&mut self) -> Closing {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) if rest.is_empty() => Closing::End,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Closing::Reset,
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&rest)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    End,
    Reset,
}

#[derive(Deserialize)]
struct Echo {
    text: String,
    times: usize,
}

#[derive(Deserialize)]
struct Fail {
    errno: i32,
}

/// The methods above, in the order in which they are listed there.
fn rpc(control: &ControlLoop) -> Rpc {
    let schema: &'static Schema = Box::leak(Box::new(Schema::parse(SCHEMA).unwrap()));
    let mut registry = Registry::new(schema);
    let this: Rc<RefCell<Option<Rpc>>> = Rc::default();
    let to_start = Rc::clone(&this);
    registry.register("framework_start_init", move |_| {
        let rpc = to_start.borrow().clone();
        async move {
            rpc.unwrap().set_state(State::Runtime);
            Ok(json!(true))
        }
    });
    for name in ["at_runtime", "at_any_time"] {
        registry.register(name, |_| async { Ok(json!(true)) });
    }
    registry.register("echo", |params: Params| async {
        let Echo { text, times } = params.decode()?;
        Ok(json!(text.repeat(times)))
    });
    registry.register("fail", |params: Params| async {
        let Fail { errno } = params.decode()?;
        Err::<Value, RpcError>(Errno::from_raw(errno).into())
    });
    register_holding(&mut registry);
    Notifications::new().register(&mut registry);
    let rpc = Rpc::new(&control.handle(), registry).unwrap();
    this.replace(Some(rpc.clone()));
    rpc
}

/// `hold` answers when `release` is called.
fn register_holding(registry: &mut Registry) {
    let held: Rc<RefCell<Vec<oneshot::Sender<()>>>> = Rc::default();
    let holding = Rc::clone(&held);
    registry.register("hold", move |_| {
        let (release, released) = oneshot::channel();
        holding.borrow_mut().push(release);
        async move {
            let _ = released.await;
            Ok(json!("released"))
        }
    });
    registry.register("release", move |_| {
        let waiting = held.take();
        let released = waiting.len();
        for held in waiting {
            let _ = held.send(());
        }
        async move { Ok(json!(released)) }
    });
}
