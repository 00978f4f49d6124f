//! What paths count against the limits of the process. A stranger's connection costs little: the
//! chunks are made when the handshake is complete, and who does not complete it is limited.

use rnbd_base::Host;
use rnbd_rtrs::srv::Refusal;

use super::directory::Directory;

/// What one path counts, until it is dropped.
#[derive(Debug)]
pub(super) struct Admission {
    directory: Directory,
    source: Host,
    /// Connections of this path, until its handshake is complete.
    connecting: usize,
}

impl Admission {
    /// Counts a path from this address.
    pub(super) fn of_path(directory: &Directory, source: Host) -> Result<Self, Refusal> {
        directory.count_path()?;
        Ok(Self {
            directory: directory.clone(),
            source,
            connecting: 0,
        })
    }

    /// Counts a connection of the path.
    pub(super) fn add_connection(&mut self) -> Result<(), Refusal> {
        self.directory.count_connecting(self.source)?;
        self.connecting += 1;
        Ok(())
    }

    /// The handshake is complete: its connections are not counted any more.
    pub(super) fn on_connected(&mut self) {
        let connecting = std::mem::take(&mut self.connecting);
        self.directory.uncount_connecting(self.source, connecting);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.on_connected();
        self.directory.uncount_path();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::directory::DirectoryLimits;
    use super::*;

    const ONE: Host = Host::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    const TWO: Host = Host::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));

    #[test]
    fn paths_are_counted_until_they_are_gone() {
        let directory = Directory::new(DirectoryLimits {
            paths: 1,
            ..DirectoryLimits::default()
        });
        let first = Admission::of_path(&directory, ONE).unwrap();
        let second = Admission::of_path(&directory, TWO);
        assert_eq!(second.unwrap_err(), Refusal::Paths);
        drop(first);
        assert!(Admission::of_path(&directory, TWO).is_ok());
    }

    #[test]
    fn unfinished_connections_are_counted_by_source() {
        let directory = Directory::new(DirectoryLimits {
            connecting_per_source: 2,
            ..DirectoryLimits::default()
        });
        let path = |source| Admission::of_path(&directory, source).unwrap();
        let (mut first, mut second, mut other) = (path(ONE), path(ONE), path(TWO));
        assert_eq!(first.add_connection(), Ok(()));
        assert_eq!(second.add_connection(), Ok(()));
        assert_eq!(second.add_connection(), Err(Refusal::Connecting));
        assert_eq!(other.add_connection(), Ok(()));
        first.on_connected();
        assert_eq!(second.add_connection(), Ok(()));
        drop(second);
        assert_eq!(path(ONE).add_connection(), Ok(()));
    }
}
