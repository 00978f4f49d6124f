use std::fs::{self, File, OpenOptions};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen};

use crate::Rpc;
use crate::connection::Connection;
use crate::control_loop::{Interest, Watch};
use crate::gate::{Gate, GateState, Ticket};

/// How many may wait.
const BACKLOG: i32 = 512;
/// After a client could not be accepted, for want of descriptors or memory.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process serves that path.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is something at the path that is no socket, and it is left alone.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel or the file system refused.
    #[error("cannot listen on {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Serves the methods of an [`Rpc`] on a Unix socket (spdk-conventions.md A.1, A.2). Only the
/// user that runs the program may connect. Dropping it closes the socket, removes its files and
/// drops all connections.
#[derive(Debug)]
pub struct RpcServer {
    gate: Rc<Gate>,
    files: Files,
}

/// The socket's path and the lock that guards it.
#[derive(Debug)]
struct Files {
    socket: PathBuf,
    lock: PathBuf,
    /// Holds the lock while it is open.
    _lock_file: File,
}

impl RpcServer {
    /// Listens on `path` and serves from now on. A socket that a dead process left is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(rpc: &Rpc, path: &Path) -> Result<Self, ListenError> {
        let files = Files::claim(path)?;
        let listener = open_socket(path)
            .and_then(|listener| rpc.handle().watch(listener))
            .map_err(|source| io_error(path, source))?;
        let gate = Rc::<Gate>::default();
        rpc.handle()
            .spawn(accept(rpc.clone(), gate.enter(), listener));
        Ok(Self { gate, files })
    }

    /// Holds all clients: they can connect and send, but nothing is read until
    /// [`RpcServer::resume`]. Methods that run go on and answer.
    pub fn pause(&self) {
        self.gate.set_state(GateState::Paused);
    }

    /// Ends [`RpcServer::pause`].
    pub fn resume(&self) {
        self.gate.set_state(GateState::Open);
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files.socket
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        self.gate.set_state(GateState::Ended);
    }
}

/// Accepts clients until the server ends.
async fn accept(rpc: Rpc, ticket: Ticket, listener: Watch<UnixListener>) {
    while poll_fn(|context| poll_may_accept(context, &ticket)).await {
        let accepted = listener.get().accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            rpc.handle().watch(stream)
        });
        match accepted {
            Ok(stream) => {
                let connection = Connection::new(rpc.clone(), ticket.admit(), stream);
                rpc.handle().spawn(connection.serve());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll_fn(|context| poll_client(context, &ticket, &listener)).await;
            }
            Err(error) => {
                log::warn!("cannot accept an RPC connection: {error}");
                rpc.handle().sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Whether to go on accepting; pending while there is no room.
fn poll_may_accept(context: &mut Context<'_>, ticket: &Ticket) -> Poll<bool> {
    match ticket.state(context) {
        GateState::Ended => Poll::Ready(false),
        GateState::Open if !ticket.is_full() => Poll::Ready(true),
        GateState::Open | GateState::Paused => Poll::Pending,
    }
}

/// Is ready when a client waits, and when there is nothing to accept for.
fn poll_client(
    context: &mut Context<'_>,
    ticket: &Ticket,
    listener: &Watch<UnixListener>,
) -> Poll<()> {
    match ticket.state(context) {
        GateState::Open => listener.poll_ready(context, Interest::READ).map(drop),
        GateState::Paused | GateState::Ended => Poll::Ready(()),
    }
}

/// Whoever the umask would let in: nobody can connect before `listen`, and by then the mode is
/// set.
fn open_socket(path: &Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

impl Files {
    /// Takes the lock, and removes a socket that nobody serves any more.
    fn claim(path: &Path) -> Result<Self, ListenError> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let lock_file = loop {
            if let Some(file) = try_lock(path, &lock)? {
                break file;
            }
        };
        let files = Self {
            socket: path.to_owned(),
            lock,
            _lock_file: lock_file,
        };
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).map_err(|source| io_error(path, source))?;
            }
            Ok(_) => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Err(_) => {}
        }
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let is_socket = fs::symlink_metadata(&self.socket).is_ok_and(|m| m.file_type().is_socket());
        if is_socket {
            let _ = fs::remove_file(&self.socket);
        }
        // Removed while the lock is still held; `try_lock` sees to who comes in between.
        let _ = fs::remove_file(&self.lock);
    }
}

/// `None` if the last owner removed the file between its opening and its locking.
fn try_lock(path: &Path, lock: &Path) -> Result<Option<File>, ListenError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options
        .open(lock)
        .map_err(|source| io_error(lock, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(ListenError::InUse(path.to_owned())),
        Err(errno) => return Err(io_error(lock, errno.into())),
    }
    let same = match (file.metadata(), fs::metadata(lock)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    };
    Ok(same.then_some(file))
}

fn io_error(path: &Path, source: io::Error) -> ListenError {
    ListenError::Io {
        path: path.to_owned(),
        source,
    }
}
