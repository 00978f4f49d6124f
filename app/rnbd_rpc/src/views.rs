//! Short views for people: what is there and how it does, as tables. For scripts each gives the
//! JSON that its table was made of.

mod bdevs;
mod devices;
mod exports;
mod listeners;
mod paths;
mod reactors;
mod sessions;
mod stats;

use anyhow::Result;
use clap::{ArgMatches, Command};
use rnbd_console::units;
use serde_json::Value;

use crate::server::Server;
use crate::table::Table;

/// What a view shows.
#[derive(Debug)]
pub(crate) struct Report {
    /// For scripts.
    pub(crate) json: Value,
    /// For people.
    pub(crate) table: Table,
}

/// A command that shows a table.
pub(crate) struct View {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// What is said instead of a table without rows.
    pub(crate) when_empty: &'static str,
    /// Adds the view's own options.
    pub(crate) arguments: fn(Command) -> Command,
    /// Asks the server.
    pub(crate) run: fn(&mut Server, &ArgMatches) -> Result<Report>,
}

pub(crate) const VIEWS: &[View] = &[
    View {
        name: "sessions",
        about: "Target: who is connected, by which paths, and what they did",
        when_empty: "No client is connected.",
        arguments: no_arguments,
        run: sessions::run,
    },
    View {
        name: "exports",
        about: "Target: what is offered, to whom, and who has it open",
        when_empty: "Nothing is exported; rnbd_create_export and nbd_start_export do so.",
        arguments: no_arguments,
        run: exports::run,
    },
    View {
        name: "listeners",
        about: "Target: where clients may connect, and how many did",
        when_empty: "Nothing listens; rtrs_create_transport and rtrs_add_listener begin to.",
        arguments: no_arguments,
        run: listeners::run,
    },
    View {
        name: "paths",
        about: "Initiator: the controllers, their paths, and how those do",
        when_empty: "No controller is attached; bdev_rnbd_attach_controller attaches one.",
        arguments: no_arguments,
        run: paths::run,
    },
    View {
        name: "devices",
        about: "Initiator: the devices mapped from targets",
        when_empty: "No device is mapped; bdev_rnbd_map_device maps one.",
        arguments: no_arguments,
        run: devices::run,
    },
    View {
        name: "bdevs",
        about: "All block devices",
        when_empty: "There are no bdevs; bdev_uring_create makes one of a file.",
        arguments: no_arguments,
        run: bdevs::run,
    },
    View {
        name: "reactors",
        about: "What the cores do",
        when_empty: "There are no reactors.",
        arguments: reactors::arguments,
        run: reactors::run,
    },
];

fn no_arguments(command: Command) -> Command {
    command
}

/// A cell of something that may be absent.
fn cell(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
