use std::path::Path;
use std::rc::Rc;

use rnbd_base::{Errno, Nanos};
use rnbd_proto::srv::{Export, ExportError, ExportInfo, HostRule, OpenInfo, ServiceOptions};
use rnbd_proto::target::{DeviceCounters, DeviceInfo, DeviceSelector, IoCounters, SessionInfo};
use rnbd_rpc::{RpcError, RpcResult};
use rnbd_wire::limits::SECTOR_BYTES;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::rtrs::{sessions, with_session};
use super::{Methods, NoParams, stopped};
use crate::access::Access;
use crate::reply::reply;
use crate::system::System;
use crate::target::Transport;

/// Latencies are in nanoseconds, which the tick rate says.
const TICK_RATE: u64 = 1_000_000_000;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("rnbd_set_options", set_options);
    methods.add_sync("rnbd_get_options", |system, NoParams {}| {
        Ok(Value::Object(options_json(
            &system.target.exports.options(),
        )))
    });
    methods.add_sync("rnbd_create_export", create_export);
    methods.add("rnbd_delete_export", delete_export);
    methods.add_sync("rnbd_set_export", set_export);
    methods.add_sync("rnbd_get_exports", get_exports);
    methods.add_sync("rnbd_export_add_host", add_host);
    methods.add_sync("rnbd_export_remove_host", |system, params: RemoveHost| {
        done(
            system
                .target
                .exports
                .remove_host(&params.device_path, &params.host),
        )
    });
    methods.add_sync(
        "rnbd_export_allow_any_host",
        |system, params: AllowAnyHost| {
            done(system.target.exports.update(&params.device_path, |export| {
                export.allow_any_host = params.allow_any_host;
            }))
        },
    );
    methods.add("rnbd_close_device", close_device);
    methods.add("rnbd_get_stats", get_stats);
}

fn done(result: Result<(), ExportError>) -> RpcResult {
    result.map_err(|error| not_done(&error))?;
    Ok(json!(true))
}

fn not_done(error: &ExportError) -> RpcError {
    RpcError::errno(error.errno(), error.to_string())
}

#[derive(Deserialize)]
struct SetOptions {
    dev_search_path: Option<String>,
    allow_any_host: Option<bool>,
    default_access_mode_max: Option<Access>,
    max_devices_per_session: Option<u32>,
    missing_device: Option<MissingDevice>,
    open_timeout_ms: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MissingDevice {
    Fail,
    Wait,
}

fn set_options(system: &System, params: SetOptions) -> RpcResult {
    let mut options = system.target.exports.options();
    if let Some(path) = params.dev_search_path {
        options.dev_search_path = checked_search_path(path)?;
    }
    if let Some(allowed) = params.allow_any_host {
        options.allow_any_host = allowed;
    }
    if let Some(access) = params.default_access_mode_max {
        options.max_access = access.into();
    }
    if let Some(devices) = params.max_devices_per_session {
        options.max_devices_per_session = devices;
    }
    if let Some(missing) = params.missing_device {
        options.wait_for_missing = missing == MissingDevice::Wait;
    }
    if let Some(ms) = params.open_timeout_ms {
        options.open_timeout = Nanos::from_millis(ms.into());
    }
    system.target.exports.set_options(options);
    system.target.rnbd_options_set.set(true);
    Ok(json!(true))
}

/// `None` for an empty one. What follows `%SESSNAME%` is made per session, so only what stands
/// before it must be there.
fn checked_search_path(path: String) -> Result<Option<String>, RpcError> {
    if path.is_empty() {
        return Ok(None);
    }
    let fixed = path.split("%SESSNAME%").next().unwrap_or(&path);
    if !Path::new(fixed).is_absolute() {
        let text = format!("dev_search_path '{path}' must begin with '/'");
        return Err(RpcError::errno(Errno::INVAL, text));
    }
    if !Path::new(fixed).is_dir() {
        let text = format!("dev_search_path: there is no directory {fixed}");
        return Err(RpcError::errno(Errno::INVAL, text));
    }
    Ok(Some(path))
}

/// The options as `rnbd_set_options` takes them.
pub(crate) fn options_json(options: &ServiceOptions) -> Map<String, Value> {
    let members = [
        (
            "dev_search_path",
            json!(options.dev_search_path.as_deref().unwrap_or("")),
        ),
        ("allow_any_host", json!(options.allow_any_host)),
        (
            "default_access_mode_max",
            json!(options.max_access.as_str()),
        ),
        (
            "max_devices_per_session",
            json!(options.max_devices_per_session),
        ),
        (
            "missing_device",
            json!(if options.wait_for_missing {
                "wait"
            } else {
                "fail"
            }),
        ),
        (
            "open_timeout_ms",
            json!(options.open_timeout.as_duration().as_millis()),
        ),
    ];
    members
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
}

#[derive(Deserialize)]
struct CreateExport {
    device_path: String,
    bdev_name: String,
    read_only: bool,
    max_writers: u32,
    allow_any_host: Option<bool>,
    max_io_size: Option<u32>,
    write_cache: WriteCache,
    rotational: bool,
    discard: Option<bool>,
    write_zeroes: Option<bool>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WriteCache {
    Auto,
    On,
    Off,
}

impl From<WriteCache> for Option<bool> {
    fn from(cache: WriteCache) -> Self {
        match cache {
            WriteCache::Auto => None,
            WriteCache::On => Some(true),
            WriteCache::Off => Some(false),
        }
    }
}

fn create_export(system: &System, params: CreateExport) -> RpcResult {
    check_device_path(&params.device_path)?;
    system.provide_bdev(&params.bdev_name, !params.read_only)?;
    let bdev_name = params.bdev_name.clone();
    let created = register_export(system, params);
    if created.is_err() {
        system.release_bdev(&bdev_name);
    }
    created
}

fn register_export(system: &System, params: CreateExport) -> RpcResult {
    let Some(info) = system.bdevs.get(&params.bdev_name) else {
        let text = format!("there is no bdev {}; see bdev_get_bdevs", params.bdev_name);
        return Err(RpcError::errno(Errno::NODEV, text));
    };
    check_exportable(&info)?;
    let any = system.target.exports.options().allow_any_host;
    let export = Export {
        read_only: params.read_only,
        max_writers: params.max_writers,
        allow_any_host: params.allow_any_host.unwrap_or(any),
        max_io_bytes: params.max_io_size,
        write_cache: params.write_cache.into(),
        rotational: params.rotational,
        discard: params.discard,
        write_zeroes: params.write_zeroes,
        ..Export::new(params.device_path.clone(), params.bdev_name)
    };
    let created = system.target.exports.create(export);
    created.map_err(|error| not_done(&error))?;
    Ok(json!(params.device_path))
}

fn check_device_path(name: &str) -> Result<(), RpcError> {
    let invalid = |reason: &str| {
        let text = format!("device_path '{name}' {reason}");
        Err(RpcError::errno(Errno::INVAL, text))
    };
    if rnbd_wire::Name::new(name).is_err() {
        return invalid("must have 1 to 254 bytes");
    }
    if name.contains("..") {
        return invalid("contains '..', which no client may ask for");
    }
    if name.starts_with('/') {
        return invalid("begins with '/'; clients ask for it without");
    }
    Ok(())
}

/// RNBD tells clients a size in 512-byte sectors and a block size of at most 4096.
fn check_exportable(info: &rnbd_bdev::BdevInfo) -> Result<(), RpcError> {
    let block_size = info.bdev.geometry().block_size;
    if (512..=4096).contains(&block_size) {
        return Ok(());
    }
    let text = format!(
        "bdev {} has blocks of {block_size} bytes; clients can use 512 to 4096",
        info.bdev.name()
    );
    Err(RpcError::errno(Errno::INVAL, text))
}

#[derive(Deserialize)]
struct DeleteExport {
    device_path: String,
    force: bool,
}

async fn delete_export(system: Rc<System>, params: DeleteExport) -> RpcResult {
    let export = system.target.exports.get(&params.device_path);
    let deleted = system
        .target
        .exports
        .delete(&params.device_path, params.force);
    deleted.map_err(|error| not_done(&error))?;
    for transport in system.target.transports() {
        let (callback, closed) = reply();
        transport
            .handle
            .close_export(&params.device_path, callback)?;
        closed.await.ok_or_else(stopped)?;
    }
    if let Some(info) = export {
        system.release_bdev(&info.export.bdev_name);
    }
    Ok(json!(true))
}

#[derive(Deserialize)]
struct SetExport {
    device_path: String,
    read_only: Option<bool>,
    max_writers: Option<u32>,
    max_io_size: Option<u32>,
}

fn set_export(system: &System, params: SetExport) -> RpcResult {
    done(system.target.exports.update(&params.device_path, |export| {
        export.read_only = params.read_only.unwrap_or(export.read_only);
        export.max_writers = params.max_writers.unwrap_or(export.max_writers);
        export.max_io_bytes = params.max_io_size.or(export.max_io_bytes);
    }))
}

#[derive(Deserialize)]
struct SomeExports {
    device_path: Option<String>,
}

fn get_exports(system: &System, params: SomeExports) -> RpcResult {
    let exports = match params.device_path {
        Some(name) => {
            let missing = || not_done(&ExportError::NotFound(name.clone()));
            vec![system.target.exports.get(&name).ok_or_else(missing)?]
        }
        None => system.target.exports.list(),
    };
    Ok(exports
        .iter()
        .map(|info| export_json(system, info))
        .collect())
}

fn export_json(system: &System, info: &ExportInfo) -> Value {
    let export = &info.export;
    let mut json = json!({
        "device_path": export.name,
        "bdev_name": export.bdev_name,
        "access": if export.read_only { "ro" } else { "rw" },
        "max_writers": export.max_writers,
        "allow_any_host": export.allow_any_host,
        "hosts": export.hosts.iter().map(host_json).collect::<Vec<_>>(),
        "opens": info.opens.iter().map(open_json).collect::<Vec<_>>(),
    });
    // A bdev that was removed leaves its export behind until that is deleted.
    if let Some(info) = system.bdevs.get(&export.bdev_name) {
        let (geometry, features) = (info.bdev.geometry(), info.bdev.features());
        json["size_sectors"] = json!(geometry.bytes() / u64::from(SECTOR_BYTES));
        json["logical_block_size"] = json!(geometry.block_size);
        json["physical_block_size"] = json!(geometry.physical_block_size);
        json["cache"] = json!({
            "wc": export.write_cache.unwrap_or(features.write_cache),
            "fua": true,
        });
    }
    json
}

fn host_json(rule: &HostRule) -> Value {
    json!({
        "host": rule.sessname,
        "traddr": rule.source.map(|source| source.to_string()),
        "access_mode_max": rule.max_access.as_str(),
    })
}

fn open_json(open: &OpenInfo) -> Value {
    json!({
        "sessname": open.sessname,
        "device_id": open.device_id,
        "access_mode": open.access_mode.as_str(),
        "read_only": open.read_only,
        "mapping_path": open.mapping_path,
    })
}

#[derive(Deserialize)]
struct AddHost {
    device_path: String,
    host: String,
    traddr: Option<String>,
    access_mode_max: Access,
}

fn add_host(system: &System, params: AddHost) -> RpcResult {
    let source = params.traddr.as_deref().map(str::parse).transpose();
    let source =
        source.map_err(|error| RpcError::errno(Errno::INVAL, format!("traddr: {error}")))?;
    let rule = HostRule {
        sessname: params.host,
        source,
        max_access: params.access_mode_max.into(),
    };
    done(system.target.exports.add_host(&params.device_path, rule))
}

#[derive(Deserialize)]
struct RemoveHost {
    device_path: String,
    host: String,
}

#[derive(Deserialize)]
struct AllowAnyHost {
    device_path: String,
    allow_any_host: bool,
}

#[derive(Deserialize)]
struct CloseDevice {
    sessname: String,
    device_id: Option<u32>,
    device_path: Option<String>,
}

async fn close_device(system: Rc<System>, params: CloseDevice) -> RpcResult {
    let selector = match (params.device_id, params.device_path) {
        (Some(id), None) => DeviceSelector::Id(id),
        (None, Some(path)) => DeviceSelector::Path(path),
        _ => {
            let text = "give either device_id or device_path";
            return Err(RpcError::invalid_params(text));
        }
    };
    let order = |transport: &Transport, callback| {
        transport
            .handle
            .close_device(&params.sessname, &selector, callback)
    };
    let closed = with_session(&system, &params.sessname, order).await;
    closed.map_err(
        |error| match error.code == i64::from(Errno::NOENT.negative()) {
            true => error.with_text("there is no such session or device; see rnbd_get_stats"),
            false => error,
        },
    )
}

#[derive(Deserialize)]
struct GetStats {
    sessname: Option<String>,
    device_path: Option<String>,
}

async fn get_stats(system: Rc<System>, params: GetStats) -> RpcResult {
    let sessions = sessions(&system, params.sessname.as_deref()).await?;
    let wanted = |device: &&DeviceInfo| {
        params
            .device_path
            .as_ref()
            .is_none_or(|path| *path == device.device_path)
    };
    let describe = |session: &SessionInfo| {
        let devices = session.devices.iter().filter(wanted).map(device_json);
        json!({ "sessname": session.sessname, "devices": devices.collect::<Vec<_>>() })
    };
    Ok(json!({
        "tick_rate": TICK_RATE,
        "sessions": sessions.iter().map(describe).collect::<Vec<_>>(),
    }))
}

fn device_json(device: &DeviceInfo) -> Value {
    let mut json = json!({
        "device_id": device.device_id,
        "device_path": device.device_path,
        "bdev_name": device.bdev_name,
        "access_mode": device.access_mode.as_str(),
        "read_only": device.read_only,
        "force_closed": device.force_closed,
        "inflight": device.inflight,
    });
    for (kind, bytes, counters) in kinds(&device.counters) {
        json[kind] = json!(counters.ops);
        json[bytes] = json!(counters.bytes);
        json[format!("{kind}_latency_ticks")] = json!(counters.latency_ns);
    }
    let errors = device.counters.errors().map(|(errno, count)| {
        let name = errno
            .symbol()
            .map_or_else(|| errno.get().to_string(), str::to_owned);
        (name, json!(count))
    });
    json["errors"] = Value::Object(errors.collect());
    json
}

fn kinds(counters: &DeviceCounters) -> [(&'static str, &'static str, IoCounters); 5] {
    [
        ("reads", "bytes_read", counters.reads),
        ("writes", "bytes_written", counters.writes),
        ("flushes", "bytes_flushed", counters.flushes),
        ("discards", "bytes_discarded", counters.discards),
        ("write_zeroes", "bytes_zeroed", counters.write_zeroes),
    ]
}
