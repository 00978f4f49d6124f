use std::net::TcpListener;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::daemon::{Daemon, DaemonOptions};

/// What the lab's target exports its first device as.
pub const EXPORT: &str = "disk0";

/// A target that exports a malloc bdev over TCP, and an initiator that is not attached yet.
#[derive(Debug)]
pub struct Lab {
    /// On the first core.
    pub target: Daemon,
    /// On the second core.
    pub initiator: Daemon,
    /// Where the target listens.
    pub port: u16,
}

impl Lab {
    /// The usual lab: `disk0` is a malloc bdev of 64 MiB with blocks of 512 bytes.
    ///
    /// # Errors
    /// If a daemon does not come up or refuses.
    pub fn new() -> Result<Self> {
        Self::with_transport(json!({ "trtype": "TCP" }))
    }

    /// With options of the transport.
    ///
    /// # Errors
    /// If a daemon does not come up or refuses.
    pub fn with_transport(transport: Value) -> Result<Self> {
        let target = Daemon::start(DaemonOptions::default())?;
        let malloc = json!({ "name": "Malloc0", "num_blocks": 131_072, "block_size": 512 });
        target.call("bdev_malloc_create", malloc)?;
        target.call("rtrs_create_transport", transport)?;
        let port = Self::listen(&target, "127.0.0.1")?;
        Self::export(&target, EXPORT, "Malloc0")?;
        let options = DaemonOptions {
            cpumask: "[1]",
            ..DaemonOptions::default()
        };
        let initiator = Daemon::start(options)?;
        Ok(Self {
            target,
            initiator,
            port,
        })
    }

    /// Lets `daemon` listen on a port that was free a moment ago. Not on port 0: a daemon that is
    /// started again has to come back where it was.
    ///
    /// # Errors
    /// If it refuses.
    pub fn listen(daemon: &Daemon, traddr: &str) -> Result<u16> {
        let port = TcpListener::bind((traddr, 0))?.local_addr()?.port();
        let address = json!({ "trtype": "TCP", "traddr": traddr, "trsvcid": port.to_string() });
        daemon.call("rtrs_add_listener", json!({ "listen_address": address }))?;
        Ok(port)
    }

    /// Exports a bdev to everybody.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub fn export(daemon: &Daemon, device_path: &str, bdev_name: &str) -> Result<()> {
        let export =
            json!({ "device_path": device_path, "bdev_name": bdev_name, "allow_any_host": true });
        daemon.call("rnbd_create_export", export)?;
        Ok(())
    }

    /// Attaches the initiator as controller `name` and maps `disk0`; gives the bdev's name.
    ///
    /// # Errors
    /// If the initiator or the target refuses.
    pub fn attach(&self, name: &str) -> Result<String> {
        let mut params = self.attach_params(name);
        params["devices"] = json!([{ "device_path": EXPORT }]);
        let bdevs = self.initiator.call("bdev_rnbd_attach_controller", params)?;
        Ok(bdevs[0].as_str().context("the name of a bdev")?.to_owned())
    }

    /// Parameters that attach controller `name` to the lab's target without mapping anything; it
    /// comes back quickly after a loss.
    #[must_use]
    pub fn attach_params(&self, name: &str) -> Value {
        json!({
            "name": name, "sessname": name, "trtype": "TCP", "traddr": "127.0.0.1",
            "trsvcid": self.port.to_string(), "reconnect_delay_sec": 1,
        })
    }
}
