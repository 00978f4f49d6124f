use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::RpcError;
use crate::framing::Scanner;

const READ_BYTES: usize = 64 << 10;

/// A blocking client, for the command line and for tests. One call at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    last_id: u64,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered an error.
    #[error(transparent)]
    Rpc(RpcError),
    /// The server closed the connection.
    #[error("the server closed the connection without an answer")]
    Closed,
    /// No answer came within the time set.
    #[error("no answer within the time allowed")]
    TimedOut,
    /// The answer is not one.
    #[error("the server's answer is not a JSON-RPC reply")]
    BadReply,
    /// The socket failed.
    #[error("cannot talk to the server")]
    Io(#[source] io::Error),
}

#[derive(Deserialize)]
struct Reply {
    id: Value,
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    error: Option<ReplyError>,
}

#[derive(Deserialize)]
struct ReplyError {
    code: i64,
    message: String,
}

impl Client {
    /// Connects to a server's socket.
    ///
    /// # Errors
    /// If there is no socket, nobody listens on it, or it is not ours to use.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(path)?,
            received: Vec::new(),
            last_id: 0,
        })
    }

    /// How long a call waits while nothing arrives; for ever if `None`, as at first.
    ///
    /// # Errors
    /// If `timeout` is zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// [`ClientError`]; after anything but [`ClientError::Rpc`] the connection is of no more use.
    pub fn call(&mut self, method: &str, params: Option<Value>) -> Result<Value, ClientError> {
        self.last_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "method": method, "id": self.last_id});
        if let Some(params) = params {
            request["params"] = params;
        }
        let text = format!("{request}\n");
        self.stream.write_all(text.as_bytes()).map_err(io_error)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, ClientError> {
        let value = self.next_value()?;
        let reply: Reply = serde_json::from_slice(&value).map_err(|_| ClientError::BadReply)?;
        match reply.error {
            Some(error) => Err(ClientError::Rpc(RpcError::new(error.code, error.message))),
            None if reply.id == self.last_id => Ok(reply.result.unwrap_or(Value::Null)),
            None => Err(ClientError::BadReply),
        }
    }

    fn next_value(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut scanner = Scanner::unlimited();
        loop {
            let end = scanner.next_value(&self.received);
            if let Some(end) = end.map_err(|_| ClientError::BadReply)? {
                return Ok(self.received.drain(..end).collect());
            }
            let have = self.received.len();
            self.received.resize(have + READ_BYTES, 0);
            let read = self.stream.read(&mut self.received[have..]);
            let count = read.as_ref().map_or(0, |&count| count);
            self.received.truncate(have + count);
            match read {
                Ok(0) => return Err(ClientError::Closed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(error)),
                Ok(_) => {}
            }
        }
    }
}

fn io_error(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::WouldBlock => ClientError::TimedOut,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
        _ => ClientError::Io(error),
    }
}
