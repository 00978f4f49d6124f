//! The initiator that all jobs of the process have in common, and its control thread.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rnbd_base::Errno;
use rnbd_bdev::Registry;
use rnbd_framework::{BdevSource, Hosted, Level, Logger};
use rnbd_mem::{Buffer, Memory, MemoryConfig};
use rnbd_reactor::{Clock, Reactors};

use crate::seat::{Caretaker, Seat, TakenSeat};

/// The control thread's pause when nothing was to be done, while something is expected and else.
const SHORT_PAUSE: Duration = Duration::from_micros(50);
const PAUSE: Duration = Duration::from_millis(1);

/// How long the process waits for controllers to be detached when it ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Most jobs at a time: the CPUs that a mask can name.
const JOBS_MAX: usize = 1024;

static RUNTIME: Mutex<Option<Started>> = Mutex::new(None);

/// A start is tried once: each job would wait for a server that is not there, else.
type Started = Result<Arc<Runtime>, String>;

fn lock() -> MutexGuard<'static, Option<Started>> {
    RUNTIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What jobs work with.
pub(crate) struct Runtime {
    config: PathBuf,
    pub(crate) bdevs: Registry,
    pub(crate) memory: Memory,
    pub(crate) clock: Clock,
    seats: Vec<Arc<Seat>>,
    /// Buffers of jobs that ended before their I/O did.
    abandoned: Mutex<Vec<Buffer>>,
    stop: Mutex<Sender<Sender<()>>>,
}

/// The runtime with this configuration for so many jobs at a time, started if it was not before.
///
/// # Errors
/// It does not start, or has another configuration.
pub(crate) fn get(config: &Path, jobs: impl FnOnce() -> usize) -> anyhow::Result<Arc<Runtime>> {
    let mut slot = lock();
    let started = slot.get_or_insert_with(|| {
        let started = Runtime::start(config, jobs());
        started.map_err(|error| format!("{error:#}"))
    });
    let runtime = started.as_ref().map_err(|reason| anyhow!("{reason}"))?;
    if runtime.config != config {
        bail!(
            "all jobs of a process have one rnbd_json_conf: {} or {}",
            runtime.config.display(),
            config.display()
        );
    }
    Ok(Arc::clone(runtime))
}

/// Detaches all controllers and ends the control thread, for the end of the process.
pub(crate) fn stop() {
    let Some(Ok(runtime)) = lock().take() else {
        return;
    };
    let (on_stopped, stopped) = mpsc::channel();
    let stop = runtime.stop.lock().unwrap_or_else(PoisonError::into_inner);
    if stop.send(on_stopped).is_ok() {
        // Whether in time or not, the process ends.
        let _ = stopped.recv_timeout(FAREWELL);
    }
}

impl Runtime {
    fn start(config: &Path, jobs: usize) -> anyhow::Result<Arc<Self>> {
        if jobs > JOBS_MAX {
            bail!("{jobs} jobs would run at a time; at most {JOBS_MAX} can");
        }
        Logger::get().set_print_level(Level::Warning);
        let (on_started, started) = mpsc::channel();
        let config = config.to_owned();
        let control = move || control(&config, jobs.max(1), &on_started);
        thread::Builder::new()
            .name("rnbd_control".to_owned())
            .spawn(control)
            .context("the control thread does not start")?;
        started.recv().context("the control thread has ended")?
    }

    /// A reactor for a job.
    pub(crate) fn take_seat(&self) -> Option<TakenSeat> {
        self.seats.iter().find_map(Seat::take)
    }

    /// Keeps a buffer that I/O may still use.
    pub(crate) fn abandon(&self, buffer: Buffer) {
        let abandoned = self.abandoned.lock();
        abandoned
            .unwrap_or_else(PoisonError::into_inner)
            .push(buffer);
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runtime({})", self.config.display())
    }
}

/// The control thread.
fn control(config: &Path, jobs: usize, on_started: &Sender<anyhow::Result<Arc<Runtime>>>) {
    // Whoever waits for the answer holds the other end.
    let answer = |result| drop(on_started.send(result));
    let (control, parts) = match Control::new(jobs) {
        Ok(made) => made,
        Err(error) => return answer(Err(error)),
    };
    let mut control = control;
    let configured = control.configure(config);
    if let Err(error) = configured {
        control.shut_down();
        return answer(Err(error));
    }
    let (stop, on_stop) = mpsc::channel();
    answer(Ok(Arc::new(Runtime {
        config: config.to_owned(),
        bdevs: parts.bdevs,
        memory: parts.memory,
        clock: parts.clock,
        seats: parts.seats,
        abandoned: Mutex::default(),
        stop: Mutex::new(stop),
    })));
    control.serve(&on_stop);
}

struct Control {
    hosted: Hosted,
    caretakers: Vec<Caretaker>,
}

/// What a runtime gets from it.
struct Parts {
    bdevs: Registry,
    memory: Memory,
    clock: Clock,
    seats: Vec<Arc<Seat>>,
}

impl Control {
    fn new(jobs: usize) -> anyhow::Result<(Self, Parts)> {
        // The numbers stand for jobs; on which CPU they run is for fio to say.
        let cores: Vec<u32> = (0..).take(jobs).collect();
        let (reactors, hosted_reactors) = Reactors::hosted(&cores)?;
        let seats: Vec<Arc<Seat>> = reactors
            .cores()
            .zip(hosted_reactors)
            .map(|(core, reactor)| Seat::new(core, reactor))
            .collect();
        let memory = Memory::new(MemoryConfig::default());
        let clock = reactors.clock();
        let hosted = Hosted::new(reactors, memory.clone(), |_| Box::new(NoSource))?;
        let parts = Parts {
            bdevs: hosted.bdevs().clone(),
            memory,
            clock,
            seats: seats.clone(),
        };
        let caretakers = seats.into_iter().map(Caretaker::new).collect();
        Ok((Self { hosted, caretakers }, parts))
    }

    /// One round; whether anything was to be done.
    fn turn(&mut self) -> bool {
        let mut worked = self.hosted.turn();
        for caretaker in &mut self.caretakers {
            worked |= caretaker.look_after().is_busy();
        }
        worked
    }

    fn configure(&mut self, config: &Path) -> anyhow::Result<()> {
        let (on_done, done) = mpsc::channel();
        self.hosted
            .configure(config, move |result| drop(on_done.send(result)));
        self.wait_for(&done, None)
            .context("the configuration was given up")?
    }

    fn serve(&mut self, on_stop: &Receiver<Sender<()>>) {
        loop {
            let pause = match self.turn() {
                true => Duration::ZERO,
                false => PAUSE,
            };
            match on_stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.shut_down(),
                Ok(stopped) => {
                    self.shut_down();
                    // The process may have given up waiting.
                    let _ = stopped.send(());
                    return;
                }
            }
        }
    }

    fn shut_down(&mut self) {
        let (on_done, done) = mpsc::channel();
        self.hosted.shut_down_initiator(move || {
            let _ = on_done.send(());
        });
        if self.wait_for(&done, Some(FAREWELL)).is_none() {
            log::warn!("controllers were not detached in time");
        }
    }

    fn wait_for<T>(&mut self, answer: &Receiver<T>, limit: Option<Duration>) -> Option<T> {
        let begun = Instant::now();
        while limit.is_none_or(|limit| begun.elapsed() < limit) {
            let pause = match self.turn() {
                true => Duration::ZERO,
                false => SHORT_PAUSE,
            };
            match answer.recv_timeout(pause) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }
}

/// fio has no bdevs of its own.
#[derive(Debug)]
struct NoSource;

impl BdevSource for NoSource {
    fn provide(&self, _name: &str, _write: bool) -> Result<(), (Errno, String)> {
        Ok(())
    }

    fn release(&self, _name: &str) {}
}
