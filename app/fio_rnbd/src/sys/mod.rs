//! Where fio's structures are touched, and nothing else is done.

#![allow(unsafe_code, reason = "fio is written in C")]

mod engine;
mod host;
mod options;
mod view;

#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    dead_code,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unnecessary_transmutes,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::ptr_as_ptr,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::missing_safety_doc,
    clippy::use_self,
    clippy::cast_lossless,
    clippy::semicolon_if_nothing_returned,
    reason = "generated code"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub(crate) use host::{KnownJob, print_error};
pub(crate) use view::{Direction, Td};
