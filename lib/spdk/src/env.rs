//! Cores and time as SPDK's environment has them.

use rnbd_spdk_sys as sys;

/// The cores that the application runs on, by CPU number; one in a program without reactors.
#[must_use]
pub fn cores() -> Vec<u32> {
    let mut cores = Vec::new();
    // SAFETY: the environment is up before any module is initialized.
    let mut core = unsafe { sys::spdk_env_get_first_core() };
    while core != u32::MAX {
        cores.push(core);
        // SAFETY: as above.
        core = unsafe { sys::spdk_env_get_next_core(core) };
    }
    cores
}

/// The core that this code runs on; `None` outside of SPDK's reactors.
#[must_use]
pub fn current_core() -> Option<u32> {
    // SAFETY: reads a variable of this OS thread.
    let core = unsafe { sys::spdk_env_get_current_core() };
    (core != u32::MAX).then_some(core)
}
