//! The options that this engine adds to fio's own.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::offset_of;

use super::bindings::{fio_opt_type, fio_option, opt_category, opt_category_group, value_pair};

/// Values of a job's options, laid out for fio to fill in.
#[repr(C)]
pub(super) struct Values {
    /// fio takes an offset of zero for none.
    _pad: *mut c_void,
    pub(super) json_conf: *const c_char,
    pub(super) write_mode: c_uint,
}

/// `rnbd_write_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Writes are writes.
    Write = 0,
    /// Writes are write-zeroes, whatever is in their buffers.
    Zeroes = 1,
}

/// The table for fio, which writes to it while it parses; its last entry has no name.
pub(super) fn table() -> *mut fio_option {
    let offset = |bytes: usize| c_uint::try_from(bytes).unwrap_or(0);
    let json_conf = fio_option {
        name: c"rnbd_json_conf".as_ptr(),
        lname: c"RNBD JSON configuration".as_ptr(),
        type_: fio_opt_type::FIO_OPT_STR_STORE,
        off1: offset(offset_of!(Values, json_conf)),
        help: c"JSON configuration that attaches controllers and makes bdevs".as_ptr(),
        ..entry()
    };
    let mut write_mode = fio_option {
        name: c"rnbd_write_mode".as_ptr(),
        lname: c"RNBD write mode".as_ptr(),
        type_: fio_opt_type::FIO_OPT_STR,
        off1: offset(offset_of!(Values, write_mode)),
        help: c"What a write does".as_ptr(),
        def: c"write".as_ptr(),
        ..entry()
    };
    let modes = [
        (c"write", WriteMode::Write, c"Write the data"),
        (c"zeroes", WriteMode::Zeroes, c"Write zeroes without data"),
    ];
    for (at, (name, value, help)) in write_mode.posval.iter_mut().zip(modes) {
        *at = possible(name, value, help);
    }
    let end = fio_option::default();
    Box::leak(Box::new([json_conf, write_mode, end])).as_mut_ptr()
}

fn entry() -> fio_option {
    fio_option {
        category: opt_category::FIO_OPT_C_ENGINE.into(),
        group: opt_category_group::FIO_OPT_G_INVALID,
        ..fio_option::default()
    }
}

fn possible(name: &'static CStr, value: WriteMode, help: &'static CStr) -> value_pair {
    value_pair {
        ival: name.as_ptr(),
        oval: value as u64,
        help: help.as_ptr(),
        ..value_pair::default()
    }
}

/// Bytes that fio sets aside for [`Values`].
pub(super) fn size() -> c_int {
    c_int::try_from(size_of::<Values>()).unwrap_or(0)
}
