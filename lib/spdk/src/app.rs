//! SPDK's application framework around a program.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use rnbd_spdk_sys as sys;

/// Runs SPDK's application framework until a signal or an RPC call ends it: its command line, its
/// reactors, its RPC server, its configuration file.
#[must_use]
pub fn run(name: &'static str, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = CString::new(name).unwrap_or_default();
    let arguments: Vec<CString> = arguments
        .map(|argument| CString::new(argument.into_vec()).unwrap_or_default())
        .collect();
    // SAFETY: a plain C structure, filled in by the call below.
    let mut options: sys::spdk_app_opts = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of the structure.
    unsafe { sys::spdk_app_opts_init(&raw mut options, size_of::<sys::spdk_app_opts>()) };
    options.name = name.as_ptr();
    match parse(&arguments, &mut options) {
        sys::spdk_app_parse_args_rvals::SPDK_APP_PARSE_ARGS_SUCCESS => start(&mut options),
        sys::spdk_app_parse_args_rvals::SPDK_APP_PARSE_ARGS_HELP => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The options point into the arguments.
fn parse(
    arguments: &[CString],
    options: &mut sys::spdk_app_opts,
) -> sys::spdk_app_parse_args_rvals::Type {
    let mut pointers: Vec<*mut c_char> = arguments
        .iter()
        .map(|argument| argument.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect();
    let count = c_int::try_from(arguments.len()).unwrap_or(0);
    // SAFETY: a list of strings with a null behind it; there are no options of our own.
    unsafe {
        sys::spdk_app_parse_args(
            count,
            pointers.as_mut_ptr(),
            options,
            std::ptr::null(),
            std::ptr::null(),
            None,
            Some(no_usage),
        )
    }
}

fn start(options: &mut sys::spdk_app_opts) -> ExitCode {
    // SAFETY: the options were parsed; it returns when the application has stopped.
    let status = unsafe { sys::spdk_app_start(options, Some(started), std::ptr::null_mut()) };
    // SAFETY: it was started, whether or not that went well.
    unsafe { sys::spdk_app_fini() };
    match status {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

unsafe extern "C" fn started(_: *mut c_void) {}

/// There are no options of our own to be explained.
unsafe extern "C" fn no_usage() {}
