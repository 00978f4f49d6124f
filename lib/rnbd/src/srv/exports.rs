//! What may be opened, and who has it open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::{Errno, Host, Nanos};
use rnbd_wire::rnbd::AccessMode;
use thiserror::Error;

use super::acl::{HostRule, permits};
use super::search_path::{OpenPath, resolve};

/// What holds for the whole service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Directory below which devices are looked for that are no exports; may contain
    /// `%SESSNAME%`. `None`: nothing is exported that was not named.
    pub dev_search_path: Option<String>,
    /// Any host may open what is found below the search path.
    pub allow_any_host: bool,
    /// The most that anybody may ask for.
    pub max_access: AccessMode,
    /// Devices that one session may have open.
    pub max_devices_per_session: u32,
    /// An OPEN of what is not there waits for it, instead of failing at once.
    pub wait_for_missing: bool,
    /// How long an OPEN may wait, for that or for an earlier life of its device to end.
    pub open_timeout: Nanos,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            dev_search_path: None,
            allow_any_host: false,
            max_access: AccessMode::Migration,
            max_devices_per_session: 1024,
            wait_for_missing: false,
            open_timeout: Nanos::from_secs(5),
        }
    }
}

/// A bdev under the name by which clients open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients ask for, exactly.
    pub name: String,
    /// What they get.
    pub bdev_name: String,
    /// Changes are refused whatever the client asked for.
    pub read_only: bool,
    /// `rw` openers at a time; one more may open for migration.
    pub max_writers: u32,
    /// Every client may open it; else only those of `hosts`.
    pub allow_any_host: bool,
    /// Who may open it.
    pub hosts: Vec<HostRule>,
    /// Largest transfer that is announced, if smaller than the session's.
    pub max_io_bytes: Option<u32>,
    /// Whether a volatile cache is announced; `None`: as the bdev says.
    pub write_cache: Option<bool>,
    /// Announced as rotating.
    pub rotational: bool,
    /// Whether discard is offered; `None`: if the bdev can.
    pub discard: Option<bool>,
    /// Whether write-zeroes is offered; `None`: if the bdev can without writing.
    pub write_zeroes: Option<bool>,
}

impl Export {
    /// `bdev_name` under `name`, for one writer and nobody else yet: hosts are to be added.
    #[must_use]
    pub fn new(name: impl Into<String>, bdev_name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            bdev_name: bdev_name.into(),
            read_only: false,
            max_writers: 1,
            allow_any_host: false,
            hosts: Vec::new(),
            max_io_bytes: None,
            write_cache: None,
            rotational: false,
            discard: None,
            write_zeroes: None,
        }
    }

    fn max_access_of(&self, request: &OpenRequest<'_>) -> Option<AccessMode> {
        let rules = self.hosts.iter();
        let matching = rules.filter(|rule| rule.matches(request.sessname, request.client));
        let listed = matching
            .map(|rule| rule.max_access)
            .max_by_key(|mode| mode.code());
        listed.or(self.allow_any_host.then_some(AccessMode::Migration))
    }

    fn view(&self, mode: AccessMode) -> ExportView {
        ExportView {
            read_only: self.read_only || mode == AccessMode::ReadOnly,
            max_io_bytes: self.max_io_bytes,
            write_cache: self.write_cache,
            rotational: self.rotational,
            discard: self.discard,
            write_zeroes: self.write_zeroes,
        }
    }
}

/// What one opener sees of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportView {
    /// Changes are refused.
    pub read_only: bool,
    /// As in [`Export`].
    pub max_io_bytes: Option<u32>,
    /// As in [`Export`].
    pub write_cache: Option<bool>,
    /// As in [`Export`].
    pub rotational: bool,
    /// As in [`Export`].
    pub discard: Option<bool>,
    /// As in [`Export`].
    pub write_zeroes: Option<bool>,
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// The session's name.
    pub sessname: &'a str,
    /// Where the session's client is.
    pub client: Host,
    /// The name asked for.
    pub dev_name: &'a str,
    /// What the client wants to do.
    pub mode: AccessMode,
    /// Its id in the session.
    pub device_id: u32,
}

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// An export.
    Granted(Grant),
    /// Maybe a file below the search path. Once it is open, [`Exports::grant_found`] decides.
    Search(OpenPath),
}

/// An open device in the table; to be given back with [`Exports::close`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// For closing.
    pub ticket: Ticket,
    /// What to open.
    pub bdev_name: String,
    /// What the opener sees.
    pub view: ExportView,
}

/// Names one open device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// One open device, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenInfo {
    /// Who has it.
    pub sessname: String,
    /// Its id there.
    pub device_id: u32,
    /// What the client asked for.
    pub access_mode: AccessMode,
    /// Changes are refused.
    pub read_only: bool,
    /// The name in the OPEN message.
    pub mapping_path: String,
    /// The bdev behind it.
    pub bdev_name: String,
}

/// An export and its openers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The export.
    pub export: Export,
    /// Who has it open.
    pub opens: Vec<OpenInfo>,
}

/// Why an export could not be made or changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ExportError {
    /// The name is taken.
    #[error("export {0} exists already")]
    Exists(String),
    /// There is no such export.
    #[error("there is no export {0}")]
    NotFound(String),
    /// Clients have it open.
    #[error("export {name} is open {opens} times (force closes it)")]
    Open {
        /// The export.
        name: String,
        /// How often.
        opens: usize,
    },
    /// No such rule.
    #[error("export {export} has no host {host}")]
    NoHost {
        /// The export.
        export: String,
        /// The rule's session name.
        host: String,
    },
    /// The same rule again.
    #[error("export {export} has host {host} already")]
    HostExists {
        /// The export.
        export: String,
        /// The rule's session name.
        host: String,
    },
}

impl ExportError {
    /// As SPDK reports it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Exists(_) | Self::HostExists { .. } => Errno::EXIST,
            Self::NotFound(_) | Self::NoHost { .. } => Errno::NOENT,
            Self::Open { .. } => Errno::BUSY,
        }
    }
}

/// All exports of a process and all that is open. Clones are handles to the same table.
///
/// Opening and closing lock it, I/O never does.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    options: ServiceOptions,
    exports: Vec<Export>,
    opens: Vec<OpenEntry>,
    tickets: u64,
}

#[derive(Debug)]
struct OpenEntry {
    ticket: Ticket,
    export: Option<String>,
    info: OpenInfo,
}

impl Exports {
    /// Nothing exported.
    #[must_use]
    pub fn new(options: ServiceOptions) -> Self {
        let state = State {
            options,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What holds for the whole service.
    #[must_use]
    pub fn options(&self) -> ServiceOptions {
        self.lock().options.clone()
    }

    /// Takes effect with the next OPEN.
    pub fn set_options(&self, options: ServiceOptions) {
        self.lock().options = options;
    }

    /// Adds an export.
    ///
    /// # Errors
    /// [`ExportError::Exists`].
    pub fn create(&self, export: Export) -> Result<(), ExportError> {
        let mut state = self.lock();
        if state.exports.iter().any(|other| other.name == export.name) {
            return Err(ExportError::Exists(export.name));
        }
        state.exports.push(export);
        Ok(())
    }

    /// Removes an export. With `force` its openers keep their devices until the caller closes
    /// them on their cores; they cannot be opened again.
    ///
    /// # Errors
    /// [`ExportError::NotFound`]; without `force` [`ExportError::Open`].
    pub fn delete(&self, name: &str, force: bool) -> Result<(), ExportError> {
        let mut state = self.lock();
        let at = state.position(name)?;
        let opens = state.opens_of(name).count();
        if opens > 0 && !force {
            let name = name.to_owned();
            return Err(ExportError::Open { name, opens });
        }
        state.exports.remove(at);
        Ok(())
    }

    /// Changes an export; its name and bdev stay. Takes effect with the next OPEN.
    ///
    /// # Errors
    /// [`ExportError::NotFound`].
    pub fn update(&self, name: &str, change: impl FnOnce(&mut Export)) -> Result<(), ExportError> {
        let mut state = self.lock();
        let at = state.position(name)?;
        let export = &mut state.exports[at];
        let bdev_name = export.bdev_name.clone();
        change(export);
        name.clone_into(&mut export.name);
        export.bdev_name = bdev_name;
        Ok(())
    }

    /// Lets a client in.
    ///
    /// # Errors
    /// [`ExportError::NotFound`], [`ExportError::HostExists`].
    pub fn add_host(&self, name: &str, rule: HostRule) -> Result<(), ExportError> {
        let mut state = self.lock();
        let at = state.position(name)?;
        let hosts = &mut state.exports[at].hosts;
        if hosts.iter().any(|other| same_host(other, &rule)) {
            return Err(ExportError::HostExists {
                export: name.to_owned(),
                host: rule.sessname,
            });
        }
        hosts.push(rule);
        Ok(())
    }

    /// Removes the rules with this session name pattern. What is open stays open.
    ///
    /// # Errors
    /// [`ExportError::NotFound`], [`ExportError::NoHost`].
    pub fn remove_host(&self, name: &str, sessname: &str) -> Result<(), ExportError> {
        let mut state = self.lock();
        let at = state.position(name)?;
        let hosts = &mut state.exports[at].hosts;
        let before = hosts.len();
        hosts.retain(|rule| rule.sessname != sessname);
        if hosts.len() == before {
            return Err(ExportError::NoHost {
                export: name.to_owned(),
                host: sessname.to_owned(),
            });
        }
        Ok(())
    }

    /// One export.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<ExportInfo> {
        self.list()
            .into_iter()
            .find(|info| info.export.name == name)
    }

    /// All exports, in the order that they were made.
    #[must_use]
    pub fn list(&self) -> Vec<ExportInfo> {
        let state = self.lock();
        let info = |export: &Export| ExportInfo {
            export: export.clone(),
            opens: state
                .opens_of(&export.name)
                .map(|open| open.info.clone())
                .collect(),
        };
        state.exports.iter().map(info).collect()
    }

    /// Everything that is open, exports and files below the search path.
    #[must_use]
    pub fn opens(&self) -> Vec<OpenInfo> {
        self.lock()
            .opens
            .iter()
            .map(|open| open.info.clone())
            .collect()
    }

    // For sessions.

    /// Looks a name up and, if it is an export and access is granted, enters the opener.
    ///
    /// # Errors
    /// `ENOENT`: no such export; `EACCES`: not for this client, or not that much; `EPERM`: there
    /// is a writer; `EINVAL`: the name leads out of the search path.
    pub fn open(&self, request: &OpenRequest<'_>) -> Result<Lookup, Errno> {
        let mut state = self.lock();
        if !permits(state.options.max_access, request.mode) {
            return Err(Errno::ACCES);
        }
        let export = state
            .exports
            .iter()
            .find(|export| export.name == request.dev_name);
        match export.cloned() {
            Some(export) => state.grant_export(&export, request).map(Lookup::Granted),
            None => state.search(request).map(Lookup::Search),
        }
    }

    /// Enters the opener of a file that was found below the search path and is now a bdev.
    ///
    /// # Errors
    /// `EPERM`: there is a writer.
    pub fn grant_found(&self, request: &OpenRequest<'_>, bdev_name: &str) -> Result<Grant, Errno> {
        let view = ExportView {
            read_only: request.mode == AccessMode::ReadOnly,
            ..ExportView::default()
        };
        self.lock().enter(request, None, bdev_name, 1, view)
    }

    /// The device is closed; its writer no longer counts. Returns its bdev if that was the last
    /// opener of a file below the search path.
    pub fn close(&self, ticket: Ticket) -> Option<String> {
        let mut state = self.lock();
        let at = state.opens.iter().position(|open| open.ticket == ticket)?;
        let closed = state.opens.remove(at);
        let bdev_name = closed.info.bdev_name;
        let last = !state
            .opens
            .iter()
            .any(|open| open.info.bdev_name == bdev_name);
        (closed.export.is_none() && last).then_some(bdev_name)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn position(&self, name: &str) -> Result<usize, ExportError> {
        let at = self.exports.iter().position(|export| export.name == name);
        at.ok_or_else(|| ExportError::NotFound(name.to_owned()))
    }

    fn opens_of(&self, name: &str) -> impl Iterator<Item = &OpenEntry> {
        self.opens
            .iter()
            .filter(move |open| open.export.as_deref() == Some(name))
    }

    fn grant_export(&mut self, export: &Export, request: &OpenRequest<'_>) -> Result<Grant, Errno> {
        let most = export.max_access_of(request).ok_or(Errno::ACCES)?;
        let writes = request.mode != AccessMode::ReadOnly;
        if !permits(most, request.mode) || (export.read_only && writes) {
            return Err(Errno::ACCES);
        }
        let view = export.view(request.mode);
        let name = Some(export.name.clone());
        self.enter(request, name, &export.bdev_name, export.max_writers, view)
    }

    fn search(&self, request: &OpenRequest<'_>) -> Result<OpenPath, Errno> {
        let search_path = self
            .options
            .dev_search_path
            .as_deref()
            .ok_or(Errno::NOENT)?;
        if !self.options.allow_any_host {
            return Err(Errno::ACCES);
        }
        let (root, relative) =
            resolve(search_path, request.sessname, request.dev_name).map_err(|_| Errno::INVAL)?;
        Ok(OpenPath {
            root,
            relative,
            write: request.mode != AccessMode::ReadOnly,
        })
    }

    /// The access rule of protocol.md 9.9, by bdev, over all sessions and names.
    fn enter(
        &mut self,
        request: &OpenRequest<'_>,
        export: Option<String>,
        bdev_name: &str,
        max_writers: u32,
        view: ExportView,
    ) -> Result<Grant, Errno> {
        let writers = self.writers_of(bdev_name);
        let allowed = match request.mode {
            AccessMode::ReadOnly => true,
            AccessMode::ReadWrite => writers < u64::from(max_writers),
            AccessMode::Migration => writers <= u64::from(max_writers),
        };
        if !allowed {
            return Err(Errno::PERM);
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.opens.push(OpenEntry {
            ticket,
            export,
            info: OpenInfo {
                sessname: request.sessname.to_owned(),
                device_id: request.device_id,
                access_mode: request.mode,
                read_only: view.read_only,
                mapping_path: request.dev_name.to_owned(),
                bdev_name: bdev_name.to_owned(),
            },
        });
        let bdev_name = bdev_name.to_owned();
        Ok(Grant {
            ticket,
            bdev_name,
            view,
        })
    }

    fn writers_of(&self, bdev_name: &str) -> u64 {
        let writes = |open: &&OpenEntry| {
            open.info.bdev_name == bdev_name && open.info.access_mode != AccessMode::ReadOnly
        };
        self.opens.iter().filter(writes).count() as u64
    }
}

fn same_host(one: &HostRule, two: &HostRule) -> bool {
    one.sessname == two.sessname && one.source == two.source
}
