//! The thread that lets go of what takes long to let go of: calls into the driver that wait for
//! the device's firmware.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use rnbd_fabric::{CloseReason, ConnId};
use rustix::io::Errno;

use super::inbox::{Inbox, Told};
use crate::devices::Adapter;
use crate::sys::{CmId, Mr, Mw, Pd, Qp};

/// Something to be let go of.
#[derive(Debug)]
#[expect(dead_code, reason = "only dropped")]
pub(crate) enum Scrap {
    Qp(Qp),
    Cm(CmId),
    Window(Mw),
    Region(Mr),
    Domain(Arc<Pd>),
    Device(Adapter),
}

struct Job {
    /// To be let go of, in this order.
    scraps: Vec<Scrap>,
    afterwards: Box<dyn FnOnce() + Send>,
}

/// Gives the thread work. It ends with the last of these.
#[derive(Clone, Debug)]
pub(crate) struct Releaser {
    jobs: Sender<Job>,
}

impl Releaser {
    pub(crate) fn start() -> Result<Self, Errno> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new().name("rnbd-verbs-free".to_owned());
        let started = thread.spawn(move || run(&queue));
        started.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(Self { jobs })
    }

    /// Lets go of these, in this order, after all that was given before.
    pub(crate) fn drop_later(&self, scraps: Vec<Scrap>) {
        if !scraps.is_empty() {
            self.give(scraps, || {});
        }
    }

    /// The same; then the fabric finds that the connection is over.
    pub(crate) fn close(
        &self,
        scraps: Vec<Scrap>,
        inbox: &Arc<Inbox>,
        conn: ConnId,
        reason: CloseReason,
    ) {
        let inbox = Arc::clone(inbox);
        self.give(scraps, move || inbox.send(Told::Released(conn, reason)));
    }

    /// Waits until all that was given before is done. Not for reactors.
    pub(crate) fn wait(&self) {
        let (tell, done) = sync_channel(1);
        self.give(Vec::new(), move || {
            // Whoever waited may have given up.
            let _told = tell.send(());
        });
        // An error says that the thread is gone, and then there is nothing to wait for.
        let _told = done.recv();
    }

    fn give(&self, scraps: Vec<Scrap>, afterwards: impl FnOnce() + Send + 'static) {
        let afterwards = Box::new(afterwards);
        // The thread ends only after the last sender; if it died, what is in the job goes here.
        let _sent = self.jobs.send(Job { scraps, afterwards });
    }
}

fn run(queue: &Receiver<Job>) {
    for job in queue {
        drop(job.scraps);
        (job.afterwards)();
    }
}
