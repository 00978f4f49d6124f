//! What is asked about a session.

use rnbd_base::Nanos;
use rnbd_fabric::Fabric;
use rnbd_rtrs::clt::{PathError, PathIndex, PathInfo, PathState};
use uuid::Uuid;

use super::paths::HomePath;
use super::{Home, Stage};
use crate::control::{
    ControllerInfo, ControllerState, FenceReport, PathReport, PathStats, ReconnectInfo,
};
use crate::shard::Core;

impl Home {
    pub(super) fn path_infos(&self) -> impl Iterator<Item = PathInfo> + '_ {
        let paths = self.machine.paths();
        paths.filter_map(|path| self.machine.path(path))
    }

    fn state(&self) -> ControllerState {
        if matches!(self.stage, Stage::Detaching(_) | Stage::Over) {
            return ControllerState::Deleting;
        }
        let closed = |path: &PathInfo| matches!(path.state, PathState::Closed | PathState::Closing);
        if self.machine.is_up() {
            ControllerState::Enabled
        } else if !self.path_infos().all(|path| closed(&path)) {
            ControllerState::Reconnecting
        } else if self
            .path_infos()
            .all(|path| path.error == PathError::Requested)
        {
            ControllerState::Disabled
        } else {
            ControllerState::Failed
        }
    }

    pub(crate) fn info<F: Fabric>(&self, core: &Core<F>) -> ControllerInfo {
        let params = self.machine.params();
        let paths = self.paths.iter();
        ControllerInfo {
            name: self.name.to_string(),
            sessname: self.sessname.clone(),
            state: self.state(),
            protocol_version: self.client.version(),
            queue_depth: params.map_or(0, |params| params.queue_depth),
            max_io_size: params.map_or(0, |params| params.max_io_bytes),
            policy: self.machine.config().policy,
            reconnect: ReconnectInfo {
                attempts: self
                    .path_infos()
                    .map(|path| path.attempts)
                    .max()
                    .unwrap_or(0),
                max: self.timeouts.max_reconnect_attempts,
            },
            fence: FenceReport {
                waiting: self.machine.unfenced(),
                held_writes: self.writes.held(),
                writes_stopped: self.writes.is_closed(),
                counters: self.machine.fence_counters(),
            },
            home: core.index,
            paths: paths
                .filter_map(|(index, path)| self.path_report(index, path, core))
                .collect(),
            bdevs: self.devices.names(),
        }
    }

    fn path_report<F: Fabric>(
        &self,
        index: PathIndex,
        path: &HomePath,
        core: &Core<F>,
    ) -> Option<PathReport> {
        let info = self.machine.path(index)?;
        let is_down = info.state != PathState::Connected;
        let agreement = info.params.and_then(|params| params.agreement);
        let heartbeat = self.machine.config().heartbeat_of(info.params.as_ref());
        Some(PathReport {
            path_id: index.0,
            state: info.state,
            error: is_down.then(|| info.error.to_string()),
            src_addr: path.service.src().or(path.route.src),
            dst_addr: path.route.dst,
            trtype: core.caps.trtype,
            connections: self.machine.config().channels + 1,
            uuid: Uuid::from_bytes(info.uuid),
            hb_interval_ms: millis(heartbeat.interval),
            hb_missed_max: heartbeat.missed_max,
            hb_missed: info.missed_heartbeats,
            hb_rtt: info.heartbeat_rtt,
            fence_agreed: agreement.is_some(),
            unfenced: info.is_unfenced,
        })
    }

    /// The home's part of the paths' counters; its channels have the rest.
    pub(crate) fn path_stats<F: Fabric>(&self, core: &Core<F>) -> Vec<PathStats> {
        let paths = self.paths.iter();
        let stats = paths.filter_map(|(index, path)| {
            let info = self.machine.path(index)?;
            let (ok, failed) = path.reconnects_before;
            Some(PathStats {
                controller: self.name.to_string(),
                path_id: index.0,
                path: self.path_report(index, path, core)?.name(),
                reconnects_ok: info.reconnects_ok - ok,
                reconnects_failed: info.reconnects_failed - failed,
                hb_rtt: info.heartbeat_rtt,
                ..PathStats::default()
            })
        });
        stats.collect()
    }

    pub(crate) fn reset_stats(&mut self, path: Option<PathIndex>) {
        for index in self.machine.paths().collect::<Vec<_>>() {
            let (Some(info), Some(known)) = (self.machine.path(index), self.paths.get_mut(index))
            else {
                continue;
            };
            if path.is_none_or(|path| path == index) {
                known.reconnects_before = (info.reconnects_ok, info.reconnects_failed);
            }
        }
    }
}

fn millis(span: Nanos) -> u32 {
    u32::try_from(span.as_duration().as_millis()).unwrap_or(u32::MAX)
}
