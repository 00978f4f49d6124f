//! The RNBD daemon: exports bdevs to clients, attaches devices of other servers as bdevs, or both,
//! as the RPC calls and the configuration say.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use rnbd_framework::Env;

/// Exports block devices over RNBD/RTRS, and attaches those of other servers.
///
/// What it does is said by JSON-RPC (see rnbd_rpc) or by a configuration (-c) that
/// `rnbd_rpc save_config` wrote.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: rnbd_framework::Options,
}

fn main() -> ExitCode {
    rnbd_framework::run(Cli::parse().options, async |env: Env| {
        env.stopped().await;
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;

    #[test]
    fn the_documentation_lists_all_options() {
        let tables = rnbd_docs::option_tables(&Cli::command(), &Command::new("none"));
        rnbd_docs::assert_generated("docs/options.md", "rnbd_tgt", &tables);
    }
}
