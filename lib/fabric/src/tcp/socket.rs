//! Making and setting up sockets. Nothing here is on the data path.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::tcp::config::TcpConfig;
use crate::types::{Addr, FabricError, ListenOptions};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;

fn flags() -> SocketFlags {
    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC
}

fn stream(addr: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    net::socket_with(family, SocketType::STREAM, flags(), None)
}

/// A listening socket.
pub(super) fn listen(
    addr: &Addr,
    options: &ListenOptions,
    config: &TcpConfig,
) -> Result<OwnedFd, FabricError> {
    let ip = &addr.socket_addr()?;
    let failed = |what| move |errno| FabricError::System { what, errno };
    let socket = stream(ip).map_err(failed("socket"))?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(failed("SO_REUSEADDR"))?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).map_err(failed("IPV6_V6ONLY"))?;
    }
    set_buffers(&socket, config).map_err(failed("socket buffers"))?;
    spare_pacing(&socket, ip);
    net::bind(&socket, ip).map_err(|errno| match errno {
        Errno::ADDRINUSE => FabricError::AddrInUse(ip.to_string()),
        Errno::ADDRNOTAVAIL => FabricError::AddrNotAvailable(ip.to_string()),
        errno => failed("bind")(errno),
    })?;
    let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
    net::listen(&socket, backlog).map_err(|errno| match errno {
        Errno::ADDRINUSE => FabricError::AddrInUse(ip.to_string()),
        errno => failed("listen")(errno),
    })?;
    Ok(socket)
}

/// A socket to connect to `dst` with.
pub(super) fn open(dst: &SocketAddr, config: &TcpConfig) -> Result<OwnedFd, Errno> {
    let socket = stream(dst)?;
    set_buffers(&socket, config)?;
    spare_pacing(&socket, dst);
    set_up(&socket, config)?;
    Ok(socket)
}

/// Sends a socket on its way to `dst`.
pub(super) fn start_connect(
    socket: impl AsFd + Copy,
    dst: &SocketAddr,
    src: Option<&SocketAddr>,
) -> Result<(), Errno> {
    if let Some(src) = src {
        net::bind(socket, src)?;
    }
    match net::connect(socket, dst) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The next connection that waits on a listening socket, and who it is from.
pub(super) fn accept(listener: impl AsFd, config: &TcpConfig) -> Result<(OwnedFd, Addr), Errno> {
    let (socket, from) = net::acceptfrom_with(listener, flags())?;
    let src = from.and_then(|from| SocketAddr::try_from(from).ok());
    let src = src.ok_or(Errno::CONNABORTED)?;
    set_up(&socket, config)?;
    Ok((socket, Addr::Ip(src)))
}

/// Our address of a socket.
pub(super) fn local_addr(socket: impl AsFd) -> Result<Addr, Errno> {
    let name = net::getsockname(socket)?;
    SocketAddr::try_from(name).map(Addr::Ip)
}

/// What went wrong with a socket, or with its attempt to connect.
pub(super) fn take_error(socket: impl AsFd) -> Result<(), Errno> {
    sockopt::socket_error(socket)?
}

fn set_buffers(socket: impl AsFd + Copy, config: &TcpConfig) -> Result<(), Errno> {
    if let Some(bytes) = config.send_buffer_bytes {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
    }
    if let Some(bytes) = config.recv_buffer_bytes {
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    Ok(())
}

/// On loopback there is no network to be fair to, and a congestion control that spreads packets over
/// time, as BBR does, costs a timer for each burst. So the plain one, which every kernel has; from the
/// start, because a connection that was once paced stays so.
fn spare_pacing(socket: impl AsFd, addr: &SocketAddr) {
    if addr.ip().is_loopback()
        && let Err(errno) = sockopt::set_tcp_congestion(socket, "reno")
    {
        log::debug!("congestion control for {addr}: {errno}");
    }
}

fn set_up(socket: impl AsFd + Copy, config: &TcpConfig) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(socket, config.user_timeout_ms)
}
