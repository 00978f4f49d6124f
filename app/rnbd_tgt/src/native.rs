//! On reactors, bdevs and an RPC server of its own.

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

pub(crate) fn run() -> ExitCode {
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
