//! Bindings to SPDK, made at build time from the headers of the installation that is there.
//!
//! Nothing of it is checked in, because SPDK's structures change with every release. Which
//! versions are accepted, and how an installation is found, is in `build/spdk.rs` and
//! `vendor/spdk/README.md`. Nothing is linked here: a module finds the functions in the program
//! that loads it, and a program that has SPDK inside links it itself (`DEP_SPDK_LINK_ARGS`).
//!
//! The crate is empty without the feature `spdk`.

#[cfg(feature = "spdk")]
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
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

#[cfg(feature = "spdk")]
pub use bindings::*;
