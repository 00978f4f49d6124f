//! A target and an initiator over TCP in one thread, with one mapped device.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use bdev_rnbd::{
    AttachParams, DeviceParams, InitiatorConfig, InitiatorControl, InitiatorShard, Multipath,
};
use rnbd_base::{CoreIndex, Nanos, NoWake, Poll};
use rnbd_bdev::{Channel, MallocBdev, MallocOptions, Registry};
use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
use rnbd_fabric::{Addr, ListenOptions};
use rnbd_mem::Memory;
use rnbd_proto::srv::{Export, Exports, ServiceOptions};
use rnbd_proto::target::{
    CoreParts, Directory, DirectoryLimits, IgnoreNotifications, NoSearchPath, Services,
    TargetConfig, TargetHandle, TargetShard, build,
};
use rnbd_wire::rnbd::AccessMode;

/// A target and an initiator, polled in turn by one thread.
pub(crate) struct Pair {
    start: Instant,
    target: TargetShard<TcpFabric>,
    initiator: InitiatorShard<TcpFabric>,
}

impl Pair {
    pub(crate) fn poll(&mut self) -> Nanos {
        let now = Nanos::from(self.start.elapsed());
        self.poll_target(now);
        self.poll_initiator(now);
        now
    }

    // Never inlined, so that a profiler can tell the two sides apart by name.

    #[inline(never)]
    fn poll_target(&mut self, now: Nanos) {
        let _ = self.target.poll(now);
    }

    #[inline(never)]
    fn poll_initiator(&mut self, now: Nanos) {
        let _ = self.initiator.poll(now);
    }

    fn wait<T>(&mut self, rx: &mpsc::Receiver<T>) -> T {
        loop {
            self.poll();
            if let Ok(answer) = rx.try_recv() {
                return answer;
            }
        }
    }
}

fn target(memory: &Memory, new_rkey: bool) -> (TargetHandle, TargetShard<TcpFabric>) {
    let registry = Registry::new(memory.clone());
    let disk = MallocOptions {
        name: Some("disk".to_owned()),
        num_blocks: 2048,
        block_size: 512,
        ..MallocOptions::default()
    };
    MallocBdev::create(&registry, memory, disk).unwrap();
    let exports = Exports::new(ServiceOptions::default());
    let mut export = Export::new("disk", "disk");
    export.allow_any_host = true;
    exports.create(export).unwrap();
    let services = Services {
        memory: memory.clone(),
        registry,
        exports,
        directory: Directory::new(DirectoryLimits::default()),
        opener: Arc::new(NoSearchPath),
        sink: Arc::new(IgnoreNotifications),
    };
    let mut config = TargetConfig::default();
    config.rtrs.queue_depth = 32;
    config.rtrs.new_rkey = new_rkey;
    let part = CoreParts {
        core: CoreIndex(0),
        fabric: TcpFabric::new(TcpConfig::default()).unwrap(),
        wake: Arc::new(NoWake),
    };
    let (handle, mut shards) = build(config, &services, vec![part]).unwrap();
    (handle, shards.pop().unwrap())
}

/// A pair with one mapped device, and a user's channel to it.
pub(crate) fn attached(memory: &Memory, new_rkey: bool) -> (Pair, Channel) {
    let (handle, target) = target(memory, new_rkey);
    let registry = Registry::new(memory.clone());
    let fabric = TcpFabric::new(TcpConfig::default()).unwrap();
    let config = InitiatorConfig {
        memory: memory.clone(),
        registry: registry.clone(),
        seed: 1,
        notify: Arc::new(|_| {}),
    };
    let (control, mut shards) =
        bdev_rnbd::new(vec![(CoreIndex(0), fabric, Arc::new(NoWake) as _)], config);
    let start = Instant::now();
    let initiator = shards.pop().unwrap();
    let mut pair = Pair {
        start,
        target,
        initiator,
    };
    let (tx, rx) = mpsc::channel();
    let any_port = Addr::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let reply = Box::new(move |addr| tx.send(addr).unwrap());
    handle
        .add_listener(any_port, ListenOptions::default(), reply)
        .unwrap();
    let addr = pair.wait(&rx).unwrap();
    let device = DeviceParams {
        device_path: "disk".to_owned(),
        access_mode: AccessMode::ReadWrite,
        bdev_name: None,
        uuid: None,
    };
    let params = AttachParams {
        name: "r0".to_owned(),
        sessname: "host".to_owned(),
        trtype: "TCP",
        addr,
        hostaddr: None,
        num_io_queues: 0,
        queue_depth: 0,
        timeouts: None,
        multipath: Multipath::default(),
        devices: vec![device],
    };
    let (tx, rx) = mpsc::channel();
    control.attach_controller(params, Box::new(move |names| tx.send(names).unwrap()));
    let names = pair.wait(&rx).unwrap();
    let desc = registry.open(&names[0], true).unwrap();
    let channel = desc.open_channel(CoreIndex(0), 64).unwrap();
    (pair, channel)
}
