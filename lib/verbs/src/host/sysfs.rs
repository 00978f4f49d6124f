//! What the kernel shows of RDMA devices without anybody having them open.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A device that programs may open now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Such as `mlx5_0`.
    pub(crate) name: String,
    /// Tells a device from a later one of the same name.
    pub(crate) inode: u64,
}

/// A port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// From 1 on.
    pub number: u32,
    /// As the kernel says it: `ACTIVE`, `DOWN`, …
    pub state: String,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: String,
    /// Its addresses as GIDs; an IPv4 address is written as `::ffff:a.b.c.d`'s 16 bytes.
    pub gids: Vec<String>,
}

const VERBS: &str = "/sys/class/infiniband_verbs";
const DEVICES: &str = "/sys/class/infiniband";

/// All devices that can be opened. One that is being removed leaves this list first, while the
/// kernel still waits for programs to let go of it.
pub(crate) fn openable() -> Vec<Seen> {
    entries(Path::new(VERBS)).filter_map(seen).collect()
}

fn seen(entry: PathBuf) -> Option<Seen> {
    let name = text(&entry.join("ibdev"))?;
    let inode = fs::metadata(entry).ok()?.ino();
    Some(Seen { name, inode })
}

/// Whether the kernel has not finished with a device.
pub(crate) fn exists(name: &str) -> bool {
    Path::new(DEVICES).join(name).exists()
}

/// Whether a port of the device is up.
pub(crate) fn has_active_port(name: &str) -> bool {
    let folder = Path::new(DEVICES).join(name).join("ports");
    entries(&folder).any(|port| text(&port.join("state")).is_some_and(|it| it.ends_with("ACTIVE")))
}

/// The ports of a device, in order.
pub(crate) fn ports(name: &str) -> Vec<PortInfo> {
    let folder = Path::new(DEVICES).join(name).join("ports");
    let mut ports: Vec<_> = entries(&folder)
        .filter_map(|port| read_port(&port))
        .collect();
    ports.sort_by_key(|port| port.number);
    ports
}

fn read_port(port: &Path) -> Option<PortInfo> {
    let state = text(&port.join("state"))?;
    let gids = entries(&port.join("gids")).filter_map(|gid| text(&gid));
    let mut gids: Vec<_> = gids.filter(|gid| is_set(gid)).collect();
    gids.sort();
    gids.dedup();
    Some(PortInfo {
        number: port.file_name()?.to_str()?.parse().ok()?,
        // "4: ACTIVE"
        state: state.rsplit(' ').next().unwrap_or_default().to_owned(),
        link_layer: text(&port.join("link_layer"))?,
        gids,
    })
}

fn is_set(gid: &str) -> bool {
    gid.chars().any(|digit| !matches!(digit, '0' | ':'))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unset_gid_is_none() {
        assert!(!is_set("0000:0000:0000:0000:0000:0000:0000:0000"));
        assert!(is_set("0000:0000:0000:0000:0000:ffff:0a09:0001"));
    }
}
