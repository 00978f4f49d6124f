//! From INFO_REQ to INFO_RSP: the path comes up.

use rnbd_base::Nanos;
use rnbd_fabric::{Access, Fabric, FabricError, PostError, WindowKind, WorkRequest, WrOp};
use rnbd_mem::MemoryError;
use rnbd_rtrs::srv::{CloseCause, PathKey, Violation};
use rnbd_wire::extension::ServiceId;
use rnbd_wire::rtrs::{Descriptor, InfoReq, InfoRsp};

use super::acceptor::put;
use super::device_io::Service;
use super::notification::Notification;
use super::path_io::PathLayout;
use super::shard::{ConEntry, TargetShard};
use super::wr_id::WrId;
use crate::srv::Session;

/// Why a path could not be brought up.
enum Failure {
    Memory(MemoryError),
    Fabric(FabricError),
    Post(PostError),
    Gone,
}

impl<F: Fabric> TargetShard<F> {
    pub(super) fn handle_info_req(&mut self, con: ConEntry, bytes: u32, now: Nanos) {
        let mut message = [0; InfoReq::BYTES];
        let len = (bytes as usize).min(InfoReq::BYTES);
        match self.path_io(con.path).and_then(|io| io.info_req_sge()) {
            Some(sge) => sge.span.read_at(0, &mut message[..len]),
            None => return,
        }
        let directory = &self.services.directory;
        let accepted =
            self.sessions
                .handle_info_req(con.path, &message[..len], now, |name, uuid| {
                    directory.claim_name(name, uuid)
                });
        match accepted {
            Ok(accepted) => self.bring_up(con, &accepted.name.to_string(), now),
            Err(violation) => self.violate(con.path, violation, now),
        }
    }

    /// A send after the handshake: clients have nothing to say by it.
    pub(super) fn handle_unexpected(&mut self, con: ConEntry, now: Nanos) {
        self.violate(con.path, Violation::Unexpected, now);
    }

    fn bring_up(&mut self, con: ConEntry, sessname: &str, now: Nanos) {
        let service = self.service_of(con.path);
        match self.open_chunks(con, service) {
            Ok(()) => self.announce(con.path, sessname, service),
            Err(failure) => {
                failure.log();
                let cause = CloseCause::Local("the chunks could not be opened to the client");
                self.close_path(con.path, cause);
                self.remove_if_drained(con.path, now);
            }
        }
        self.timer_at = self
            .timer_at
            .min(self.sessions.next_deadline().unwrap_or(now));
    }

    /// The service that a path which comes up belongs to: that of its session, or a new one.
    fn service_of(&mut self, key: PathKey) -> ServiceId {
        let session = self.sessions.path(key).map(|path| path.session());
        let running = session.and_then(|session| self.client(session));
        let running = running.map(|service| service.id);
        running.unwrap_or_else(|| self.services.directory.new_service())
    }

    fn open_chunks(&mut self, con: ConEntry, service: ServiceId) -> Result<(), Failure> {
        self.make_chunks(con.path)?;
        let descriptors = if self.config.rtrs.new_rkey {
            self.open_chunks_by_window(con)?
        } else {
            self.open_chunks_at_once(con.path)?
        };
        self.send_info_rsp(con, &descriptors, service)
    }

    fn make_chunks(&mut self, key: PathKey) -> Result<(), Failure> {
        let layout = PathLayout::new(&self.config.rtrs, &self.caps);
        let memory = self.services.memory.clone();
        let io = self.path_io(key).ok_or(Failure::Gone)?;
        io.make_chunks(&memory, &layout).map_err(Failure::Memory)
    }

    /// Plain mode: one key for all chunks.
    fn open_chunks_at_once(&mut self, key: PathKey) -> Result<Vec<Descriptor>, Failure> {
        let rkey = self.register_chunks(key, Access::RemoteWrite)?;
        let io = self.path_io(key).ok_or(Failure::Gone)?;
        let area = io.chunk_area().ok_or(Failure::Gone)?;
        let len = u32::try_from(area.len()).map_err(|_| Failure::Gone)?;
        Ok(vec![Descriptor {
            addr: area.addr(),
            key: rkey,
            len,
        }])
    }

    /// `NEW_RKEY` mode: a window for each chunk.
    fn open_chunks_by_window(&mut self, con: ConEntry) -> Result<Vec<Descriptor>, Failure> {
        self.register_chunks(con.path, Access::Local)?;
        (0..self.config.rtrs.queue_depth)
            .map(|msg_id| self.open_window(con, msg_id))
            .collect()
    }

    fn register_chunks(&mut self, key: PathKey, access: Access) -> Result<u32, Failure> {
        let (_, io, fabric) = self.path_parts(key).ok_or(Failure::Gone)?;
        let domain = io.domain.ok_or(Failure::Gone)?;
        let area = io.chunk_area().ok_or(Failure::Gone)?;
        let registered = fabric
            .register(domain, area, access)
            .map_err(Failure::Fabric)?;
        io.chunk_key = Some(registered);
        Ok(registered.rkey)
    }

    fn open_window(&mut self, con: ConEntry, msg_id: u16) -> Result<Descriptor, Failure> {
        let chunk_bytes = self.config.rtrs.chunk_bytes;
        let (_, io, fabric) = self.path_parts(con.path).ok_or(Failure::Gone)?;
        let domain = io.domain.ok_or(Failure::Gone)?;
        let mr = io.chunk_key.ok_or(Failure::Gone)?.mr;
        let chunk = io.chunk(msg_id).ok_or(Failure::Gone)?;
        let window = fabric
            .alloc_window(domain, WindowKind::Domain)
            .map_err(Failure::Fabric)?;
        io.windows.push(window);
        let key = fabric
            .bind(con.conn, window, mr, chunk)
            .map_err(Failure::Post)?;
        let own = io.con_mut(con.cid).ok_or(Failure::Gone)?;
        own.charge(1);
        Ok(Descriptor {
            addr: chunk.addr(),
            key,
            len: chunk_bytes,
        })
    }

    fn send_info_rsp(
        &mut self,
        con: ConEntry,
        descriptors: &[Descriptor],
        service: ServiceId,
    ) -> Result<(), Failure> {
        let path = self.sessions.path(con.path).ok_or(Failure::Gone)?;
        let service = path.token().map(|_agreed| service);
        let count = u16::try_from(descriptors.len()).map_err(|_| Failure::Gone)?;
        let mut message = vec![0; InfoRsp::bytes(count)];
        InfoRsp::encode(descriptors, service, &mut message);
        let (_, io, fabric) = self.path_parts(con.path).ok_or(Failure::Gone)?;
        let sge = io.info_rsp_sge(&message).ok_or(Failure::Gone)?;
        let own = io.con_mut(con.cid).ok_or(Failure::Gone)?;
        let count = own.charge_last(true).unwrap_or(1);
        let wr_id = WrId::Executed {
            count,
            device: None,
        };
        let send = WorkRequest::new(WrOp::Send)
            .with_sge(sge)
            .signaled(wr_id.encode());
        fabric.post(con.conn, &send).map_err(Failure::Post)
    }

    fn announce(&mut self, key: PathKey, sessname: &str, id: ServiceId) {
        let Some(path) = self.sessions.path(key) else {
            return;
        };
        let (session, route) = (path.session(), path.route());
        if let Some(io) = self.path_io(key) {
            io.admission.on_connected();
        }
        let path = super::acceptor::path_name(route);
        log::info!("session {sessname}: path {path} is up");
        if self.client(session).is_none() {
            let max_devices = self.services.exports.options().max_devices_per_session;
            let service = Service {
                key: session,
                id,
                sessname: sessname.to_owned(),
                client: route.client,
                session: Session::new(max_devices),
                devices: Vec::new(),
            };
            put(&mut self.clients, session.index as usize, service);
            self.services.sink.notify(Notification::SessionConnected {
                sessname: sessname.to_owned(),
            });
        }
        self.services.sink.notify(Notification::PathUp {
            sessname: sessname.to_owned(),
            path,
        });
    }
}

impl Failure {
    fn log(&self) {
        match self {
            Self::Memory(error) => log::error!("a path is refused: {error}"),
            Self::Fabric(error) => log::error!("chunks cannot be opened to a client: {error}"),
            Self::Post(error) => log::warn!("INFO_RSP cannot be sent: {error}"),
            Self::Gone => log::warn!("a path closed during its handshake"),
        }
    }
}
