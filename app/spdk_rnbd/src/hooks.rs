use rnbd_spdk::module::Hooks;
use serde_json::Value;

use crate::runtime;

/// What SPDK asks of us.
#[derive(Debug)]
pub(crate) struct SpdkHooks;

impl Hooks for SpdkHooks {
    fn init(&self) {
        runtime::set_running();
    }

    fn bdev_config(&self) -> Vec<Value> {
        runtime::with(|hosted, _| hosted.initiator_config()).unwrap_or_default()
    }

    fn subsystem_config(&self, name: &str) -> Vec<Value> {
        runtime::with(|hosted, _| hosted.config(name)).unwrap_or_default()
    }

    /// `rtrs` goes first, and the whole target with it: sessions, exports, and the bdevs that those
    /// held open.
    fn subsystem_fini(&self, name: &'static str, done: Box<dyn FnOnce()>) {
        if name == "rtrs" {
            runtime::stop_target(done);
        } else {
            done();
        }
    }

    fn module_fini(&self, done: Box<dyn FnOnce()>) {
        runtime::stop(done);
    }
}
