use std::future::poll_fn;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll};

use signal_hook::SigId;

use super::{Handle, Interest, Watch};

/// Signals that arrive as events; see [`Handle::signals`].
#[derive(Debug)]
pub struct Signals {
    sources: Vec<Source>,
}

/// The handler writes a byte into a socket whose other end the loop watches.
#[derive(Debug)]
struct Source {
    signal: i32,
    registration: SigId,
    receiver: Watch<UnixStream>,
}

impl Signals {
    pub(crate) fn new(handle: &Handle, signals: &[i32]) -> io::Result<Self> {
        let sources: io::Result<Vec<Source>> = signals
            .iter()
            .map(|&signal| Source::new(handle, signal))
            .collect();
        Ok(Self { sources: sources? })
    }

    /// The next signal. Several of one kind that come close together may count as one.
    pub async fn next(&mut self) -> i32 {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<i32> {
        let ready = self.sources.iter().find_map(|source| source.poll(context));
        ready.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Source {
    fn new(handle: &Handle, signal: i32) -> io::Result<Self> {
        if signal_hook::consts::FORBIDDEN.contains(&signal) {
            let text = format!("signal {signal} cannot be taken");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        let registration = signal_hook::low_level::pipe::register(signal, sender)?;
        Ok(Self {
            signal,
            registration,
            receiver: handle.watch(receiver)?,
        })
    }

    /// The signal, if it came; else it will wake the task.
    fn poll(&self, context: &mut Context<'_>) -> Option<i32> {
        loop {
            if matches!((&mut self.receiver.get()).read(&mut [0; 64]), Ok(1..)) {
                return Some(self.signal);
            }
            if self
                .receiver
                .poll_ready(context, Interest::READ)
                .is_pending()
            {
                return None;
            }
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.registration);
    }
}
