//! The target as this program has it: its exports, and a transport for each fabric.

mod opener;
mod sink;

use std::cell::{Cell, RefCell};

use rnbd_base::{Errno, Nanos};
use rnbd_bdev::Registry;
use rnbd_fabric::{Fabric, FabricError, ListenOptions};
use rnbd_mem::Memory;
use rnbd_proto::srv::Exports;
use rnbd_proto::target::{
    CoreParts, Directory, DirectoryLimits, Services, TargetConfig, TargetHandle, TargetShard, build,
};
use rnbd_reactor::{CoreMask, PollerId, Reactors};
use rnbd_rpc::{Handle, Notifications, RpcError};
use rnbd_rtrs::HeartbeatConfig;
use rnbd_rtrs::srv::{self, ExtensionConfig};
use rnbd_wire::{ImmLayout, limits};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::opener::SearchPathOpener;
use self::sink::ControlSink;
use crate::address::{ListenAddress, TrType};
use crate::fabrics;
use crate::poll_group::PollGroup;
use crate::reply::reply;
use crate::system::System;

pub(crate) use self::opener::FoundBdevs;

/// Parameters of `rtrs_set_options`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RtrsOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) poll_groups_mask: Option<String>,
    hb_interval_ms: u32,
    hb_missed_max: u32,
    peer_extension: bool,
    peer_hb_interval_ms: u32,
    peer_hb_missed_max: u32,
    max_paths: u16,
    max_sessions: u32,
    max_paths_total: u32,
    max_connecting_per_source: u32,
}

/// Parameters of `rtrs_create_transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransportOptions {
    pub(crate) trtype: TrType,
    sess_queue_depth: u16,
    /// `None`: by transport, see `chunk_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_chunk_size: Option<u32>,
    /// `None`: wherever the devices can.
    #[serde(skip_serializing_if = "Option::is_none")]
    always_invalidate: Option<bool>,
    connections_per_path_max: u16,
}

/// A transport that was made.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub(crate) options: TransportOptions,
    pub(crate) handle: TargetHandle,
    /// In the order in which they were added, as they were given.
    pub(crate) listeners: Vec<ListenAddress>,
    pollers: Vec<PollerId>,
}

/// Everything of the target that is not on a reactor.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) exports: Exports,
    pub(crate) options: RefCell<Option<RtrsOptions>>,
    pub(crate) rnbd_options_set: Cell<bool>,
    /// Files below the search path that are bdevs because a client has them open.
    pub(crate) found: FoundBdevs,
    services: Services,
    /// Names this process to clients that know the extension.
    instance: u64,
    transports: RefCell<Vec<Transport>>,
}

impl Target {
    pub(crate) fn new(
        memory: &Memory,
        bdevs: &Registry,
        handle: &Handle,
        notifications: &Notifications,
    ) -> Self {
        let exports = Exports::default();
        let found = FoundBdevs::default();
        let services = Services {
            memory: memory.clone(),
            registry: bdevs.clone(),
            exports: exports.clone(),
            directory: Directory::new(DirectoryLimits::default()),
            opener: SearchPathOpener::start(handle, memory, bdevs, &found),
            sink: ControlSink::start(handle, notifications),
        };
        Self {
            exports,
            options: RefCell::default(),
            rnbd_options_set: Cell::default(),
            found,
            services,
            instance: Uuid::new_v4().as_u64_pair().0,
            transports: RefCell::default(),
        }
    }

    /// Sets what holds for transports that are made later, and the limits.
    pub(crate) fn set_options(&self, options: RtrsOptions) {
        self.services.directory.set_limits(options.limits());
        self.options.replace(Some(options));
    }

    /// Makes a transport: a fabric and a shard on every core that serves sessions.
    pub(crate) fn create_transport(
        &self,
        options: TransportOptions,
        system: &System,
    ) -> Result<(), RpcError> {
        let reactors = &system.reactors;
        options.trtype.check_available()?;
        if self.transport(options.trtype).is_ok() {
            let text = format!("transport {} exists already", options.trtype.name());
            return Err(RpcError::errno(Errno::EXIST, text));
        }
        let groups = self.serving(reactors, &system.poll_groups)?;
        let transport = match options.trtype {
            #[cfg(feature = "rdma")]
            TrType::Rdma => {
                let fabric = || system.rdma.fabric();
                self.transport_over(fabric, options, reactors, &groups)?
            }
            _ => self.transport_over(fabrics::tcp, options, reactors, &groups)?,
        };
        self.transports.borrow_mut().push(transport);
        Ok(())
    }

    fn transport_over<F: Fabric>(
        &self,
        fabric: impl Fn() -> Result<F, RpcError>,
        options: TransportOptions,
        reactors: &Reactors,
        groups: &[&PollGroup],
    ) -> Result<Transport, RpcError> {
        let parts: Result<Vec<_>, RpcError> = groups
            .iter()
            .map(|group| core_parts(&fabric, reactors, group))
            .collect();
        let parts = parts?;
        let can_invalidate = parts
            .first()
            .is_some_and(|part| part.fabric.caps().domain_windows);
        let config = self.config(options, can_invalidate);
        let (handle, shards) = build(config, &self.services, parts)
            .map_err(|error| RpcError::errno(Errno::INVAL, error.to_string()))?;
        Ok(Transport {
            options,
            handle,
            listeners: Vec::new(),
            pollers: add_pollers(reactors, groups, shards, options.trtype),
        })
    }

    /// All transports, in the order in which they were made.
    pub(crate) fn transports(&self) -> Vec<Transport> {
        self.transports.borrow().clone()
    }

    /// The transport of that type.
    pub(crate) fn transport(&self, trtype: TrType) -> Result<Transport, RpcError> {
        let transports = self.transports.borrow();
        let found = transports
            .iter()
            .find(|transport| transport.options.trtype == trtype);
        found.cloned().ok_or_else(|| {
            let name = trtype.name();
            let text = format!("there is no transport {name}; make it with rtrs_create_transport");
            RpcError::errno(Errno::NODEV, text)
        })
    }

    /// Closes all sessions of a transport and removes it.
    pub(crate) async fn delete_transport(
        &self,
        trtype: TrType,
        reactors: &Reactors,
    ) -> Result<(), RpcError> {
        let transport = self.transport(trtype)?;
        if !transport.listeners.is_empty() {
            let text = "the transport has listeners; remove them first";
            return Err(RpcError::errno(Errno::BUSY, text));
        }
        self.transports
            .borrow_mut()
            .retain(|other| other.options.trtype != trtype);
        transport.end(reactors).await;
        Ok(())
    }

    /// Listens at an address. It is kept as it was given, for `save_config`.
    pub(crate) async fn add_listener(&self, address: ListenAddress) -> Result<(), RpcError> {
        let transport = self.transport(address.trtype)?;
        if transport.listeners.contains(&address) {
            return Err(RpcError::errno(
                Errno::EXIST,
                "there is such a listener already",
            ));
        }
        let (callback, answer) = reply();
        transport
            .handle
            .add_listener(address.addr()?, ListenOptions::default(), callback)?;
        answer
            .await
            .ok_or(Errno::CANCELED)?
            .map_err(|error| fabric_error(&error))?;
        self.with_listeners(address.trtype, |listeners| listeners.push(address.clone()));
        Ok(())
    }

    /// Listens no longer at an address.
    pub(crate) async fn remove_listener(&self, address: ListenAddress) -> Result<(), RpcError> {
        let transport = self.transport(address.trtype)?;
        let (callback, answer) = reply();
        transport
            .handle
            .remove_listener(address.addr()?, callback)?;
        answer.await.ok_or(Errno::CANCELED)?.map_err(|errno| {
            RpcError::errno(errno, "there is no such listener; see rtrs_get_listeners")
        })?;
        self.with_listeners(address.trtype, |listeners| {
            listeners.retain(|other| other.addr() != address.addr());
        });
        Ok(())
    }

    /// Ends everything that clients can see.
    pub(crate) async fn shut_down(&self, reactors: &Reactors) {
        let transports = std::mem::take(&mut *self.transports.borrow_mut());
        for transport in transports {
            transport.end(reactors).await;
        }
    }

    fn with_listeners(&self, trtype: TrType, change: impl FnOnce(&mut Vec<ListenAddress>)) {
        let mut transports = self.transports.borrow_mut();
        let found = transports
            .iter_mut()
            .find(|transport| transport.options.trtype == trtype);
        if let Some(transport) = found {
            change(&mut transport.listeners);
        }
    }

    /// The cores that serve sessions.
    fn serving<'a>(
        &self,
        reactors: &Reactors,
        groups: &'a [PollGroup],
    ) -> Result<Vec<&'a PollGroup>, RpcError> {
        let options = self.options.borrow();
        let mask = options
            .as_ref()
            .and_then(|options| options.poll_groups_mask.as_deref());
        let Some(mask) = mask else {
            return Ok(groups.iter().collect());
        };
        let mask: CoreMask = parse_mask(mask)?;
        let serves = |group: &&PollGroup| mask.contains(reactors.lcore(group.core));
        Ok(groups.iter().filter(serves).collect())
    }

    fn config(&self, transport: TransportOptions, can_invalidate: bool) -> TargetConfig {
        let options = self.options.borrow();
        if transport.always_invalidate.is_none() && !can_invalidate {
            let name = transport.trtype.name();
            log::warn!(
                "{name}: without memory windows that work on every device, clients can write their \
                 chunks at any time (always_invalidate is off)"
            );
        }
        let rtrs = srv::Config {
            queue_depth: transport.sess_queue_depth,
            chunk_bytes: transport.chunk_bytes(),
            new_rkey: transport.always_invalidate.unwrap_or(can_invalidate),
            cons_per_path: transport.connections_per_path_max,
            extension: Some(ExtensionConfig {
                instance: self.instance,
                heartbeat: HeartbeatConfig::PEER,
            }),
            ..srv::Config::default()
        };
        TargetConfig {
            rtrs: options
                .as_ref()
                .map_or(rtrs, |options| options.apply_to(rtrs)),
        }
    }
}

impl TransportOptions {
    /// Bytes of a chunk. Between two of this project a block of 128 KiB, which many programs ask
    /// for, is one request; the kernel's clients are given what they are used to.
    fn chunk_bytes(&self) -> u32 {
        /// 128 KiB and a header.
        const ROOMY: u32 = limits::CHUNK_BYTES_DEFAULT + limits::HEADER_BYTES;
        let fits = ImmLayout::new(self.sess_queue_depth).is_some_and(|layout| layout.fits(ROOMY));
        let fallback = match self.trtype {
            TrType::Rdma => limits::CHUNK_BYTES_DEFAULT,
            TrType::Tcp | TrType::Shm if fits => ROOMY,
            TrType::Tcp | TrType::Shm => limits::CHUNK_BYTES_DEFAULT,
        };
        self.max_chunk_size.unwrap_or(fallback)
    }
}

impl RtrsOptions {
    /// Whether the mask, if there is one, names a reactor's core and no other.
    pub(crate) fn check(&self, reactors: &Reactors) -> Result<(), RpcError> {
        let Some(mask) = &self.poll_groups_mask else {
            return Ok(());
        };
        let mask = parse_mask(mask)?;
        let has_reactor = |core: u32| reactors.cores().any(|index| reactors.lcore(index) == core);
        match mask.cores().find(|&core| !has_reactor(core)) {
            Some(core) => Err(RpcError::invalid_params(format!(
                "core {core} has no reactor"
            ))),
            None => Ok(()),
        }
    }

    fn limits(&self) -> DirectoryLimits {
        let count = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        DirectoryLimits {
            sessions: count(self.max_sessions),
            paths: count(self.max_paths_total),
            connecting_per_source: count(self.max_connecting_per_source),
        }
    }

    fn apply_to(&self, rtrs: srv::Config) -> srv::Config {
        let heartbeat = |interval_ms: u32, missed_max| HeartbeatConfig {
            interval: Nanos::from_millis(interval_ms.into()),
            missed_max,
        };
        let peer_heartbeat = heartbeat(self.peer_hb_interval_ms, self.peer_hb_missed_max);
        let extension = rtrs.extension.filter(|_| self.peer_extension);
        srv::Config {
            heartbeat: heartbeat(self.hb_interval_ms, self.hb_missed_max),
            paths_per_session: self.max_paths,
            extension: extension.map(|extension| ExtensionConfig {
                heartbeat: peer_heartbeat,
                ..extension
            }),
            ..rtrs
        }
    }
}

impl Transport {
    async fn end(self, reactors: &Reactors) {
        let (callback, done) = reply();
        if self.handle.shutdown(callback).is_ok() {
            done.await;
        }
        for poller in self.pollers {
            let (callback, removed) = reply();
            reactors.remove_poller(poller, callback);
            // What takes long to free is freed here and not on the reactor.
            drop(removed.await);
        }
    }
}

fn core_parts<F: Fabric>(
    fabric: impl Fn() -> Result<F, RpcError>,
    reactors: &Reactors,
    group: &PollGroup,
) -> Result<CoreParts<F>, RpcError> {
    Ok(CoreParts {
        core: group.core,
        fabric: fabric()?,
        wake: reactors.waker(group.core),
    })
}

fn add_pollers<F: Fabric>(
    reactors: &Reactors,
    groups: &[&PollGroup],
    shards: Vec<TargetShard<F>>,
    trtype: TrType,
) -> Vec<PollerId> {
    let name = format!("rtrs_target_{}", trtype.name().to_lowercase());
    let add = |(group, shard): (&&PollGroup, _)| {
        reactors.add_poller(group.thread, &name, None, Box::new(shard))
    };
    groups.iter().zip(shards).map(add).collect()
}

fn parse_mask(mask: &str) -> Result<CoreMask, RpcError> {
    mask.parse()
        .map_err(|error| RpcError::invalid_params(format!("{error}")))
}

/// A fabric's error with the errno that the system gave, or that fits.
pub(crate) fn fabric_error(error: &FabricError) -> RpcError {
    let errno = match error {
        FabricError::AddrInUse(_) => Errno::ADDRINUSE,
        FabricError::AddrNotAvailable(_) | FabricError::NoInfiniband(_) => Errno::ADDRNOTAVAIL,
        FabricError::Stale(_) => Errno::NODEV,
        FabricError::Unsupported(_) => Errno::OPNOTSUPP,
        FabricError::Limit { .. } => Errno::NOMEM,
        FabricError::System { errno, .. } => Errno::from_raw(errno.raw_os_error()),
    };
    RpcError::errno(errno, error.to_string())
}
