//! Methods in SPDK's RPC server.

use std::ffi::CString;
use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rnbd_spdk_sys as sys;
use serde_json::Value;

use crate::json::{self, Writer};
use crate::thread::Thread;

/// Most methods that can be registered.
const METHODS_MAX: usize = 64;

/// A method to be registered.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// Whether it may be called before the framework is initialized.
    pub startup: bool,
    /// Whether it may be called afterwards.
    pub runtime: bool,
}

/// Called with the name of the method, its parameters if there are any, and whom to answer.
pub type Handler = fn(&'static str, Option<Value>, Request);

/// What a failed call is answered.
#[derive(Clone, Debug)]
pub struct Failure {
    /// A JSON-RPC code or a negative errno.
    pub code: i32,
    /// A sentence for people.
    pub message: String,
}

struct Registered {
    names: Vec<String>,
    handler: Handler,
}

static REGISTERED: OnceLock<Registered> = OnceLock::new();

/// Registers methods that `handler` serves. To be called once, before the server starts.
///
/// # Panics
/// If there are more than 64, a name has a zero byte, or it is called again.
pub fn register(methods: &[Method], handler: Handler) {
    let names = methods.iter().map(|method| method.name.clone()).collect();
    let first = REGISTERED.set(Registered { names, handler }).is_ok();
    assert!(first, "methods are registered once");
    assert!(methods.len() <= METHODS_MAX, "raise METHODS_MAX");
    for (method, entry) in methods.iter().zip(entries()) {
        let name = CString::new(&*method.name).expect("no method has a zero byte in its name");
        let mut states = 0;
        if method.startup {
            states |= sys::SPDK_RPC_STARTUP;
        }
        if method.runtime {
            states |= sys::SPDK_RPC_RUNTIME;
        }
        // SAFETY: SPDK copies the name; the entry is a function of the right type.
        unsafe { sys::spdk_rpc_register_method(name.as_ptr(), Some(entry), states) };
    }
}

type Entry =
    unsafe extern "C" fn(request: *mut sys::spdk_jsonrpc_request, *const sys::spdk_json_val);

/// SPDK does not tell a handler which method was called, so each has a function of its own.
fn entries() -> [Entry; METHODS_MAX] {
    macro_rules! entries {
        ($($tens:literal)*) => {
            [$(
                entry::<{ $tens * 8 }>, entry::<{ $tens * 8 + 1 }>,
                entry::<{ $tens * 8 + 2 }>, entry::<{ $tens * 8 + 3 }>,
                entry::<{ $tens * 8 + 4 }>, entry::<{ $tens * 8 + 5 }>,
                entry::<{ $tens * 8 + 6 }>, entry::<{ $tens * 8 + 7 }>,
            )*]
        };
    }
    entries!(0 1 2 3 4 5 6 7)
}

unsafe extern "C" fn entry<const INDEX: usize>(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    let (Some(request), Some(registered)) = (NonNull::new(request), REGISTERED.get()) else {
        return;
    };
    let request = Request { raw: Some(request) };
    // SAFETY: null, or the values of the request's parameters.
    let value = unsafe { json::read(params) };
    if value.is_none() && !params.is_null() {
        return request.fail(-32602, "Invalid parameters");
    }
    (registered.handler)(&registered.names[INDEX], value, request);
}

/// A call that is to be answered once, on the application's thread.
pub struct Request {
    raw: Option<NonNull<sys::spdk_jsonrpc_request>>,
}

// SAFETY: the request may be carried anywhere; answering is sent to the application's thread.
unsafe impl Send for Request {}

impl Request {
    /// Answers.
    pub fn answer(self, answer: Result<Value, Failure>) {
        match answer {
            Ok(value) => self.succeed(&value),
            Err(failure) => self.fail(failure.code, &failure.message),
        }
    }

    fn succeed(mut self, value: &Value) {
        let Some(raw) = self.take() else {
            return;
        };
        // SAFETY: a request is answered once.
        let writer = unsafe { sys::spdk_jsonrpc_begin_result(raw.as_ptr()) };
        if let Some(context) = NonNull::new(writer) {
            // SAFETY: it is valid until `end_result`.
            unsafe { Writer::new(context) }.value(value);
        }
        // SAFETY: it was begun above.
        unsafe { sys::spdk_jsonrpc_end_result(raw.as_ptr(), writer) };
    }

    fn fail(mut self, code: i32, message: &str) {
        if let Some(raw) = self.take() {
            let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
            // SAFETY: a request is answered once; the message is copied.
            unsafe {
                sys::spdk_jsonrpc_send_error_response(raw.as_ptr(), code, message.as_ptr());
            }
        }
    }

    fn take(&mut self) -> Option<NonNull<sys::spdk_jsonrpc_request>> {
        debug_assert_eq!(Thread::current(), Thread::app());
        self.raw.take()
    }
}

impl Drop for Request {
    /// Whoever was to answer is gone.
    fn drop(&mut self) {
        let Some(raw) = self.raw.take() else {
            return;
        };
        let request = Self { raw: Some(raw) };
        let fail = move || request.fail(-125, "Operation canceled");
        match Thread::app() {
            Some(app) if !app.is_current() => app.send(fail),
            _ => fail(),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}
