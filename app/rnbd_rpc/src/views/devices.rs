use anyhow::Result;
use clap::ArgMatches;
use serde::Deserialize;
use serde_json::Value;

use super::{Report, units};
use crate::server::{Server, parse};
use crate::table::Table;

const BDEVS: &str = "bdev_get_bdevs";

#[derive(Deserialize)]
struct Bdev {
    name: String,
    block_size: u64,
    num_blocks: u64,
    driver_specific: DriverSpecific,
}

#[derive(Deserialize)]
struct DriverSpecific {
    rnbd: Device,
}

#[derive(Deserialize)]
struct Device {
    ctrlr_name: String,
    sessname: String,
    device_path: String,
    access_mode: String,
    state: String,
}

pub(super) fn run(server: &mut Server, _: &ArgMatches) -> Result<Report> {
    let mut json = server.call(BDEVS, None)?;
    if let Some(bdevs) = json.as_array_mut() {
        bdevs.retain(|bdev| bdev["driver_specific"]["rnbd"] != Value::Null);
    }
    let bdevs: Vec<Bdev> = parse(BDEVS, &json)?;
    let mut table = Table::new(&[
        "BDEV",
        "CONTROLLER",
        "SESSION",
        "DEVICE",
        "ACCESS",
        "STATE",
        ">SIZE",
        ">BLOCK",
    ]);
    for bdev in bdevs {
        let device = bdev.driver_specific.rnbd;
        table.row([
            bdev.name,
            device.ctrlr_name,
            device.sessname,
            device.device_path,
            device.access_mode,
            device.state,
            units::bytes(bdev.num_blocks.saturating_mul(bdev.block_size)),
            bdev.block_size.to_string(),
        ]);
    }
    Ok(Report { json, table })
}
