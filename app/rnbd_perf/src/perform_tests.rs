//! `perform_tests`: with `-z`, the program waits for clients to ask for its tests.

use std::cell::Cell;
use std::rc::Rc;

use clap::ValueEnum;
use futures_channel::{mpsc, oneshot};
use rnbd_rpc::{Params, RpcError, RpcResult};
use serde::Deserialize;

use crate::cli::Cli;
use crate::size::parse_io_size;
use crate::workload::Workload;

/// The method's parameters: what goes before the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Changes {
    queue_depth: Option<u32>,
    time_in_sec: Option<u32>,
    workload_type: Option<String>,
    io_size: Option<String>,
    rw_percentage: Option<u8>,
}

/// A client that waits for its tests.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) changes: Changes,
    pub(crate) reply: oneshot::Sender<RpcResult>,
}

/// What the RPC server has of the method.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    requests: mpsc::UnboundedSender<Request>,
    is_running: Rc<Cell<bool>>,
}

impl Method {
    /// The method, and what clients ask of it.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, received) = mpsc::unbounded();
        let method = Self {
            requests,
            is_running: Rc::default(),
        };
        (method, received)
    }

    /// Passes a call on, and waits for its result.
    pub(crate) async fn call(self, params: Params) -> RpcResult {
        let changes = params.decode()?;
        if self.is_running.replace(true) {
            return Err(RpcError::internal("Operation now in progress"));
        }
        let (reply, result) = oneshot::channel();
        // Without `-z`, nobody listens; when the program ends, nobody does any more.
        let sent = self.requests.unbounded_send(Request { changes, reply });
        let result = match sent {
            Ok(()) => result.await.ok(),
            Err(_) => None,
        };
        self.is_running.set(false);
        result.unwrap_or_else(|| Err(RpcError::internal("no tests wait to be performed; see -z")))
    }
}

impl Changes {
    /// The command line with these changes.
    ///
    /// # Errors
    /// -32602 for a value that the command line would not take.
    pub(crate) fn apply(self, cli: &Cli) -> Result<Cli, RpcError> {
        let workload = self.workload_type.as_deref().map(workload).transpose()?;
        let io_bytes = self.io_size.as_deref().map(io_size).transpose()?;
        let workload = workload.or(cli.workload);
        // What an earlier run mixed means nothing to one that does not.
        let is_mixed = workload.is_some_and(Workload::is_mixed);
        let earlier = cli.read_percent.filter(|_| is_mixed);
        Ok(Cli {
            depth: self.queue_depth.or(cli.depth),
            seconds: self.time_in_sec.map_or(cli.seconds, u64::from),
            workload,
            io_bytes: io_bytes.or(cli.io_bytes),
            read_percent: self.rw_percentage.or(earlier),
            ..cli.clone()
        })
    }
}

fn workload(name: &str) -> Result<Workload, RpcError> {
    Workload::from_str(name, true)
        .map_err(|_| RpcError::invalid_params(format!("there is no workload {name:?}; see -w")))
}

fn io_size(text: &str) -> Result<u32, RpcError> {
    parse_io_size(text)
        .map_err(|reason| RpcError::invalid_params(format!("io_size {text:?}: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_go_before_what_was_said_before_and_stay() {
        let cli = Cli::parse_words("-z -q 4 -o 4k -w randrw -M 30 -t 3").unwrap();
        let first = Changes {
            io_size: Some("8K".to_owned()),
            workload_type: Some("RANDREAD".to_owned()),
            ..Changes::default()
        };
        let after_first = first.apply(&cli).unwrap();
        assert_eq!(after_first.io_bytes, Some(8192));
        assert_eq!(after_first.workload, Some(Workload::RandRead));
        assert_eq!((after_first.depth, after_first.seconds), (Some(4), 3));
        assert_eq!(after_first.read_percent, None, "there is nothing to mix");

        let second = Changes {
            queue_depth: Some(9),
            time_in_sec: Some(1),
            workload_type: Some("rw".to_owned()),
            rw_percentage: Some(70),
            ..Changes::default()
        };
        let after_second = second.apply(&after_first).unwrap();
        assert_eq!(after_second.io_bytes, Some(8192));
        assert_eq!(after_second.read_percent, Some(70));
        assert_eq!((after_second.depth, after_second.seconds), (Some(9), 1));
    }

    #[test]
    fn values_that_the_command_line_would_not_take_are_named() {
        let cli = Cli::parse_words("-z").unwrap();
        let message = |changes: Changes| changes.apply(&cli).unwrap_err().message;
        let workload_type = Some("reset".to_owned());
        let text = message(Changes {
            workload_type,
            ..Changes::default()
        });
        assert_eq!(text, "there is no workload \"reset\"; see -w");
        let io_size = Some("100".to_owned());
        let text = message(Changes {
            io_size,
            ..Changes::default()
        });
        assert!(text.starts_with("io_size \"100\": an I/O has"), "{text}");
    }
}
