//! What administrators want of a session.

use rnbd_base::Errno;
use rnbd_bdev::Bdev;
use rnbd_fabric::Fabric;
use rnbd_proto::clt::{DeviceIndex, DeviceState};
use rnbd_rtrs::clt::{PathIndex, PathPolicy, Policy};

use super::devices::Mapped;
use super::paths::no_path;
use super::{Home, Stage};
use crate::control::{ControlError, Reply};
use crate::message::Command;
use crate::options::Timeouts;
use crate::shard::Core;

impl Home {
    pub(crate) fn on_command<F: Fabric>(&mut self, command: Command, core: &mut Core<F>) {
        match command {
            Command::Detach { force, reply } => self.on_detach(force, reply, core),
            Command::Map(params, reply) => self.map(*params, Mapped::Caller(reply), core),
            Command::Unmap(index, mode, reply) => self.unmap(index, mode, reply, core),
            Command::Remap(index, reply) => self.on_remap(index, reply),
            Command::Resize(index, num_blocks, reply) => {
                reply(self.resize(index, num_blocks, core));
            }
            Command::Rescan(index, reply) => self.reopen(index, reply),
            Command::SetReconnect(attempts, delay, reply) => {
                reply(self.set_reconnect(attempts, delay, core));
            }
            Command::SetPolicy(policy, min_io, reply) => {
                self.set_policy(policy, min_io, core);
                reply(Ok(()));
            }
            Command::SetPreferred(path, reply) => reply(self.set_preferred(path)),
            Command::AddPath(route, reply) => self.on_add_path(route, reply, core),
            Command::RemovePath(path, reply) => self.remove_path(path, reply, core),
            Command::DisconnectPath(path, reply) => self.disconnect_path(path, reply, core),
            Command::ReconnectPath(path, reply) => self.reconnect_path(path, reply, core),
        }
        self.run(core);
    }

    fn on_detach<F: Fabric>(&mut self, force: bool, reply: Reply<()>, core: &mut Core<F>) {
        if !matches!(self.stage, Stage::Attached) {
            let text = format!("{} is being attached or detached", self.name);
            return reply(Err(ControlError::new(Errno::BUSY, text)));
        }
        if !force && self.any_in_use(core) {
            let text = format!(
                "{} has bdevs that are in use; detach it with force",
                self.name
            );
            return reply(Err(ControlError::new(Errno::BUSY, text)));
        }
        self.detach(Box::new(move || reply(Ok(()))), core);
    }

    fn on_remap(&mut self, index: DeviceIndex, reply: Reply<()>) {
        let state = self.client.device(index).map(|device| device.state);
        if state == Some(DeviceState::Open) {
            let text = "the device is open";
            return reply(Err(ControlError::new(Errno::ALREADY, text)));
        }
        self.reopen(index, reply);
    }

    fn reopen(&mut self, index: DeviceIndex, reply: Reply<()>) {
        match (self.client.reopen(index), self.devices.get_mut(index)) {
            (Ok(()), Some(device)) => device.opening.push(reply),
            (Err(errno), _) => reply(Err(ControlError::new(errno, errno))),
            (Ok(()), None) => reply(Err(ControlError::new(Errno::NODEV, Errno::NODEV))),
        }
    }

    fn resize<F: Fabric>(
        &mut self,
        index: DeviceIndex,
        num_blocks: u64,
        core: &Core<F>,
    ) -> Result<(), ControlError> {
        let device = self.devices.get_mut(index);
        let Some(bdev) = device.and_then(|device| device.bdev.clone()) else {
            return Err(ControlError::new(Errno::NODEV, "there is no such device"));
        };
        if num_blocks == 0 {
            return Err(ControlError::invalid("num_blocks must be above 0"));
        }
        let in_use = core
            .registry
            .get(bdev.name())
            .is_some_and(|info| info.descriptors > 0);
        if in_use && num_blocks < bdev.geometry().num_blocks {
            let text = format!("{} is in use and cannot shrink", bdev.name());
            return Err(ControlError::new(Errno::BUSY, text));
        }
        if bdev.set_num_blocks(num_blocks) {
            let resized = core.registry.notify_resized(bdev.name());
            resized.map_err(|error| ControlError::new(error.errno(), error))?;
        }
        Ok(())
    }

    fn set_reconnect<F: Fabric>(
        &mut self,
        attempts: Option<i32>,
        delay: Option<u32>,
        core: &Core<F>,
    ) -> Result<(), ControlError> {
        let timeouts = Timeouts {
            max_reconnect_attempts: attempts.unwrap_or(self.timeouts.max_reconnect_attempts),
            reconnect_delay_sec: delay.unwrap_or(self.timeouts.reconnect_delay_sec),
            ..self.timeouts
        };
        timeouts.check()?;
        self.timeouts = timeouts;
        self.machine
            .set_reconnect(timeouts.policy(self.options.jitter()));
        core.directory.set_timeouts(self.session, timeouts);
        Ok(())
    }

    fn set_policy<F: Fabric>(&mut self, policy: Policy, min_io: u32, core: &Core<F>) {
        let before = self.machine.config().policy;
        let policy = PathPolicy {
            policy,
            min_io,
            ..before
        };
        self.machine.set_policy(policy);
        core.directory.set_policy(self.session, policy);
    }

    fn set_preferred(&mut self, path: PathIndex) -> Result<(), ControlError> {
        self.paths.get(path).ok_or_else(|| no_path(path))?;
        self.machine.set_policy(PathPolicy {
            preferred: Some(path),
            ..self.machine.config().policy
        });
        Ok(())
    }
}
