use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::time::Duration;

use rnbd_base::Wake;
use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u8 = 0;
const SLEEPY: u8 = 1;
const NOTIFIED: u8 = 2;

/// Ends the sleep of one reactor.
///
/// ```text
///             announce()              wake(): writes the eventfd
///    AWAKE ───────────────▶ SLEEPY ──────────────────────────▶ NOTIFIED
///      ▲                      │                                   │
///      └──────────────────────┴───────────────────────────────────┘
///                            wake_up()
/// ```
///
/// No message is lost: a sender first queues the message and then reads the state; the reactor
/// first announces its sleep and then looks into all queues once more. A sequentially consistent
/// fence lies between the two steps on either side, so at least one sees what the other did:
/// either the reactor finds the message, or the sender finds `SLEEPY` and writes the eventfd,
/// on which the reactor then sleeps not at all.
///
/// While the reactor is awake, `wake` costs a fence and a load.
#[derive(Debug)]
pub(crate) struct Waker {
    state: AtomicU8,
    event: OwnedFd,
}

impl Wake for Waker {
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) != SLEEPY {
            return;
        }
        let notified =
            self.state
                .compare_exchange(SLEEPY, NOTIFIED, Ordering::AcqRel, Ordering::Relaxed);
        if notified.is_ok() {
            // Only a counter at its limit refuses the write, and then the event is pending anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            state: AtomicU8::new(AWAKE),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    /// From here on senders write the eventfd. Afterwards the reactor looks for work once more,
    /// and only then calls [`Waker::sleep`].
    pub(crate) fn announce(&self) {
        self.state.store(SLEEPY, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Ends the announcement.
    pub(crate) fn wake_up(&self) {
        self.state.store(AWAKE, Ordering::Release);
    }

    /// Sleeps until one of `fds` is readable, [`Wake::wake`] is called, a signal comes, or
    /// `timeout` has passed. `polled` is scratch space that keeps its capacity.
    pub(crate) fn sleep(
        &self,
        fds: &[RawFd],
        polled: &mut Vec<libc::pollfd>,
        timeout: Option<Duration>,
    ) {
        polled.clear();
        let all = std::iter::once(self.event.as_raw_fd()).chain(fds.iter().copied());
        polled.extend(all.map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        }));
        wait(polled, timeout);
        if polled.first().is_some_and(|event| event.revents != 0) {
            self.drain();
        }
    }

    /// A wake-up whose sleep was called off leaves the event pending, and the next sleep ends at
    /// once; so the event is cleared whenever it is seen, whatever the state.
    fn drain(&self) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

fn wait(polled: &mut [libc::pollfd], timeout: Option<Duration>) {
    let timeout = timeout.map(|span| libc::timespec {
        tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(span.subsec_nanos()),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    let count = polled.len() as libc::nfds_t;
    // SAFETY: `polled` is `count` initialised entries that nobody else touches, `timeout` is null
    // or points to a value that outlives the call, and a null mask leaves the signals alone. A
    // descriptor that is not open is reported, not undefined. The outcome is read from `polled`.
    unsafe {
        libc::ppoll(polled.as_mut_ptr(), count, timeout, std::ptr::null());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rnbd_base::mailbox;

    use super::*;

    fn pending(waker: &Waker) -> bool {
        rustix::io::read(&waker.event, &mut [0; 8]).is_ok()
    }

    #[test]
    fn the_event_is_written_only_to_an_announced_sleep_and_once() {
        let waker = Waker::new().unwrap();
        waker.wake();
        assert!(!pending(&waker));
        waker.announce();
        waker.wake();
        waker.wake();
        let mut counter = [0; 8];
        rustix::io::read(&waker.event, &mut counter).unwrap();
        assert_eq!(u64::from_ne_bytes(counter), 1);
        waker.wake_up();
        waker.wake();
        assert!(!pending(&waker));
    }

    #[test]
    fn a_sleep_ends_by_wake_even_if_it_came_first_and_leaves_nothing_pending() {
        let waker = Waker::new().unwrap();
        waker.announce();
        waker.wake();
        waker.sleep(&[], &mut Vec::new(), None);
        assert!(!pending(&waker));
    }

    #[test]
    fn a_sleep_ends_by_its_timeout_and_by_a_readable_descriptor() {
        let waker = Waker::new().unwrap();
        let mut polled = Vec::new();
        waker.sleep(&[], &mut polled, Some(Duration::from_nanos(1)));
        let other = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        waker.sleep(&[other.as_raw_fd()], &mut polled, None);
        assert_eq!(polled[1].revents, libc::POLLIN);
    }

    /// A lost wake-up would leave the receiver asleep for ever and hang the test.
    #[test]
    fn no_message_is_lost_between_announcing_and_sleeping() {
        const MESSAGES: u32 = 50_000;
        let waker = Arc::new(Waker::new().unwrap());
        let (sender, mut receiver) = mailbox(4, Arc::clone(&waker) as Arc<dyn Wake>);
        let (acknowledge, acknowledged) = std::sync::mpsc::channel();
        let sending = std::thread::spawn(move || {
            for message in 0..MESSAGES {
                sender.send(message).unwrap();
                // Some go out back to back, some only when the receiver is about to sleep.
                for _ in 0..message % 64 {
                    std::hint::spin_loop();
                }
                assert_eq!(acknowledged.recv(), Ok(message));
            }
        });
        let (mut polled, mut expected) = (Vec::new(), 0);
        while expected < MESSAGES {
            waker.announce();
            match receiver.take() {
                None => waker.sleep(&[], &mut polled, None),
                Some(message) => {
                    assert_eq!(message, expected);
                    expected += 1;
                    acknowledge.send(message).unwrap();
                }
            }
            waker.wake_up();
        }
        sending.join().unwrap();
    }
}
