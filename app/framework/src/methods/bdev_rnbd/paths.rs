//! Paths of controllers.

use std::rc::Rc;

use bdev_rnbd::{InitiatorControl, Multipath, PathReport, Reply};
use rnbd_base::Errno;
use rnbd_fabric::Addr;
use rnbd_rpc::{RpcError, RpcResult};
use rnbd_rtrs::clt::{PathState, Policy};
use serde::Deserialize;
use serde_json::json;

use super::{MultipathMode, done};
use crate::address::{AdrFam, literal, resolve};
use crate::initiator::ask;
use crate::methods::Methods;
use crate::system::System;

type Order = fn(&dyn InitiatorControl, &str, u16, Reply<()>);

pub(super) fn register(methods: &mut Methods<'_>) {
    let orders: [(&'static str, Order); 4] = [
        ("bdev_rnbd_remove_path", |initiator, name, path, reply| {
            initiator.remove_path(name, path, reply);
        }),
        (
            "bdev_rnbd_disconnect_path",
            |initiator, name, path, reply| {
                initiator.disconnect_path(name, path, reply);
            },
        ),
        (
            "bdev_rnbd_reconnect_path",
            |initiator, name, path, reply| {
                initiator.reconnect_path(name, path, reply);
            },
        ),
        (
            "bdev_rnbd_set_preferred_path",
            |initiator, name, path, reply| {
                initiator.set_preferred_path(name, path, reply);
            },
        ),
    ];
    for (name, order) in orders {
        methods.add(name, move |system, params| one_path(system, params, order));
    }
    let orders = [
        ("bdev_rnbd_reset_controller", RESET),
        ("bdev_rnbd_enable_controller", ENABLE),
        ("bdev_rnbd_disable_controller", DISABLE),
    ];
    for (name, wanted) in orders {
        methods.add(name, move |system, params| {
            each_path(system, params, wanted)
        });
    }
    methods.add("bdev_rnbd_add_path", add_path);
    methods.add("bdev_rnbd_set_reconnect", set_reconnect);
    methods.add("bdev_rnbd_set_multipath_policy", set_policy);
    methods.add("bdev_rnbd_reset_path_stats", reset_stats);
}

/// How several paths share I/O, as far as it was given.
#[derive(Clone, Copy, Default, Deserialize)]
pub(super) struct MultipathOpts {
    policy: Option<PolicyName>,
    min_io: Option<u32>,
}

impl MultipathOpts {
    pub(super) fn over(self, mode: MultipathMode) -> Multipath {
        let default = Multipath::default();
        Multipath {
            enabled: mode == MultipathMode::Multipath,
            policy: self.policy.map_or(default.policy, Policy::from),
            min_io: self.min_io.unwrap_or(default.min_io),
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PolicyName {
    RoundRobin,
    MinInflight,
    MinLatency,
    ActivePassive,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::RoundRobin => Self::RoundRobin,
            PolicyName::MinInflight => Self::MinInflight,
            PolicyName::MinLatency => Self::MinLatency,
            PolicyName::ActivePassive => Self::ActivePassive,
        }
    }
}

/// The address to connect from.
fn host(hostaddr: Option<&str>, adrfam: Option<AdrFam>) -> Result<Option<Addr>, RpcError> {
    let host = hostaddr.map(|host| literal(host, "0", adrfam));
    host.transpose()
}

/// Where a path is to go, and where it is to start.
#[derive(Deserialize)]
pub(super) struct Ends {
    traddr: String,
    trsvcid: String,
    adrfam: Option<AdrFam>,
    hostaddr: Option<String>,
}

impl Ends {
    /// The target's address, and ours if it was given. May block for as long as DNS does.
    pub(super) fn addrs(&self) -> Result<(Addr, Option<Addr>), RpcError> {
        // The family is said of the target's address only, but where that is a GID, so is ours,
        // which may then be without its prefix too.
        let family = self.adrfam.filter(|&family| family == AdrFam::Ib);
        let from = host(self.hostaddr.as_deref(), family)?;
        let to = resolve(&self.traddr, &self.trsvcid, self.adrfam)?;
        if from.is_some_and(|from| from.is_gid() != to.is_gid()) {
            let text = "traddr and hostaddr are not both GIDs, or both IP addresses";
            return Err(RpcError::errno(Errno::INVAL, text));
        }
        Ok((to, from))
    }
}

#[derive(Deserialize)]
struct AddPath {
    name: String,
    #[serde(flatten)]
    ends: Ends,
}

async fn add_path(system: Rc<System>, params: AddPath) -> RpcResult {
    let initiator = system.initiator.get(&system);
    let (addr, host) = params.ends.addrs()?;
    let path_id = ask(|reply| initiator.add_path(&params.name, addr, host, reply)).await?;
    Ok(json!(path_id))
}

/// A path by its number or as the kernel names it.
#[derive(Deserialize)]
struct OnePath {
    name: String,
    path_id: Option<u16>,
    path: Option<String>,
}

async fn one_path(system: Rc<System>, params: OnePath, order: Order) -> RpcResult {
    let initiator = system.initiator.get(&system);
    let path_id = match (params.path_id, params.path.as_deref()) {
        (Some(path_id), None) => path_id,
        (None, Some(name)) => {
            let is_meant = |path: &PathReport| path.name() == name;
            let paths = paths(&*initiator, &params.name, is_meant).await?;
            let text = || format!("controller {} has no path {name}", params.name);
            let first = paths.first().copied();
            first.ok_or_else(|| RpcError::errno(Errno::NOENT, text()))?
        }
        _ => return Err(RpcError::invalid_params("either path_id or path is needed")),
    };
    ask(|reply| order(&*initiator, &params.name, path_id, reply)).await?;
    Ok(json!(true))
}

/// The numbers of those paths of a controller.
async fn paths(
    initiator: &dyn InitiatorControl,
    controller: &str,
    is_meant: impl Fn(&PathReport) -> bool,
) -> Result<Vec<u16>, RpcError> {
    let found = ask(|reply| initiator.get_controllers(Some(controller), reply)).await?;
    let paths = found.iter().flat_map(|controller| &controller.paths);
    let meant = paths.filter(|path| is_meant(path));
    Ok(meant.map(|path| path.path_id).collect())
}

/// What paths have to fit; all do if nothing is said.
#[derive(Deserialize)]
pub(super) struct Fitting {
    path: Option<String>,
    traddr: Option<String>,
    trsvcid: Option<String>,
    hostaddr: Option<String>,
}

impl Fitting {
    fn check(&self) -> Result<(), RpcError> {
        if self.path.is_some() && (self.traddr.is_some() || self.hostaddr.is_some()) {
            let text = "path names both addresses: it goes without traddr and hostaddr";
            return Err(RpcError::invalid_params(text));
        }
        if self.traddr.is_none() && self.trsvcid.is_some() {
            return Err(RpcError::invalid_params("trsvcid needs traddr"));
        }
        Ok(())
    }

    fn is_everything(&self) -> bool {
        self.path.is_none() && self.traddr.is_none() && self.hostaddr.is_none()
    }

    /// Whether a path has all that was given.
    fn test(&self) -> Result<impl Fn(&PathReport) -> bool, RpcError> {
        let port = self.trsvcid.as_deref();
        let to = self.traddr.as_deref();
        let to = to.map(|to| literal(to, port.unwrap_or("0"), None));
        let (to, from) = (to.transpose()?, host(self.hostaddr.as_deref(), None)?);
        let has_port = port.is_some();
        Ok(move |path: &PathReport| {
            let goes = |to: &Addr| {
                let dst = &path.dst_addr;
                dst.host() == to.host() && (!has_port || dst.port() == to.port())
            };
            let comes = |from: &Addr| path.src_addr.as_ref().map(Addr::host) == Some(from.host());
            let name = self.path.as_ref();
            to.as_ref().is_none_or(goes)
                && from.as_ref().is_none_or(comes)
                && name.is_none_or(|name| path.name() == *name)
        })
    }
}

/// Removes the paths of a controller that fit. Returns `false`, and has done nothing, if that is
/// all of them.
pub(super) async fn detach(
    system: &Rc<System>,
    controller: &str,
    fitting: &Fitting,
) -> Result<bool, RpcError> {
    fitting.check()?;
    if fitting.is_everything() {
        return Ok(false);
    }
    let initiator = system.initiator.get(system);
    let going = paths(&*initiator, controller, fitting.test()?).await?;
    if going.is_empty() {
        let text = format!("controller {controller} has no such path");
        return Err(RpcError::errno(Errno::NOENT, text));
    }
    if going.len() == paths(&*initiator, controller, |_| true).await?.len() {
        return Ok(false);
    }
    for path in going {
        ask(|reply| initiator.remove_path(controller, path, reply)).await?;
    }
    Ok(true)
}

#[derive(Deserialize)]
struct EachPath {
    name: String,
    path_id: Option<u16>,
}

/// An order about one path or, one after the other, all paths of a controller, for those of them
/// that are in a state where it makes sense.
#[derive(Clone, Copy)]
struct EachOrder {
    order: Order,
    applies: fn(PathState) -> bool,
    otherwise: &'static str,
}

const RESET: EachOrder = EachOrder {
    order: |initiator, name, path, reply| initiator.reconnect_path(name, path, reply),
    applies: |_| true,
    otherwise: "the controller has no path",
};

const ENABLE: EachOrder = EachOrder {
    order: |initiator, name, path, reply| initiator.reconnect_path(name, path, reply),
    applies: |state| matches!(state, PathState::Closed | PathState::Closing),
    otherwise: "nothing is disconnected",
};

const DISABLE: EachOrder = EachOrder {
    order: |initiator, name, path, reply| initiator.disconnect_path(name, path, reply),
    applies: |state| state != PathState::Closed,
    otherwise: "everything is disconnected already",
};

async fn each_path(system: Rc<System>, params: EachPath, wanted: EachOrder) -> RpcResult {
    let initiator = system.initiator.get(&system);
    let name = params.name.as_str();
    let is_meant = |path: &PathReport| params.path_id.is_none_or(|id| id == path.path_id);
    let meant = paths(&*initiator, name, is_meant).await?;
    if let (Some(path_id), true) = (params.path_id, meant.is_empty()) {
        let text = format!("controller {name} has no path {path_id}");
        return Err(RpcError::errno(Errno::NOENT, text));
    }
    let applies = |path: &PathReport| is_meant(path) && (wanted.applies)(path.state);
    let concerned = paths(&*initiator, name, applies).await?;
    if concerned.is_empty() {
        return Err(RpcError::errno(Errno::ALREADY, wanted.otherwise));
    }
    for path_id in concerned {
        ask(|reply| (wanted.order)(&*initiator, name, path_id, reply)).await?;
    }
    Ok(json!(true))
}

#[derive(Deserialize)]
struct SetReconnect {
    name: String,
    max_reconnect_attempts: Option<i32>,
    reconnect_delay_sec: Option<u32>,
}

async fn set_reconnect(system: Rc<System>, params: SetReconnect) -> RpcResult {
    let (attempts, delay) = (params.max_reconnect_attempts, params.reconnect_delay_sec);
    done(system, move |initiator, reply| {
        initiator.set_reconnect(&params.name, attempts, delay, reply);
    })
    .await
}

#[derive(Deserialize)]
struct SetPolicy {
    name: String,
    policy: PolicyName,
    min_io: u32,
}

async fn set_policy(system: Rc<System>, params: SetPolicy) -> RpcResult {
    done(system, move |initiator, reply| {
        initiator.set_policy(&params.name, params.policy.into(), params.min_io, reply);
    })
    .await
}

async fn reset_stats(system: Rc<System>, params: EachPath) -> RpcResult {
    done(system, move |initiator, reply| {
        initiator.reset_path_stats(&params.name, params.path_id, reply);
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(json: serde_json::Value) -> Result<(Addr, Option<Addr>), RpcError> {
        serde_json::from_value::<Ends>(json).unwrap().addrs()
    }

    /// As `bdev_rnbd` saves it.
    #[test]
    fn a_saved_path_between_gids_is_what_it_was() {
        let at = |host: &str, port| Addr::new(host.parse().unwrap(), port);
        let saved = json!({
            "adrfam": "ib",
            "traddr": "gid:fe80:0000:0000:0000:0000:0000:0000:0001",
            "trsvcid": "1234",
            "hostaddr": "gid:fe80:0000:0000:0000:0000:0000:0000:0002",
        });
        let ends = (at("gid:fe80::1", 1234), Some(at("gid:fe80::2", 0)));
        assert_eq!(addrs(saved), Ok(ends));
        let short = json!({
            "adrfam": "ib", "traddr": "fe80::1", "trsvcid": "1234", "hostaddr": "fe80::2",
        });
        assert_eq!(addrs(short), Ok(ends));
    }
}
