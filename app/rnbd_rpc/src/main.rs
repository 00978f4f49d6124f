//! Command line client of the RPC server.
//!
//! Every method of the schema is a command whose options are the method's parameters; short views
//! for people, and saving and loading of configurations, are commands of their own.

#![forbid(unsafe_code)]

mod commands;
mod config;
mod method;
mod params;
mod print;
mod python_json;
mod views;

use std::process::ExitCode;

use rnbd_console::{server, table};
use rnbd_rpc::Schema;

fn main() -> ExitCode {
    let Err(error) = commands::run(Schema::builtin(), std::env::args_os()) else {
        return ExitCode::SUCCESS;
    };
    match error.downcast::<clap::Error>() {
        Ok(usage) => usage_exit(&usage),
        Err(error) => {
            eprintln!("rnbd_rpc: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Shows help, which is a success, or how a command is used, which is not.
fn usage_exit(usage: &clap::Error) -> ExitCode {
    // There is nobody left to tell if this cannot be written.
    let _ = usage.print();
    u8::try_from(usage.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}
