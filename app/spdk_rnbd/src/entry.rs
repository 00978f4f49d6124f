//! How SPDK learns of us.

use std::sync::Once;

use rnbd_rpc::{Schema, State};
use rnbd_spdk::module::{self, Subsystems};
use rnbd_spdk::rpc;

use crate::calls;
use crate::hooks::SpdkHooks;

/// The subsystems of a saved configuration: options of RDMA devices come before the bdevs that use
/// them, exports after their bdevs.
const SUBSYSTEMS: Subsystems = Subsystems {
    below_bdev: "rdma",
    above_bdev: ["rnbd", "rtrs"],
};

/// The methods that are ours, by the beginnings of their names.
const PREFIXES: [&str; 4] = ["bdev_rnbd_", "rdma_", "rnbd_", "rtrs_"];

/// Registers module, subsystems and methods. To be called before SPDK starts; a program that loads
/// the shared library need not, because loading it does.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        module::register("rnbd", SUBSYSTEMS, Box::new(SpdkHooks));
        rpc::register(&methods(), calls::on_call);
    });
}

fn methods() -> Vec<rpc::Method> {
    let ours = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let methods = Schema::builtin().methods.iter();
    methods
        .filter(|method| ours(&method.name))
        .map(|method| rpc::Method {
            name: method.name.clone(),
            startup: method.states.contains(&State::Startup),
            runtime: method.states.contains(&State::Runtime),
        })
        .collect()
}

extern "C" fn on_load() {
    register();
}

// SAFETY: the loader calls each function of this section once, before `main`, as SPDK's own
// constructors are called; `on_load` takes no arguments and ignores those that it is given.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;
