//! A live view of what a server does: cores, threads, pollers, bdevs, sessions and paths, with
//! rates between two looks at its counters.
//!
//! [`sample`] asks for the counters, [`rates`] makes rates of two samples, [`screen`] tables of
//! those.

#![forbid(unsafe_code)]

mod rates;
mod sample;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use rnbd_console::server::Server;
use rnbd_console::text::print_lines;
use rnbd_console::{DEFAULT_SOCKET, SOCKET_VARIABLE, seconds};

use crate::rates::Rates;
use crate::sample::Sample;

/// Puts the cursor in the upper left corner and clears what is below it.
const CLEAR: &str = "\x1b[H\x1b[2J";
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Shows what a server's cores, threads, bdevs, sessions and paths do, until it is interrupted.
///
/// Any program with an RPC server can be looked at: rnbd_tgt, or rnbd_perf with -r or -z.
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    /// The server's socket [default: $RNBD_RPC_SOCK, or /var/tmp/spdk.sock]
    #[arg(short = 'r', long, value_name = "PATH")]
    rpc_socket: Option<PathBuf>,

    /// Time between two looks
    #[arg(short = 'i', long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,

    /// Show the rates of one interval, and end
    #[arg(long)]
    once: bool,

    /// Print JSON on one line
    #[arg(long, requires = "once")]
    json: bool,

    /// Show every poller
    #[arg(long)]
    pollers: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        interval => Ok(interval),
    }
}

fn main() -> ExitCode {
    let Err(error) = run(&Cli::parse()) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("rnbd_top: {error:#}");
    ExitCode::FAILURE
}

fn run(cli: &Cli) -> Result<()> {
    let mut server = Server::connect(&socket(cli), Some(ANSWER_TIME))?;
    let mut before = Sample::take(&mut server)?;
    loop {
        std::thread::sleep(cli.interval);
        let now = Sample::take(&mut server)?;
        let rates = Rates::between(&before, &now);
        if cli.once {
            return show_once(cli, &rates);
        }
        let screen = screen::text(&rates, cli.pollers);
        print_lines(&format!("{CLEAR}{screen}"))?;
        before = now;
    }
}

fn socket(cli: &Cli) -> PathBuf {
    let given = cli.rpc_socket.clone();
    given
        .or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

fn show_once(cli: &Cli, rates: &Rates) -> Result<()> {
    match cli.json {
        true => print_lines(&serde_json::to_string(rates)?),
        false => print_lines(&screen::text(rates, cli.pollers)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_documentation_lists_all_options() {
        let none = clap::Command::new("none");
        let tables = rnbd_docs::option_tables(&Cli::command(), &none);
        rnbd_docs::assert_generated("docs/options.md", "rnbd_top", &tables);
    }

    #[test]
    fn json_is_for_a_single_look() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("rnbd_top --json").is_err());
        assert!(parse("rnbd_top --once --json").is_ok());
        assert!(parse("rnbd_top -i 0").is_err());
    }
}
