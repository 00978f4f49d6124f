//! What an opener is told about a device (protocol.md 9.5).

use rnbd_base::Errno;
use rnbd_bdev::{Features, Geometry};
use rnbd_wire::limits::SECTOR_BYTES;
use rnbd_wire::rnbd::{CachePolicy, OpenRsp};

use super::exports::ExportView;
use super::io::DeviceView;

/// Largest range of one request: its size in bytes has 32 bits.
const RANGE_BYTES_MAX: u32 = u32::MAX - (SECTOR_BYTES - 1);
/// Pages of a transfer that Linux clients map at most.
const SEGMENTS_MAX: u16 = 128;

/// What to tell the opener, and what to hold it to. `max_io_bytes` is the session's.
///
/// # Errors
/// `EINVAL` for a device whose blocks RNBD clients cannot use.
pub fn describe(
    device_id: u32,
    geometry: Geometry,
    features: &Features,
    export: &ExportView,
    max_io_bytes: u32,
) -> Result<(OpenRsp, DeviceView), Errno> {
    let block_bytes = geometry.block_size;
    if !block_bytes.is_power_of_two() || !(512..=4096).contains(&block_bytes) {
        return Err(Errno::INVAL);
    }
    let view = view(geometry, features, export);
    let max_io_bytes = export
        .max_io_bytes
        .map_or(max_io_bytes, |own| own.min(max_io_bytes));
    let rsp = OpenRsp {
        device_id,
        nsectors: geometry.bytes() / u64::from(SECTOR_BYTES),
        max_hw_sectors: max_io_bytes / SECTOR_BYTES,
        max_write_zeroes_sectors: view.max_write_zeroes_bytes / SECTOR_BYTES,
        max_discard_sectors: view.max_discard_bytes / SECTOR_BYTES,
        discard_granularity: features.unmap_granularity.max(block_bytes),
        discard_alignment: 0,
        physical_block_size: small(geometry.physical_block_size.max(block_bytes)),
        logical_block_size: small(block_bytes),
        max_segments: SEGMENTS_MAX,
        secure_discard: 0,
        rotational: export.rotational.into(),
        cache_policy: cache_policy(features, export),
    };
    Ok((rsp, view))
}

fn view(geometry: Geometry, features: &Features, export: &ExportView) -> DeviceView {
    let read_only = export.read_only || features.read_only;
    let offered = |wanted: Option<bool>, able| !read_only && wanted.unwrap_or(able);
    let range_bytes = |offered| match offered {
        true => RANGE_BYTES_MAX & !(geometry.block_size - 1),
        false => 0,
    };
    DeviceView {
        read_only,
        block_bytes: geometry.block_size,
        num_blocks: geometry.num_blocks,
        max_discard_bytes: range_bytes(features.unmap && offered(export.discard, true)),
        max_write_zeroes_bytes: range_bytes(offered(export.write_zeroes, features.write_zeroes)),
    }
}

fn cache_policy(features: &Features, export: &ExportView) -> CachePolicy {
    match export.write_cache.unwrap_or(features.write_cache) {
        true => CachePolicy::FUA | CachePolicy::WRITE_BACK,
        false => CachePolicy::empty(),
    }
}

/// Block sizes above 32 KiB cannot be said; a smaller physical one costs speed only.
fn small(block_bytes: u32) -> u16 {
    u16::try_from(block_bytes).unwrap_or(1 << 15)
}
