//! Our bdev module and our subsystems, as SPDK calls them.

use std::ffi::{CString, c_int};
use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rnbd_spdk_sys as sys;
use serde_json::Value;

use crate::json::Writer;

/// What SPDK asks of a program's part. All is called on the application's thread.
pub trait Hooks: Send + Sync {
    /// SPDK's subsystems are being initialized: what may be called before that no longer may.
    fn init(&self);

    /// The module's share of the `bdev` subsystem's configuration: calls of RPC methods.
    fn bdev_config(&self) -> Vec<Value>;

    /// A subsystem's configuration, for `save_config`.
    fn subsystem_config(&self, name: &str) -> Vec<Value>;

    /// SPDK takes subsystem `name` down; `done` lets it go on.
    fn subsystem_fini(&self, name: &'static str, done: Box<dyn FnOnce()>);

    /// SPDK takes the bdev layer down: all disks are gone. `done` lets it go on.
    fn module_fini(&self, done: Box<dyn FnOnce()>);
}

/// Names of subsystems.
#[derive(Clone, Copy, Debug)]
pub struct Subsystems {
    /// What `bdev` stands on.
    pub below_bdev: &'static str,
    /// What stands on `bdev`, each on the one before it too.
    pub above_bdev: [&'static str; 2],
}

impl Subsystems {
    fn names(self) -> [&'static str; 3] {
        let [first, second] = self.above_bdev;
        [self.below_bdev, first, second]
    }
}

/// Registers the bdev module `name` and the subsystems. To be called once, before SPDK starts.
///
/// # Panics
/// If it is called again.
pub fn register(name: &'static str, subsystems: Subsystems, hooks: Box<dyn Hooks>) {
    let registered = Registered {
        module: Module::new(name),
        hooks,
        subsystems: subsystems.names(),
    };
    assert!(REGISTERED.set(registered).is_ok(), "registered once");
    // SAFETY: the module stays for the life of the process.
    unsafe { sys::spdk_bdev_module_list_add(raw()) };
    let [below, first, second] = subsystems.names();
    add_subsystem(below, subsystem_fini::<0>, subsystem_config::<0>);
    add_subsystem(first, subsystem_fini::<1>, subsystem_config::<1>);
    add_subsystem(second, subsystem_fini::<2>, subsystem_config::<2>);
    for (upper, lower) in [("bdev", below), (first, "bdev"), (second, first)] {
        add_dependency(upper, lower);
    }
}

struct Registered {
    module: Module,
    hooks: Box<dyn Hooks>,
    subsystems: [&'static str; 3],
}

static REGISTERED: OnceLock<Registered> = OnceLock::new();

fn hooks() -> Option<&'static Registered> {
    REGISTERED.get()
}

/// What SPDK has of the module; it writes there.
struct Module(NonNull<sys::spdk_bdev_module>);

// SAFETY: only SPDK touches it, by its own rules.
unsafe impl Send for Module {}
// SAFETY: as for Send.
unsafe impl Sync for Module {}

impl Module {
    fn new(name: &str) -> Self {
        // SAFETY: a plain C structure, whose internal part is to be zero.
        let mut module: sys::spdk_bdev_module = unsafe { std::mem::zeroed() };
        module.name = leak(name);
        module.module_init = Some(module_init);
        module.module_fini = Some(module_fini);
        module.config_json = Some(config_json);
        module.async_fini = true;
        Self(NonNull::from(Box::leak(Box::new(module))))
    }
}

/// The module, for its bdevs and claims; null before it is registered.
pub(crate) fn raw() -> *mut sys::spdk_bdev_module {
    hooks().map_or(std::ptr::null_mut(), |all| all.module.0.as_ptr())
}

/// A name that SPDK keeps.
fn leak(name: &str) -> *const std::ffi::c_char {
    CString::new(name)
        .expect("names here have no zero byte")
        .into_raw()
}

unsafe extern "C" fn module_init() -> c_int {
    if let Some(all) = hooks() {
        all.hooks.init();
    }
    0
}

unsafe extern "C" fn module_fini() {
    // SAFETY: SPDK waits for it, as `async_fini` says.
    let done = || unsafe { sys::spdk_bdev_module_fini_done() };
    if let Some(all) = hooks() {
        all.hooks.module_fini(Box::new(done));
    }
}

unsafe extern "C" fn config_json(writer: *mut sys::spdk_json_write_ctx) -> c_int {
    if let (Some(all), Some(writer)) = (hooks(), NonNull::new(writer)) {
        // SAFETY: it is valid for this call.
        let mut writer = unsafe { Writer::new(writer) };
        for call in all.hooks.bdev_config() {
            writer.value(&call);
        }
    }
    0
}

fn add_subsystem(
    name: &str,
    fini: unsafe extern "C" fn(),
    config: unsafe extern "C" fn(*mut sys::spdk_json_write_ctx),
) {
    // SAFETY: a plain C structure, whose list entry SPDK sets.
    let mut subsystem: sys::spdk_subsystem = unsafe { std::mem::zeroed() };
    subsystem.name = leak(name);
    subsystem.fini = Some(fini);
    subsystem.write_config_json = Some(config);
    // SAFETY: it stays for the life of the process.
    unsafe { sys::spdk_add_subsystem(Box::leak(Box::new(subsystem))) };
}

fn add_dependency(upper: &str, lower: &str) {
    // SAFETY: a plain C structure, whose list entry SPDK sets.
    let mut depend: sys::spdk_subsystem_depend = unsafe { std::mem::zeroed() };
    depend.name = leak(upper);
    depend.depends_on = leak(lower);
    // SAFETY: it stays for the life of the process.
    unsafe { sys::spdk_add_subsystem_depend(Box::leak(Box::new(depend))) };
}

unsafe extern "C" fn subsystem_fini<const INDEX: usize>() {
    // SAFETY: SPDK waits for it.
    let done = || unsafe { sys::spdk_subsystem_fini_next() };
    if let Some(all) = hooks() {
        all.hooks
            .subsystem_fini(all.subsystems[INDEX], Box::new(done));
    }
}

unsafe extern "C" fn subsystem_config<const INDEX: usize>(writer: *mut sys::spdk_json_write_ctx) {
    if let (Some(all), Some(writer)) = (hooks(), NonNull::new(writer)) {
        let calls = all.hooks.subsystem_config(all.subsystems[INDEX]);
        // SAFETY: it is valid for this call.
        unsafe { Writer::new(writer) }.array(&calls);
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Module")
    }
}
