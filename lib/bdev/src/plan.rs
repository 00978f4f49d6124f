//! Devices that stand on another, and are made whenever that is there.
//!
//! As with SPDK's examination of new bdevs, such a device may be asked for before its base exists,
//! and comes back with it: what was asked for stays until the device is deleted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bdev::{Bdev, ConfigCall};
use crate::create::CreateError;
use crate::registry::{Registry, RegistryError};

type Make = Arc<dyn Fn(&Registry) -> Result<(), CreateError> + Send + Sync>;

/// A device that is wanted.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Its name.
    pub(crate) name: String,
    /// The name or UUID of what it stands on.
    pub(crate) base: String,
    /// Makes and registers it. [`RegistryError::NotFound`] means that the base is missing.
    pub(crate) make: Make,
    /// The call that asked for it.
    pub(crate) config: ConfigCall,
}

/// All devices that are wanted, whether they are there or not.
#[derive(Default)]
pub(crate) struct Plans {
    wanted: Mutex<Wanted>,
}

struct Wanted {
    plans: Vec<Plan>,
    /// Look at every new device.
    examines: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            plans: Vec::new(),
            examines: true,
        }
    }
}

impl Plans {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing_on(&self, base: &dyn Bdev) -> Vec<Plan> {
        let uuid = base.uuid().to_string();
        let is_base = |plan: &&Plan| plan.base == base.name() || plan.base == uuid;
        self.lock().plans.iter().filter(is_base).cloned().collect()
    }
}

impl Registry {
    /// Makes a device now, or when its base comes.
    ///
    /// # Errors
    /// Why it cannot be made; not that its base is missing.
    pub(crate) fn carry_out(&self, plan: Plan) -> Result<(), CreateError> {
        let plans = self.plans();
        if plans
            .lock()
            .plans
            .iter()
            .any(|other| other.name == plan.name)
        {
            let name = plan.name;
            return Err(RegistryError::Exists { name }.into());
        }
        match (plan.make)(self) {
            Err(CreateError::Registry(RegistryError::NotFound { name })) => {
                log::info!("bdev {} waits for {name}", plan.name);
            }
            made => made?,
        }
        plans.lock().plans.push(plan);
        Ok(())
    }

    /// Whether devices that wait for a new one are made at once, as it is at the start, or when
    /// [`Registry::examine`] names it.
    pub fn set_auto_examine(&self, examines: bool) {
        self.plans().lock().examines = examines;
    }

    /// Whether [`Registry::set_auto_examine`] is on.
    #[must_use]
    pub fn auto_examines(&self) -> bool {
        self.plans().lock().examines
    }

    /// Makes the devices that wait for `name`.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn examine(&self, name: &str) -> Result<(), RegistryError> {
        let missing = || RegistryError::NotFound { name: name.into() };
        let base = self.get(name).ok_or_else(missing)?.bdev;
        for plan in self.plans().standing_on(&*base) {
            self.make_planned(&plan);
        }
        Ok(())
    }

    /// Forgets that the device `name` of `method` is wanted. Returns whether it was.
    pub fn forget_plan(&self, name: &str, method: &str) -> bool {
        let plans = self.plans();
        let mut wanted = plans.lock();
        let before = wanted.plans.len();
        let is_meant = |plan: &Plan| plan.name == name && plan.config.method == method;
        wanted.plans.retain(|plan| !is_meant(plan));
        wanted.plans.len() < before
    }

    /// The calls that ask for devices whose base is missing.
    #[must_use]
    pub fn pending_config(&self) -> Vec<ConfigCall> {
        let plans = self.plans().lock().plans.clone();
        let is_pending = |plan: &Plan| self.get(&plan.name).is_none();
        let pending = plans.into_iter().filter(is_pending);
        pending.map(|plan| plan.config).collect()
    }

    pub(crate) fn examine_new(&self, base: &dyn Bdev) {
        if !self.auto_examines() {
            return;
        }
        for plan in self.plans().standing_on(base) {
            self.make_planned(&plan);
        }
    }

    fn make_planned(&self, plan: &Plan) {
        if self.get(&plan.name).is_some() {
            return;
        }
        if let Err(error) = (plan.make)(self) {
            log::warn!(
                "bdev {} cannot be made on {}: {error}",
                plan.name,
                plan.base
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Rig;
    use crate::{CreateError, DelayBdev, DelayOptions, ErrorBdev, ErrorOptions};

    fn delay_on(rig: &Rig, base: &str) -> Result<String, CreateError> {
        let options = DelayOptions {
            name: "D0".to_owned(),
            base_bdev_name: base.to_owned(),
            ..DelayOptions::default()
        };
        DelayBdev::create(&rig.registry, options)
    }

    fn error_on(rig: &Rig, base: &str) -> Result<String, CreateError> {
        let options = ErrorOptions {
            base_name: base.to_owned(),
            uuid: None,
        };
        ErrorBdev::create(&rig.registry, options)
    }

    fn is_there(rig: &Rig, name: &str) -> bool {
        rig.registry.get(name).is_some()
    }

    fn remove(rig: &Rig, name: &str) {
        rig.registry.unregister(name, Box::new(drop)).unwrap();
    }

    #[test]
    fn a_device_waits_for_its_base_and_comes_back_with_it() {
        let rig = Rig::new();
        assert_eq!(delay_on(&rig, "EE_M0").unwrap(), "D0");
        assert_eq!(error_on(&rig, "M0").unwrap(), "EE_M0");
        assert!(!is_there(&rig, "D0") && !is_there(&rig, "EE_M0"));
        assert_eq!(rig.registry.pending_config().len(), 2);

        rig.malloc("M0", 16);
        let uuid = rig.registry.get("D0").unwrap().bdev.uuid();
        assert!(rig.registry.pending_config().is_empty());
        remove(&rig, "M0");
        assert!(!is_there(&rig, "D0") && !is_there(&rig, "EE_M0"));
        rig.malloc("M0", 16);
        assert_eq!(rig.registry.get("D0").unwrap().bdev.uuid(), uuid);
    }

    #[test]
    fn a_device_that_is_wanted_cannot_be_asked_for_twice() {
        let rig = Rig::new();
        error_on(&rig, "M0").unwrap();
        let again = error_on(&rig, "M0").unwrap_err();
        assert_eq!(again.errno(), rnbd_base::Errno::EXIST);
    }

    #[test]
    fn what_is_no_longer_wanted_does_not_come() {
        let rig = Rig::new();
        error_on(&rig, "M0").unwrap();
        assert!(!rig.registry.forget_plan("EE_M0", "bdev_delay_create"));
        assert!(rig.registry.forget_plan("EE_M0", "bdev_error_create"));
        rig.malloc("M0", 16);
        assert!(!is_there(&rig, "EE_M0"));
    }

    #[test]
    fn without_auto_examine_it_comes_when_told() {
        let rig = Rig::new();
        rig.registry.set_auto_examine(false);
        error_on(&rig, "M0").unwrap();
        rig.malloc("M0", 16);
        assert!(!is_there(&rig, "EE_M0"));
        rig.registry.examine("M0").unwrap();
        assert!(is_there(&rig, "EE_M0"));
        rig.registry.examine("missing").unwrap_err();
    }

    #[test]
    fn what_is_wrong_beside_a_missing_base_is_refused_and_not_kept() {
        let rig = Rig::new();
        rig.malloc("M0", 16);
        rig.malloc("EE_M0", 16);
        error_on(&rig, "M0").unwrap_err();
        assert!(!rig.registry.forget_plan("EE_M0", "bdev_error_create"));
    }
}
