//! What the programs that ask a server have in common: where it is, calls whose errors say what to
//! do, and numbers and tables for people.

#![forbid(unsafe_code)]

pub mod server;
pub mod table;
pub mod text;
pub mod units;

use std::time::Duration;

/// Where a server is if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/tmp/spdk.sock";
/// The environment variable that says otherwise.
pub const SOCKET_VARIABLE: &str = "RNBD_RPC_SOCK";

/// A number of seconds on the command line, which may be a fraction.
///
/// # Errors
/// What is wrong, for the command line's message.
pub fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "must be a number of seconds, 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_be_fractions_but_not_negative() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for wrong in ["-1", "nan", "soon", "1e300", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
