//! Commands from outside, and what they are told.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_rtrs::srv::{Path, PathKey, PathState, Session, SessionKey};
use rnbd_wire::extension::Features;

use super::acceptor::path_name;
use super::command::{Command, DeviceSelector, Selector};
use super::counters::DeviceCounters;
use super::device_io::Service;
use super::devices::is_force_closed;
use super::info::{DeviceInfo, HeartbeatInfo, ListenerInfo, PathInfo, SessionInfo, ShardStats};
use super::shard::TargetShard;

impl<F: Fabric> TargetShard<F> {
    pub(super) fn handle_command(&mut self, command: Command, now: Nanos) {
        match command {
            Command::AddListener {
                addr,
                options,
                reply,
            } => self.add_listener(&addr, &options, reply),
            Command::RemoveListener { addr, reply } => reply(self.remove_listener(&addr)),
            Command::Listeners(reply) => reply(self.listener_infos()),
            Command::Sessions(reply) => reply(self.session_infos()),
            Command::Stats(reply) => reply(self.stats()),
            Command::ResetStats { selector, reply } => reply(self.reset_stats(&selector)),
            Command::Disconnect {
                selector,
                wait,
                reply,
            } => match self.paths_named(&selector) {
                paths if paths.is_empty() => reply(Err(Errno::NOENT)),
                paths => self.close_paths(paths, wait.map(|span| now + span), reply, now),
            },
            Command::CloseDevice {
                sessname,
                device,
                reply,
            } => reply(self.close_device_named(&sessname, &device, now)),
            Command::CloseExport { name, reply } => {
                reply(self.revoke_devices(|client, place| has_name(client, place, &name), now));
            }
            Command::Shutdown(reply) => {
                for listener in std::mem::take(&mut self.listeners) {
                    self.fabric.unlisten(listener.id);
                }
                let paths = self.sessions.paths().map(|(key, _)| key).collect();
                self.close_paths(paths, Some(Nanos::MAX), Box::new(|_| reply(())), now);
            }
        }
    }

    // Finding what is named.

    fn paths_named(&self, selector: &Selector) -> Vec<PathKey> {
        let wanted = |path: &Path| {
            let name = selector.path.as_ref();
            name.is_none_or(|name| *name == path_name(path.route()))
        };
        let sessions = self.sessions.iter();
        let named = sessions.filter(|(_, session)| name_of(session) == selector.sessname);
        named
            .flat_map(|(_, session)| session.paths().iter().copied())
            .filter(|&key| self.sessions.path(key).is_some_and(wanted))
            .collect()
    }

    fn close_device_named(
        &mut self,
        sessname: &str,
        device: &DeviceSelector,
        now: Nanos,
    ) -> Result<(), Errno> {
        let wanted = |client: &Service, place: usize| {
            client.sessname == sessname
                && match device {
                    DeviceSelector::Path(name) => has_name(client, place, name),
                    DeviceSelector::Id(id) => client
                        .session
                        .device(place)
                        .is_some_and(|device| device.id == *id),
                }
        };
        match self.revoke_devices(wanted, now) {
            0 => Err(Errno::NOENT),
            _ => Ok(()),
        }
    }

    fn reset_stats(&mut self, selector: &Selector) -> Result<(), Errno> {
        let paths = self.paths_named(selector);
        if paths.is_empty() {
            return Err(Errno::NOENT);
        }
        for key in paths {
            if let Some(path) = self.sessions.path_mut(key) {
                path.reset_counters();
            }
        }
        if selector.path.is_none() {
            self.reset_device_counters(&selector.sessname);
        }
        Ok(())
    }

    fn reset_device_counters(&mut self, sessname: &str) {
        let clients = self.clients.iter_mut().flatten();
        let named = clients.filter(|client| client.sessname == sessname);
        for device in named.flat_map(|client| client.devices.iter_mut().flatten()) {
            device.counters = DeviceCounters::default();
        }
    }

    // Telling.

    fn listener_infos(&self) -> Vec<ListenerInfo> {
        let rejected = self.services.directory.refusals(self.peers.transport);
        let info = |listener: &super::acceptor::Listener| ListenerInfo {
            addr: listener.addr,
            requests: listener.requests,
            rejected: rejected.clone(),
        };
        self.listeners.iter().map(info).collect()
    }

    fn stats(&self) -> ShardStats {
        let paths = || self.sessions.paths().map(|(_, path)| path);
        let devices = self
            .clients
            .iter()
            .flatten()
            .flat_map(|client| client.devices.iter());
        ShardStats {
            core: self.core,
            sessions: self.sessions.iter().count(),
            paths: paths().count(),
            connections: paths().map(Path::cons_up).sum(),
            pending_bdev_io: devices
                .flatten()
                .map(|device| device.channel.outstanding())
                .sum(),
            completed_io: self.counters.completed_io,
            violations: self.counters.violations,
            fabric: self.fabric.stats(),
        }
    }

    fn session_infos(&self) -> Vec<SessionInfo> {
        let sessions = self.sessions.iter();
        sessions
            .map(|(key, session)| self.session_info(key, session))
            .collect()
    }

    fn session_info(&self, key: SessionKey, session: &Session) -> SessionInfo {
        let paths = session.paths().iter();
        let paths: Vec<_> = paths.filter_map(|&path| self.sessions.path(path)).collect();
        let client = self
            .clients
            .get(key.index as usize)
            .and_then(Option::as_ref);
        let client = client.filter(|client| client.key == key);
        SessionInfo {
            sessname: name_of(session),
            paths_uuid: session.paths_uuid(),
            connected: paths
                .iter()
                .any(|path| path.state() == PathState::Connected),
            core: self.core,
            trtype: self.caps.trtype,
            queue_depth: self.config.rtrs.queue_depth,
            max_io_bytes: self.config.rtrs.max_io_bytes(),
            new_rkey: self.config.rtrs.new_rkey,
            inflight: paths.iter().map(|path| path.inflight()).sum(),
            protocol_version: client.map_or(0, |client| client.session.version()),
            created_at: session.created_at(),
            paths: paths.into_iter().map(Self::path_info).collect(),
            devices: client.map_or_else(Vec::new, device_infos),
        }
    }

    fn path_info(path: &Path) -> PathInfo {
        let route = path.route();
        let interval = path.heartbeat_config().interval;
        PathInfo {
            path: path_name(route),
            path_uuid: path.uuid(),
            state: path.state(),
            src_addr: route.client.to_string(),
            dst_addr: route.server.to_string(),
            connections: path.cons_up(),
            inflight: path.inflight(),
            counters: path.counters(),
            heartbeat: path.heartbeat().map(|heartbeat| HeartbeatInfo {
                interval,
                missed: heartbeat.missed(),
                last_rtt: heartbeat.last_rtt(),
            }),
            fence_agreed: path.has_agreed(Features::FENCE),
            fence_askers: path.fence_askers(),
        }
    }
}

fn name_of(session: &Session) -> String {
    session
        .name()
        .map_or_else(String::new, |name| name.to_string())
}

fn has_name(client: &Service, place: usize, name: &str) -> bool {
    let device = client.session.device(place);
    device.is_some_and(|device| device.name.as_bytes() == name.as_bytes())
}

fn device_infos(client: &Service) -> Vec<DeviceInfo> {
    let info = |(place, device): (usize, &crate::srv::Device)| {
        let io = client.devices.get(place).and_then(Option::as_ref);
        DeviceInfo {
            device_id: device.id,
            device_path: device.name.to_string(),
            bdev_name: io.map_or_else(String::new, |io| io.bdev_name.clone()),
            access_mode: device.mode,
            read_only: device.view.read_only,
            force_closed: is_force_closed(device.state),
            inflight: device.inflight,
            counters: io.map_or_else(DeviceCounters::default, |io| io.counters),
        }
    };
    client.session.devices().map(info).collect()
}
