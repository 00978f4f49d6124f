use std::fmt;

use anyhow::Result;
use clap::ArgMatches;
use serde::Deserialize;
use serde_json::json;

use super::{Report, cell, units};
use crate::server::{Server, parse};
use crate::table::Table;

const RNBD_EXPORTS: &str = "rnbd_get_exports";
const NBD_EXPORTS: &str = "nbd_get_exports";
const SECTOR_BYTES: u64 = 512;

#[derive(Deserialize)]
struct RnbdExport {
    device_path: String,
    bdev_name: String,
    access: String,
    #[serde(default)]
    allow_any_host: bool,
    hosts: Vec<Host>,
    opens: Vec<Open>,
    /// Absent, as the next, when the bdev was removed.
    #[serde(default)]
    size_sectors: Option<u64>,
    #[serde(default)]
    logical_block_size: Option<u64>,
}

#[derive(Deserialize)]
struct Host {
    host: String,
    /// Where it has to come from, if that matters.
    #[serde(default)]
    traddr: Option<String>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.traddr {
            Some(from) => write!(f, "{} from {from}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

#[derive(Deserialize)]
struct Open {
    sessname: String,
    access_mode: String,
}

#[derive(Deserialize)]
struct NbdExport {
    name: String,
    bdev_name: String,
    read_only: bool,
    connections: u64,
    uri: String,
}

pub(super) fn run(server: &mut Server, _: &ArgMatches) -> Result<Report> {
    let rnbd = server.call(RNBD_EXPORTS, None)?;
    let nbd = server.call(NBD_EXPORTS, None)?;
    let mut table = Table::new(&[
        "NAME", "KIND", "BDEV", ">SIZE", ">BLOCK", "ACCESS", "ALLOWED", "OPEN BY", "URI",
    ]);
    for export in parse::<Vec<RnbdExport>>(RNBD_EXPORTS, &rnbd)? {
        table.row(rnbd_row(export));
    }
    for export in parse::<Vec<NbdExport>>(NBD_EXPORTS, &nbd)? {
        table.row(nbd_row(export));
    }
    let json = json!({"rnbd": rnbd, "nbd": nbd});
    Ok(Report { json, table })
}

fn rnbd_row(export: RnbdExport) -> [String; 9] {
    let size = export
        .size_sectors
        .map(|sectors| units::bytes(sectors.saturating_mul(SECTOR_BYTES)));
    let allowed = allowed(&export);
    let opens = export.opens.iter();
    let opens = opens.map(|open| format!("{} ({})", open.sessname, open.access_mode));
    [
        export.device_path,
        "rnbd".to_owned(),
        export.bdev_name,
        size.unwrap_or_else(|| "removed".to_owned()),
        cell(export.logical_block_size),
        export.access,
        allowed,
        opens.collect::<Vec<_>>().join(", "),
        String::new(),
    ]
}

fn allowed(export: &RnbdExport) -> String {
    let hosts = export.hosts.iter().map(Host::to_string);
    let anybody = export.allow_any_host.then(|| "anybody".to_owned());
    let allowed: Vec<String> = hosts.chain(anybody).collect();
    match allowed.is_empty() {
        true => "nobody".to_owned(),
        false => allowed.join(", "),
    }
}

fn nbd_row(export: NbdExport) -> [String; 9] {
    let access = if export.read_only { "ro" } else { "rw" };
    let opens = match export.connections {
        0 => String::new(),
        1 => "1 client".to_owned(),
        count => format!("{count} clients"),
    };
    [
        export.name,
        "nbd".to_owned(),
        export.bdev_name,
        String::new(),
        String::new(),
        access.to_owned(),
        "anybody".to_owned(),
        opens,
        export.uri,
    ]
}
