use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

const BACKLOG: i32 = 128;
const OWNER_ONLY: u32 = 0o600;

/// Where an export is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file, which only its owner may open.
    Unix(PathBuf),
    /// An IP address and port; port 0 takes any free one.
    Tcp(SocketAddr),
}

/// A text that is no [`Address`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} is no address for NBD; it is an absolute path of a socket (unix:/run/disk.sock) or \
     an IP address and port (tcp:127.0.0.1:10809, tcp:[::1]:10809)"
)]
pub struct InvalidAddress {
    /// What was given.
    pub text: String,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (path, address) = match text.split_once(':') {
            Some(("unix", path)) => (path, ""),
            Some(("tcp", address)) => ("", address),
            _ => (text, text),
        };
        if path.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let invalid = |_| InvalidAddress {
            text: text.to_owned(),
        };
        address.parse().map(Self::Tcp).map_err(invalid)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    address: Address,
}

impl Listener {
    /// Listens. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `EADDRINUSE` if somebody does, `EEXIST` if the file is no socket, or the system's.
    pub(crate) fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::bind_unix(path),
            Address::Tcp(address) => Self::bind_tcp(*address),
        }
    }

    /// As bound: with the port that was chosen.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The next client, if there is one.
    pub(crate) fn accept(&self) -> io::Result<Option<Socket>> {
        let socket = match self.socket.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        socket.set_nonblocking(true)?;
        if matches!(self.address, Address::Tcp(_)) {
            socket.set_tcp_nodelay(true)?;
            socket.set_keepalive(true)?;
        }
        Ok(Some(socket))
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
        remove_stale_socket(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The file is made with the mode that the socket has, so that it is never open to others.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(OWNER_ONLY))?;
        socket.bind(&SockAddr::unix(path)?)?;
        Self::listen(socket, Address::Unix(path.to_owned()))
    }

    fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Self::listen(socket, Address::Tcp(bound))
    }

    fn listen(socket: Socket, address: Address) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        Ok(Self { socket, address })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address
            && let Err(error) = std::fs::remove_file(path)
        {
            log::warn!("socket {} could not be removed: {error}", path.display());
        }
    }
}

fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("replacing socket {}, which nobody serves", path.display());
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn addresses_are_paths_and_literal_ip_addresses() {
        let unix = Address::Unix("/run/a.sock".into());
        assert_eq!("/run/a.sock".parse(), Ok(unix.clone()));
        assert_eq!("unix:/run/a.sock".parse(), Ok(unix));
        for text in ["127.0.0.1:10809", "[::1]:0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
            let with_prefix = format!("tcp:{text}");
            assert_eq!(with_prefix.parse::<Address>(), text.parse());
        }
        for text in [
            "",
            "a.sock",
            "localhost:10809",
            "127.0.0.1",
            "1.2.3.4:70000",
            "tcp:/run/a.sock",
            "unix:127.0.0.1:10809",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_socket_is_for_its_owner_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600 & mode);
        assert_eq!(mode & 0o077, 0);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_used_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        drop(UnixListener::bind(&path).unwrap());
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address).unwrap();
        let error = Listener::bind(&address).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        assert!(path.exists());
        drop(listener);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = Listener::bind(&Address::Unix(path.clone())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
