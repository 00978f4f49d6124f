//! The connection to the server, with errors that say what to do.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rnbd_base::Errno;
use rnbd_rpc::{Client, ClientError, RpcError};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A server that may be called.
#[derive(Debug)]
pub struct Server {
    client: Client,
    timeout: Option<Duration>,
}

impl Server {
    /// Connects to the server at `socket`; answers may take `timeout`, or for ever if it is `None`.
    ///
    /// # Errors
    /// If there is no server, or it may not be used.
    pub fn connect(socket: &Path, timeout: Option<Duration>) -> Result<Self> {
        let client =
            Client::connect(socket).map_err(|error| anyhow!(cannot_connect(socket, &error)))?;
        client
            .set_timeout(timeout)
            .context("the time to wait cannot be set")?;
        Ok(Self { client, timeout })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// If the server answers an error, or nothing.
    pub fn call(&mut self, method: &str, params: Option<Value>) -> Result<Value> {
        match self.client.call(method, params) {
            Ok(result) => Ok(result),
            // The program may end before it can answer that it does.
            Err(ClientError::Closed) if method == "spdk_kill_instance" => Ok(Value::Bool(true)),
            Err(ClientError::Rpc(error)) => Err(anyhow!("{method}: {}", refusal(&error))),
            Err(ClientError::TimedOut) => Err(anyhow!("{method}: {}", too_late(self.timeout))),
            Err(error) => Err(anyhow::Error::new(error).context(method.to_owned())),
        }
    }

    /// Calls a method without parameters and takes from the answer what `T` wants.
    ///
    /// # Errors
    /// If the call fails, or the answer has another form.
    pub fn read<T: DeserializeOwned>(&mut self, method: &str) -> Result<T> {
        parse(method, &self.call(method, None)?)
    }
}

/// Takes from the answer of `method` what `T` wants.
///
/// # Errors
/// If it has another form.
pub fn parse<T: DeserializeOwned>(method: &str, answer: &Value) -> Result<T> {
    T::deserialize(answer).with_context(|| format!("{method}: the answer is of an unknown form"))
}

fn cannot_connect(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no socket {socket}: is rnbd_tgt running? -s names its socket")
        }
        io::ErrorKind::ConnectionRefused => format!(
            "nobody listens on {socket}: has rnbd_tgt ended, or is it still starting? \
             -s names its socket"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{socket} may not be used: run this as the user who runs rnbd_tgt, or as root")
        }
        _ => format!("cannot connect to {socket}: {error}; -s names the socket of rnbd_tgt"),
    }
}

fn refusal(error: &RpcError) -> String {
    let mut text = format!("{} (code {}", error.message, error.code);
    // -1 is a state error as often as EPERM; the message tells which.
    if let Some(symbol) = symbol(error.code).filter(|_| error.code != RpcError::INVALID_STATE) {
        let _ = write!(text, ", {symbol}");
    }
    text.push(')');
    text
}

/// The name of an error code that is a negative errno.
#[must_use]
pub fn symbol(code: i64) -> Option<&'static str> {
    let errno = i32::try_from(code).ok().filter(|code| *code < 0)?;
    (errno > -512).then(|| Errno::from_raw(errno).symbol())?
}

fn too_late(timeout: Option<Duration>) -> String {
    let seconds = timeout.unwrap_or_default().as_secs_f64();
    format!("no answer within {seconds} s; -t sets how long to wait")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_errno() {
        let exists = RpcError::new(-17, "File exists");
        assert_eq!(refusal(&exists), "File exists (code -17, EEXIST)");
    }

    #[test]
    fn codes_that_are_no_errno_stand_alone() {
        for code in [-32602, -1, 17, i64::MIN] {
            let text = refusal(&RpcError::new(code, "No"));
            assert_eq!(text, format!("No (code {code})"));
        }
    }
}
