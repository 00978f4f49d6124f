use std::ffi::{CString, c_void};
use std::ptr::NonNull;

use rnbd_spdk_sys as sys;

/// A light thread of SPDK: what pollers, channels and messages belong to.
///
/// The handle does not keep the thread. Only the application's thread and threads that this
/// process made are ever named by one, and those are left only after everything that could send
/// to them is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread(NonNull<sys::spdk_thread>);

// SAFETY: the handle is an address; SPDK's functions that take one may be called from any thread.
unsafe impl Send for Thread {}
// SAFETY: as for Send.
unsafe impl Sync for Thread {}

impl Thread {
    /// The one whose code runs now; `None` outside of SPDK's threads.
    #[must_use]
    pub fn current() -> Option<Self> {
        // SAFETY: reads a variable of this OS thread.
        NonNull::new(unsafe { sys::spdk_get_thread() }).map(Self)
    }

    /// The application's thread; `None` before there is one.
    #[must_use]
    pub fn app() -> Option<Self> {
        // SAFETY: reads a global that is set once.
        NonNull::new(unsafe { sys::spdk_thread_get_app_thread() }).map(Self)
    }

    /// Makes a thread that prefers `core`. `None` if SPDK has no memory for it.
    #[must_use]
    pub fn create(name: &str, core: u32) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: allocates and returns a set, or null.
        let cores = NonNull::new(unsafe { sys::spdk_cpuset_alloc() })?;
        // SAFETY: the set is ours.
        unsafe { sys::spdk_cpuset_set_cpu(cores.as_ptr(), core, true) };
        // SAFETY: name and set are valid for the call, which copies both.
        let thread = unsafe { sys::spdk_thread_create(name.as_ptr(), cores.as_ptr()) };
        // SAFETY: the set is ours and not used any more.
        unsafe { sys::spdk_cpuset_free(cores.as_ptr()) };
        NonNull::new(thread).map(Self)
    }

    /// Runs `message` on the thread, after everything that was sent to it before.
    pub fn send(self, message: impl FnOnce() + Send + 'static) {
        let boxed: Box<dyn FnOnce() + Send> = Box::new(message);
        self.send_raw(run_message, Box::into_raw(Box::new(boxed)).cast());
    }

    fn send_raw(self, function: unsafe extern "C" fn(*mut c_void), argument: *mut c_void) {
        // SAFETY: the thread is there (see the type), and `function` takes over `argument`.
        let sent = unsafe { sys::spdk_thread_send_msg(self.0.as_ptr(), Some(function), argument) };
        assert_eq!(sent, 0, "SPDK's pool of messages is exhausted");
    }

    /// Lets the current thread end as soon as its pollers and channels are gone.
    pub fn exit_current() {
        if let Some(current) = Self::current() {
            // SAFETY: it is the current thread, as the function demands.
            let status = unsafe { sys::spdk_thread_exit(current.0.as_ptr()) };
            debug_assert_eq!(status, 0, "a thread that runs can be ended");
        }
    }

    /// Whether code of this thread runs now.
    #[must_use]
    pub fn is_current(self) -> bool {
        Self::current() == Some(self)
    }
}

unsafe extern "C" fn run_message(argument: *mut c_void) {
    let message = argument.cast::<Box<dyn FnOnce() + Send>>();
    // SAFETY: `send` made it with `into_raw`, and a message is delivered once.
    let message = unsafe { Box::from_raw(message) };
    message();
}
