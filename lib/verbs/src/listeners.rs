//! Listeners are intentions: one whose device goes away listens again when it is back.

use std::net::SocketAddr;
use std::sync::Arc;

use rnbd_base::Nanos;
use rnbd_fabric::{Addr, FabricError, ListenOptions, ListenerId};
use rustix::io::Errno;

use crate::connection::Token;
use crate::fabric::VerbsFabric;
use crate::host::Scrap;
use crate::sys::{CmChannel, CmId, DeviceKey};

/// How long to wait before listening is tried again.
const RETRY: Nanos = Nanos::from_secs(1);

#[derive(Debug)]
pub(crate) struct Listener {
    /// `None` while its device is gone.
    cm: Option<CmId>,
    /// With the port that was picked, if it was asked for any.
    pub(crate) addr: Addr,
    backlog: u32,
    /// When to try again, while it does not listen.
    pub(crate) retry_at: Nanos,
}

impl Listener {
    /// Whether it listens on this device, and on no other.
    pub(crate) fn is_on(&self, key: DeviceKey) -> bool {
        let cm = self.cm.as_ref();
        cm.is_some_and(|cm| cm.device_key() == Some(key))
    }
}

impl VerbsFabric {
    pub(crate) fn add_listener(
        &mut self,
        addr: &Addr,
        options: &ListenOptions,
    ) -> Result<ListenerId, FabricError> {
        let (wanted, channel) = (*addr, Arc::clone(&self.channel));
        let backlog = options.backlog;
        let mut outcome = Ok(());
        let taken = self.listeners.insert(|index, generation| {
            let token = Token::Listener(ListenerId { index, generation });
            let cm = start(&channel, token, wanted, backlog);
            let addr = cm.as_ref().ok().and_then(CmId::local_addr);
            let cm = cm
                .map_err(|errno| outcome = Err(refused(errno, wanted)))
                .ok();
            Listener {
                cm,
                addr: addr.unwrap_or(wanted),
                backlog,
                retry_at: Nanos::MAX,
            }
        });
        let (index, generation) = taken.map_err(|_| FabricError::Limit {
            what: "listeners",
            limit: 1024,
        })?;
        if let Err(error) = outcome {
            self.listeners.remove(index, generation);
            return Err(error);
        }
        Ok(ListenerId { index, generation })
    }

    /// The device that a listener's address is on went away.
    pub(crate) fn suspend_listener(&mut self, id: ListenerId) {
        let until = self.now + RETRY;
        if let Some(listener) = self.listeners.get_mut(id.index, id.generation) {
            let addr = listener.addr.with_port();
            log::warn!("verbs: the device of listener {addr} is gone");
            let cm = listener.cm.take().map(Scrap::Cm);
            listener.retry_at = until;
            self.next_expiry = self.next_expiry.min(until);
            self.host.releaser.drop_later(cm.into_iter().collect());
        }
    }

    /// Tries again where that is due.
    pub(crate) fn resume_listeners(&mut self) {
        for ((index, generation), listener) in self.listeners.iter_mut() {
            if listener.retry_at > self.now {
                continue;
            }
            let token = Token::Listener(ListenerId { index, generation });
            match start(&self.channel, token, listener.addr, listener.backlog) {
                Ok(cm) => {
                    log::info!("verbs: listening on {} again", listener.addr.with_port());
                    listener.cm = Some(cm);
                    listener.retry_at = Nanos::MAX;
                }
                Err(_) => listener.retry_at = self.now + RETRY,
            }
        }
    }
}

fn start(channel: &Arc<CmChannel>, token: Token, addr: Addr, backlog: u32) -> Result<CmId, Errno> {
    let cm = CmId::new(channel, token.to_bits(), &addr)?;
    if matches!(addr, Addr::Ip(SocketAddr::V6(_))) {
        cm.take_own_family_only()?;
    }
    cm.bind(addr)?;
    cm.listen(backlog)?;
    Ok(cm)
}

fn refused(errno: Errno, addr: Addr) -> FabricError {
    match errno {
        Errno::ADDRINUSE => FabricError::AddrInUse(addr.with_port()),
        errno if addr.is_gid() && lacks_infiniband(errno) => {
            FabricError::NoInfiniband(addr.to_string())
        }
        Errno::ADDRNOTAVAIL | Errno::NODEV => FabricError::AddrNotAvailable(addr.with_port()),
        errno => FabricError::System {
            what: "listening",
            errno,
        },
    }
}

/// Whether this is said to a GID where no device has it, or none is `InfiniBand`: RoCE's are not.
fn lacks_infiniband(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NODEV | Errno::INVAL | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT
    )
}
