use std::collections::BTreeMap;

use anyhow::Result;
use clap::ArgMatches;
use serde::Deserialize;

use super::Report;
use crate::server::{Server, parse};
use crate::table::Table;

const LISTENERS: &str = "rtrs_get_listeners";

#[derive(Deserialize)]
struct Listener {
    listen_address: Address,
    accepted: u64,
    rejected: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Address {
    trtype: String,
    traddr: String,
    trsvcid: String,
}

pub(super) fn run(server: &mut Server, _: &ArgMatches) -> Result<Report> {
    let json = server.call(LISTENERS, None)?;
    let listeners: Vec<Listener> = parse(LISTENERS, &json)?;
    let mut table = Table::new(&["TRANSPORT", "ADDRESS", ">PORT", ">ACCEPTED", "REJECTED"]);
    for listener in listeners {
        let address = listener.listen_address;
        let rejected = listener.rejected.iter();
        let rejected = rejected.map(|(reason, count)| format!("{count} {reason}"));
        table.row([
            address.trtype,
            address.traddr,
            address.trsvcid,
            listener.accepted.to_string(),
            rejected.collect::<Vec<_>>().join(", "),
        ]);
    }
    Ok(Report { json, table })
}
