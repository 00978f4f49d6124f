//! The table of connections. A connection that is closed keeps its place until nothing of it
//! touches memory any more, so that no other takes its handle before its end is told.

use rnbd_fabric::slab::{Full, Slab};
use rnbd_fabric::{ConnId, DomainId};

use crate::connection::Connection;

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are of the large kind"
)]
enum Place {
    Alive(Connection),
    /// The queue pair, which may reach what is in the domain, is about to go.
    Closing(Option<DomainId>),
}

#[derive(Debug)]
pub(crate) struct Connections {
    places: Slab<Place>,
}

impl Connections {
    pub(crate) fn new(limit: u32) -> Self {
        let places = Slab::new(limit);
        Self { places }
    }

    pub(crate) fn insert(
        &mut self,
        make: impl FnOnce(ConnId) -> Connection,
    ) -> Result<ConnId, Full> {
        let taken = self
            .places
            .insert(|index, generation| Place::Alive(make(ConnId { index, generation })));
        let (index, generation) = taken?;
        Ok(ConnId { index, generation })
    }

    /// The connection, unless it is closed.
    pub(crate) fn get(&self, conn: ConnId) -> Option<&Connection> {
        match self.places.get(conn.index, conn.generation)? {
            Place::Alive(connection) => Some(connection),
            Place::Closing(_) => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        match self.places.get_mut(conn.index, conn.generation)? {
            Place::Alive(connection) => Some(connection),
            Place::Closing(_) => None,
        }
    }

    /// Takes a connection out. Its place stays taken until it is freed.
    pub(crate) fn take(&mut self, conn: ConnId) -> Option<Connection> {
        let place = self.places.get_mut(conn.index, conn.generation)?;
        let Place::Alive(connection) = place else {
            return None;
        };
        let closing = Place::Closing(connection.domain);
        match std::mem::replace(place, closing) {
            Place::Alive(connection) => Some(connection),
            Place::Closing(_) => None,
        }
    }

    /// Frees the place of a connection that was taken out.
    pub(crate) fn free(&mut self, conn: ConnId) {
        self.places.remove(conn.index, conn.generation);
    }

    /// All that are not closed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection)> {
        self.places
            .iter()
            .filter_map(|((index, generation), place)| match place {
                Place::Alive(connection) => Some((ConnId { index, generation }, connection)),
                Place::Closing(_) => None,
            })
    }

    /// Whether a queue pair may reach what is in the domain.
    pub(crate) fn reach(&self, domain: DomainId) -> bool {
        self.places.iter().any(|(_, place)| match place {
            Place::Alive(connection) => connection.domain == Some(domain),
            Place::Closing(of) => *of == Some(domain),
        })
    }
}
