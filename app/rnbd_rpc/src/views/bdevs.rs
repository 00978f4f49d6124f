use anyhow::Result;
use clap::ArgMatches;
use serde::Deserialize;

use super::{Report, cell, units};
use crate::server::{Server, parse};
use crate::table::Table;

const BDEVS: &str = "bdev_get_bdevs";

#[derive(Deserialize)]
struct Bdev {
    name: String,
    product_name: String,
    block_size: u64,
    num_blocks: u64,
    uuid: String,
    #[serde(default)]
    claim_type: Option<String>,
}

pub(super) fn run(server: &mut Server, _: &ArgMatches) -> Result<Report> {
    let json = server.call(BDEVS, None)?;
    let bdevs: Vec<Bdev> = parse(BDEVS, &json)?;
    let mut table = Table::new(&["NAME", "KIND", ">SIZE", ">BLOCK", "CLAIM", "UUID"]);
    for bdev in bdevs {
        table.row([
            bdev.name,
            bdev.product_name,
            units::bytes(bdev.num_blocks.saturating_mul(bdev.block_size)),
            bdev.block_size.to_string(),
            cell(bdev.claim_type),
            bdev.uuid,
        ]);
    }
    Ok(Report { json, table })
}
