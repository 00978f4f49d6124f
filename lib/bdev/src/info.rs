use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::bdev::Bdev;
use crate::claim::ClaimInfo;
use crate::limits::RateLimits;

/// A device and who uses it.
#[derive(Clone, Debug)]
pub struct BdevInfo {
    /// The device.
    pub bdev: Arc<dyn Bdev>,
    /// Open descriptors.
    pub descriptors: usize,
    /// Those of them that may write.
    pub writers: usize,
    /// Open channels.
    pub channels: usize,
    /// Who has claimed it.
    pub claim: Option<ClaimInfo>,
    /// How fast it may be read and written.
    pub limits: RateLimits,
    /// Whether its removal has begun.
    pub removing: bool,
}

impl BdevInfo {
    /// The element of `bdev_get_bdevs` (spdk-conventions.md A.7).
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let geometry = self.bdev.geometry();
        let unmap_granularity_blocks =
            self.bdev.features().unmap_granularity / geometry.block_size.max(1);
        let uuid = self.bdev.uuid().to_string();
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("name", json!(self.bdev.name()));
        put("aliases", json!([uuid]));
        put("product_name", json!(self.bdev.product_name()));
        put("block_size", json!(geometry.block_size));
        put("num_blocks", json!(geometry.num_blocks));
        // The devices have no preferences beyond their blocks.
        put("preferred_write_alignment", json!(0));
        put("preferred_write_granularity", json!(0));
        put("optimal_write_size", json!(0));
        put("preferred_unmap_alignment", json!(0));
        put(
            "preferred_unmap_granularity",
            json!(unmap_granularity_blocks),
        );
        put("uuid", json!(uuid));
        put("assigned_rate_limits", limits_json(&self.limits));
        put("claimed", json!(self.claim.is_some()));
        if let Some(claim) = &self.claim {
            put("claim_type", json!(claim.claim_type.name()));
        }
        put("zoned", json!(false));
        put("supported_io_types", self.io_types());
        put(
            "driver_specific",
            Value::Object(self.bdev.driver_specific()),
        );
        object
    }

    fn io_types(&self) -> Value {
        let features = self.bdev.features();
        let write = !features.read_only;
        json!({
            "read": true,
            "write": write,
            "unmap": write && features.unmap,
            "flush": true,
            "reset": false,
            "nvme_admin": false,
            "nvme_io": false,
            "nvme_io_md": false,
            "write_zeroes": write,
            "zcopy": false,
            "get_zone_info": false,
            "zone_management": false,
            "zone_append": false,
            "compare": false,
            "compare_and_write": false,
            "abort": false,
            "seek_hole": false,
            "seek_data": false,
            "copy": false,
            "nvme_iov_md": false,
            "nvme_nssr": false,
            "write_uncorrectable": false,
        })
    }
}

fn limits_json(limits: &RateLimits) -> Value {
    json!({
        "rw_ios_per_sec": limits.rw_ios_per_sec,
        "rw_mbytes_per_sec": limits.rw_mbytes_per_sec,
        "r_mbytes_per_sec": limits.r_mbytes_per_sec,
        "w_mbytes_per_sec": limits.w_mbytes_per_sec,
    })
}
