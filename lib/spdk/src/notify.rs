//! SPDK's notifications.

use std::ffi::CString;

use rnbd_spdk_sys as sys;

/// Makes a type of notification known.
pub fn register_type(kind: &str) {
    let kind = CString::new(kind).unwrap_or_default();
    // SAFETY: SPDK copies the name.
    unsafe { sys::spdk_notify_type_register(kind.as_ptr()) };
}

/// Tells whoever asks for notifications.
pub fn send(kind: &str, ctx: &str) {
    let kind = CString::new(kind).unwrap_or_default();
    let ctx = CString::new(ctx).unwrap_or_default();
    // SAFETY: SPDK copies both; it may be called from any thread.
    unsafe { sys::spdk_notify_send(kind.as_ptr(), ctx.as_ptr()) };
}
