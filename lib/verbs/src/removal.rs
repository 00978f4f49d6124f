//! Devices that come and go while connections are on them.

use std::sync::Arc;

use rnbd_fabric::ConnId;

use crate::fabric::VerbsFabric;
use crate::host::{Instance, Loss, Report, Scrap, Told};
use crate::lifecycle::REMOVED;
use crate::sys::{AsyncEvent, CmId, DeviceKey};

impl VerbsFabric {
    /// Takes note of what the host's threads told. Returns whether there was something.
    pub(crate) fn take_mail(&mut self) -> bool {
        if !self.inbox.has_mail() {
            return false;
        }
        for told in self.inbox.take() {
            match told {
                Told::Released(conn, reason) => self.on_released(conn, reason),
                Told::Opened(device, windows) => self.devices.add((device, windows)),
                Told::Tried(instance, windows) => self.devices.set_windows(&instance, windows),
                Told::Doomed(instance) => self.on_doomed(&instance),
            }
        }
        true
    }

    /// Another fabric, or the host's thread, found that a device is going.
    fn on_doomed(&mut self, instance: &Arc<Instance>) {
        if let Some(key) = self.devices.of_instance(instance) {
            self.let_go_of_device(key);
        }
    }

    /// The connection manager says that the device of a connection is being removed.
    pub(crate) fn on_device_removed(&mut self, conn: ConnId) {
        let key = self.connection(conn).and_then(|it| it.cm.device_key());
        match key {
            Some(key) => self.lose_device(key, Loss::Removed),
            None => self.close(conn, REMOVED),
        }
    }

    /// The same of a connection that is closed here already.
    pub(crate) fn on_goodbye_device_removed(&mut self, index: u32, generation: u32) {
        let goodbye = self.goodbyes.get(index, generation);
        if let Some(key) = goodbye.and_then(|goodbye| goodbye.cm.device_key()) {
            self.lose_device(key, Loss::Removed);
        }
    }

    pub(crate) fn on_device_event(&mut self, key: DeviceKey, event: AsyncEvent) {
        match event {
            AsyncEvent::DeviceFatal => self.lose_device(key, Loss::Fatal),
            AsyncEvent::QueueFatal => self.lose_device(key, Loss::Queue),
            AsyncEvent::PortChanged => {
                if let Some(instance) = self.devices.instance(key) {
                    self.host.report(Report::PortChanged(instance));
                }
            }
            AsyncEvent::QpStopped {
                number,
                is_violation,
            } => self.on_stopped(key, number, is_violation),
            AsyncEvent::Other => {}
        }
    }

    /// Lets go of a device and has the others do so.
    fn lose_device(&mut self, key: DeviceKey, loss: Loss) {
        let instance = self.devices.instance(key);
        self.let_go_of_device(key);
        if let Some(instance) = instance {
            self.host.report(Report::Lost(instance, loss));
        }
    }

    /// Hands everything on a device to the thread that lets go of it, so that its removal is not
    /// held up. Nothing is posted to it or polled from it after this.
    fn let_go_of_device(&mut self, key: DeviceKey) {
        let is_on = |cm: &CmId| cm.device_key() == Some(key);
        let connections = self.connections.iter();
        let gone = connections.filter(|(_, connection)| is_on(&connection.cm));
        let gone: Vec<_> = gone.map(|(conn, _)| conn).collect();
        for conn in gone {
            self.close(conn, REMOVED);
        }
        let goodbyes = self.goodbyes.iter();
        let goodbyes = goodbyes.filter(|(_, goodbye)| is_on(&goodbye.cm));
        let goodbyes: Vec<_> = goodbyes.map(|(id, _)| id).collect();
        for (index, generation) in goodbyes {
            self.end_goodbye(index, generation);
        }
        self.suspend_listeners_on(key);
        let scraps = self.scrap_device(key);
        self.host.releaser.drop_later(scraps);
    }

    /// What of a device is in no connection: windows and regions first, the device last.
    fn scrap_device(&mut self, key: DeviceKey) -> Vec<Scrap> {
        let Some(device) = self.devices.find(key) else {
            return Vec::new();
        };
        let domains = &self.domains;
        let is_gone = |domain| domains.device(domain).is_ok_and(|on| on == device);
        self.keys.drop_domains(is_gone);
        let mut scraps = self.keys.take_scraps();
        scraps.extend(self.domains.drop_device(device));
        scraps.extend(self.devices.remove(device).map(Scrap::Device));
        scraps
    }

    fn suspend_listeners_on(&mut self, key: DeviceKey) {
        let listeners = self.listeners.iter();
        let on_it = listeners.filter(|(_, listener)| listener.is_on(key));
        let on_it: Vec<_> = on_it
            .map(|((index, generation), _)| (index, generation))
            .collect();
        for (index, generation) in on_it {
            self.suspend_listener(rnbd_fabric::ListenerId { index, generation });
        }
    }
}
