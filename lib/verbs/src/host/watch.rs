//! Looking after the devices: who has them, which are gone, which are back.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::inbox::{Inbox, Told};
use super::instance::{Instance, User};
use super::record::{DeviceState, Loss, Record};
use super::sysfs::{self, Seen};
use super::{HostNews, Shared};
use crate::probe::{self, WindowSupport};
use crate::sys::{Device, LibraryContext};

/// What a fabric reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// It let go of a device.
    Lost(Arc<Instance>, Loss),
    /// A port or an address of a device changed.
    PortChanged(Arc<Instance>),
}

/// How often the kernel is asked for devices.
const TICK: Duration = Duration::from_millis(200);

/// An open device and what it can do.
pub(crate) type Opened = (Arc<Device>, WindowSupport);

/// The devices and the fabrics of a process.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) records: Vec<Record>,
    members: Vec<Member>,
    news: Vec<HostNews>,
    /// What librdmacm had open when it was last asked, and which devices there were then.
    library: (Vec<LibraryContext>, Vec<Seen>),
}

/// A fabric.
#[derive(Debug)]
struct Member {
    inbox: Weak<Inbox>,
    /// What was opened for it and not lost.
    has: Vec<Arc<Instance>>,
}

/// Runs until nobody can report any more.
pub(super) fn run(reports: &Receiver<Report>, shared: &Weak<Shared>) {
    loop {
        let report = match reports.recv_timeout(TICK) {
            Ok(report) => Some(report),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut watch = shared.watch();
        for report in report.into_iter().chain(reports.try_iter()) {
            watch.note(report);
        }
        watch.look();
        let news = std::mem::take(&mut watch.news);
        drop(watch);
        for news in news {
            (shared.notify)(news);
        }
    }
}

impl Watch {
    /// A fabric more; returns what was opened for it.
    pub(crate) fn join(&mut self, inbox: &Arc<Inbox>) -> Result<Vec<Opened>, Errno> {
        self.discover();
        let mut opened = Vec::new();
        let mut refused = Errno::NODEV;
        let is_active = |record: &&mut Record| record.state == DeviceState::Active;
        for record in self.records.iter_mut().filter(is_active) {
            match open(record) {
                Ok(device) => opened.push(device),
                Err(errno) => refused = errno,
            }
        }
        if opened.is_empty() {
            return Err(refused);
        }
        let has = opened
            .iter()
            .map(|(device, _)| Arc::clone(device.instance()));
        self.members.push(Member {
            inbox: Arc::downgrade(inbox),
            has: has.collect(),
        });
        Ok(opened)
    }

    /// Takes note of devices that came since the last look.
    pub(crate) fn discover(&mut self) {
        self.find_new(&sysfs::openable());
    }

    /// Starts a reset.
    pub(crate) fn reset(&mut self, name: &str) -> Result<(), Errno> {
        let instance = self.record(name).ok_or(Errno::NODEV)?.instance.clone();
        if self.lose(&instance, Loss::Reset) {
            Ok(())
        } else {
            Err(Errno::BUSY)
        }
    }

    pub(crate) fn record(&self, name: &str) -> Option<&Record> {
        let mut all = self.records.iter();
        all.find(|record| record.instance.name() == name)
    }

    fn note(&mut self, report: Report) {
        match report {
            Report::Lost(instance, loss) => {
                self.lose(&instance, loss);
                if loss == Loss::Queue {
                    self.forget_queue(&instance);
                }
            }
            Report::PortChanged(instance) => {
                let name = instance.name().to_owned();
                self.news.push(HostNews::Reachable(name));
            }
        }
    }

    /// Has all fabrics let go of a device. Returns whether that is news.
    fn lose(&mut self, instance: &Arc<Instance>, loss: Loss) -> bool {
        let mut all = self.records.iter_mut();
        let record = all.find(|record| Arc::ptr_eq(&record.instance, instance));
        let is_news = record.is_some_and(|record| record.lose(loss, Instant::now()));
        if !is_news {
            return false;
        }
        for member in &mut self.members {
            member.doom(instance);
        }
        self.tell_state(instance.name());
        true
    }

    /// Whichever fabric it was: those that still have the device keep it and get no second one.
    fn forget_queue(&mut self, instance: &Arc<Instance>) {
        let now = Instant::now();
        let mut all = self.records.iter_mut();
        if let Some(record) = all.find(|record| Arc::ptr_eq(&record.instance, instance)) {
            log::warn!("verbs: a completion queue of {} broke", instance.name());
            // Only a life that has ended for all can begin anew for one.
            record.lose(Loss::Reset, now);
        }
        for member in &mut self.members {
            member.doom(instance);
        }
        self.tell_state(instance.name());
    }

    fn tell_state(&mut self, name: &str) {
        if let Some(record) = self.record(name) {
            let state = record.state;
            log::warn!("verbs: device {name} is {}", state.as_str());
            let name = name.to_owned();
            self.news.push(HostNews::State { name, state });
        }
    }

    /// Compares what is there with what is known.
    fn look(&mut self) {
        let seen = sysfs::openable();
        self.find_vanished(&seen);
        self.find_returned(&seen);
        self.find_new(&seen);
        self.members
            .retain(|member| member.inbox.strong_count() > 0);
        self.hand_out();
        self.try_out();
        self.note_library(&seen);
        self.urge(&seen);
    }

    fn find_vanished(&mut self, seen: &[Seen]) {
        let gone = |record: &&Record| {
            record.state != DeviceState::Removed && !seen.contains(&record.instance.seen)
        };
        let gone: Vec<_> = self.records.iter().filter(gone).collect();
        let gone: Vec<_> = gone.iter().map(|record| record.instance.clone()).collect();
        for instance in gone {
            self.lose(&instance, Loss::Removed);
        }
    }

    fn find_returned(&mut self, seen: &[Seen]) {
        let now = Instant::now();
        let mut back = Vec::new();
        for record in &mut self.records {
            let found = seen.iter().find(|seen| record.may_return(seen, now));
            if let Some(seen) = found {
                record.come_back(seen.clone(), now);
                back.push(seen.name.clone());
            }
        }
        // Fabrics get it before anybody hears of it.
        self.hand_out();
        for name in back {
            self.tell_state(&name);
        }
    }

    fn find_new(&mut self, seen: &[Seen]) {
        let unknown: Vec<_> = seen
            .iter()
            .filter(|seen| self.record(&seen.name).is_none())
            .cloned()
            .collect();
        for seen in unknown {
            self.news.push(HostNews::State {
                name: seen.name.clone(),
                state: DeviceState::Active,
            });
            self.records.push(Record::new(seen, Instant::now()));
        }
    }

    /// Gives every fabric the devices that it lacks.
    fn hand_out(&mut self) {
        let is_active = |record: &&mut Record| record.state == DeviceState::Active;
        for record in self.records.iter_mut().filter(is_active) {
            for member in &mut self.members {
                member.equip(record);
            }
        }
    }

    /// Tries out devices that could not be tried out when they were opened.
    fn try_out(&mut self) {
        let is_untried = |record: &&mut Record| {
            record.state == DeviceState::Active
                && record.abilities.is_none()
                && record.instance.users() > 0
                && sysfs::has_active_port(record.instance.name())
        };
        for record in self.records.iter_mut().filter(is_untried) {
            let Ok((_, windows)) = open(record) else {
                continue;
            };
            if record.abilities.is_some() {
                let members = self.members.iter();
                members.for_each(|member| member.tell_windows(&record.instance, windows));
            }
        }
    }

    /// Asks librdmacm what it has open when there are other devices. Not before they could be
    /// opened here: a device that it cannot open it never tries again.
    fn note_library(&mut self, seen: &[Seen]) {
        let is_open =
            |record: &Record| record.state != DeviceState::Active || record.instance.users() > 0;
        let is_new = !seen.is_empty() && self.library.1 != seen;
        if is_new && self.records.iter().all(is_open) {
            self.library = (LibraryContext::all(), seen.to_vec());
        }
    }

    /// Has librdmacm let go of devices that the kernel cannot finish with, and complains of others
    /// that do not.
    fn urge(&mut self, seen: &[Seen]) {
        let now = Instant::now();
        let mut is_waiting = false;
        for record in &mut self.records {
            let name = record.instance.name().to_owned();
            is_waiting |= record.state == DeviceState::Removed && sysfs::exists(&name);
            if record.is_held_too_long(now) {
                let users = record.instance.users();
                log::error!("verbs: {name} is gone and still open {users} times");
            }
        }
        if !is_waiting {
            return;
        }
        drop(LibraryContext::all());
        if seen.is_empty() {
            let contexts = std::mem::take(&mut self.library).0;
            contexts.into_iter().for_each(LibraryContext::abandon);
        }
    }
}

impl Member {
    fn doom(&mut self, instance: &Arc<Instance>) {
        let had = self.has.len();
        self.has.retain(|other| !Arc::ptr_eq(other, instance));
        if self.has.len() < had
            && let Some(inbox) = self.inbox.upgrade()
        {
            inbox.send(Told::Doomed(Arc::clone(instance)));
        }
    }

    fn tell_windows(&self, instance: &Arc<Instance>, windows: WindowSupport) {
        let has_it = self.has.iter().any(|other| Arc::ptr_eq(other, instance));
        if let Some(inbox) = self.inbox.upgrade().filter(|_| has_it) {
            inbox.send(Told::Tried(Arc::clone(instance), windows));
        }
    }

    fn equip(&mut self, record: &mut Record) {
        let has_it = |other: &Arc<Instance>| Arc::ptr_eq(other, &record.instance);
        if self.has.iter().any(has_it) {
            return;
        }
        let Some(inbox) = self.inbox.upgrade() else {
            return;
        };
        if let Ok((device, windows)) = open(record) {
            self.has.push(Arc::clone(&record.instance));
            inbox.send(Told::Opened(device, windows));
        }
    }
}

/// Opens the device once more, and tries out what it can do if that is not known yet.
fn open(record: &mut Record) -> Result<Opened, Errno> {
    let name = record.instance.name();
    let device = Device::open(User::new(&record.instance)).inspect_err(|errno| {
        log::debug!("verbs: device {name} cannot be opened: {errno}");
    })?;
    if record.abilities.is_none() {
        match probe::windows(&device) {
            Ok(windows) => {
                log::info!("verbs: device {name} with {windows:?}");
                record.abilities = Some((windows, device.limits()));
            }
            Err(errno) => log::debug!("verbs: device {name} cannot be tried out yet: {errno}"),
        }
    }
    let claimed = WindowSupport::claimed(device.limits());
    let windows = record.abilities.map_or(claimed, |(windows, _)| windows);
    Ok((device, windows))
}
