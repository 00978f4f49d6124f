use std::cell::UnsafeCell;
use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr::NonNull;

use rnbd_base::{Errno, Progress};
use rnbd_spdk_sys as sys;

use crate::thread::Thread;

type Body = UnsafeCell<Box<dyn FnMut() -> Progress + Send>>;

/// A function that a light thread calls again and again, until this is dropped, on that thread.
pub struct Poller {
    raw: NonNull<sys::spdk_poller>,
    body: BodyPtr,
    thread: Thread,
}

struct BodyPtr(NonNull<Body>);

// SAFETY: the function is `Send`, and only the poller's thread calls or frees it.
unsafe impl Send for BodyPtr {}
// SAFETY: the handle only frees, and sends itself to the right thread for that.
unsafe impl Send for Poller {}

impl Poller {
    /// Lets the current thread call `poll` in every round, or every `period_us` if that is not
    /// zero.
    ///
    /// # Errors
    /// `ENOMEM`; `EPERM` outside of SPDK's threads.
    pub fn register(
        name: &str,
        period_us: u64,
        poll: impl FnMut() -> Progress + Send + 'static,
    ) -> Result<Self, Errno> {
        let thread = Thread::current().ok_or(Errno::PERM)?;
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let body: Box<Body> = Box::new(UnsafeCell::new(Box::new(poll)));
        let body = NonNull::from(Box::leak(body));
        // SAFETY: this is one of SPDK's threads; the body lives until the poller is unregistered.
        let raw = unsafe {
            sys::spdk_poller_register_named(
                Some(run),
                body.as_ptr().cast(),
                period_us,
                name.as_ptr(),
            )
        };
        let body = BodyPtr(body);
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, body, thread }),
            None => {
                body.free();
                Err(Errno::NOMEM)
            }
        }
    }
}

impl BodyPtr {
    fn free(self) {
        // SAFETY: it was leaked by `register`, and nothing calls it any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        assert!(
            self.thread.is_current(),
            "a poller is dropped on its own thread"
        );
        let mut raw = self.raw.as_ptr();
        // SAFETY: it is registered and this is its thread.
        unsafe { sys::spdk_poller_unregister(&raw mut raw) };
        // The function may be the one that runs now: it is freed in a later round.
        let body = BodyPtr(self.body.0);
        self.thread.send(move || body.free());
    }
}

unsafe extern "C" fn run(argument: *mut c_void) -> c_int {
    let body = argument.cast::<Body>();
    // SAFETY: the body outlives the registration, and a thread calls a poller once at a time.
    let poll = unsafe { &mut *UnsafeCell::raw_get(body) };
    c_int::from(poll().is_busy())
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Poller({:?})", self.thread)
    }
}
