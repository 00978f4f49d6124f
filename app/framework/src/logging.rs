//! SPDK's log lines from the `log` crate's records.
//!
//! `error!`, `warn!` and `info!` are SPDK's ERROR, WARNING and NOTICE. `debug!` and `trace!` are
//! its INFO and DEBUG: they are printed for components whose flag is set (`-L`, `log_set_flag`).
//! There are two destinations with a level each: stderr ("print level") and syslog ("log level").

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use jiff::Zoned;
use log::{LevelFilter, Log, Metadata, Record};

/// Components that have a log flag; a record belongs to the crate that it comes from.
pub const FLAGS: &[&str] = &[
    "bdev",
    "bdev_rnbd",
    "fabric",
    "framework",
    "mem",
    "nbd",
    "reactor",
    "rnbd",
    "rpc",
    "rtrs",
];

/// How bad or how detailed; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warning,
    /// Something happened that an operator wants to know.
    Notice,
    /// Details of a component, if its flag is set.
    Info,
    /// All details of a component, if its flag is set.
    Debug,
}

impl Level {
    const ALL: [Self; 5] = [
        Self::Error,
        Self::Warning,
        Self::Notice,
        Self::Info,
        Self::Debug,
    ];

    /// As SPDK writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }

    /// From the name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let matches = |level: &Self| level.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(matches)
    }

    fn of(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warning,
            log::Level::Info => Self::Notice,
            log::Level::Debug => Self::Info,
            log::Level::Trace => Self::Debug,
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::Error,
            Self::Warning => LevelFilter::Warn,
            Self::Notice => LevelFilter::Info,
            Self::Info => LevelFilter::Debug,
            Self::Debug => LevelFilter::Trace,
        }
    }

    /// Facility "user" and the level's severity, as syslog's datagrams begin.
    fn syslog_priority(self) -> u8 {
        const USER: u8 = 1 << 3;
        USER | match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Notice => 5,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }
}

/// What is logged, and where to.
#[derive(Debug)]
pub struct Logger {
    print_level: AtomicU8,
    log_level: AtomicU8,
    timestamps: AtomicBool,
    flags: AtomicU32,
    syslog: OnceLock<Option<UnixDatagram>>,
}

static LOGGER: Logger = Logger::new();

impl Logger {
    const fn new() -> Self {
        Self {
            print_level: AtomicU8::new(Level::Info as u8),
            log_level: AtomicU8::new(Level::Notice as u8),
            timestamps: AtomicBool::new(true),
            flags: AtomicU32::new(0),
            syslog: OnceLock::new(),
        }
    }

    /// The process's logger, put in place at the first call.
    pub fn get() -> &'static Self {
        if log::set_logger(&LOGGER).is_ok() {
            LOGGER.update_filter();
        }
        &LOGGER
    }

    /// What reaches stderr.
    pub fn print_level(&self) -> Level {
        load(&self.print_level)
    }

    /// Sets what reaches stderr.
    pub fn set_print_level(&self, level: Level) {
        self.print_level.store(level as u8, Ordering::Relaxed);
        self.update_filter();
    }

    /// What reaches syslog.
    pub fn log_level(&self) -> Level {
        load(&self.log_level)
    }

    /// Sets what reaches syslog.
    pub fn set_log_level(&self, level: Level) {
        self.log_level.store(level as u8, Ordering::Relaxed);
        self.update_filter();
    }

    /// Sets whether lines on stderr begin with the time.
    pub fn set_timestamps(&self, enabled: bool) {
        self.timestamps.store(enabled, Ordering::Relaxed);
    }

    /// Sets a component's flag, or all with `all`; `false` if there is no such component.
    pub fn set_flag(&self, name: &str, enabled: bool) -> bool {
        let Some(mask) = flag_mask(name) else {
            return false;
        };
        if enabled {
            self.flags.fetch_or(mask, Ordering::Relaxed);
        } else {
            self.flags.fetch_and(!mask, Ordering::Relaxed);
        }
        self.update_filter();
        true
    }

    /// Whether a component's flag is set.
    pub fn flag(&self, name: &str) -> bool {
        let mask = flag_mask(name).unwrap_or(0);
        self.flags.load(Ordering::Relaxed) & mask != 0
    }

    /// Lets the macros skip what no destination wants, at the price of one load.
    fn update_filter(&self) {
        let level = self.print_level().max(self.log_level());
        let detailed = self.flags.load(Ordering::Relaxed) != 0;
        let level = if detailed {
            level
        } else {
            level.min(Level::Notice)
        };
        log::set_max_level(level.filter());
    }

    fn print(&self, text: &str) {
        let timestamp = if self.timestamps.load(Ordering::Relaxed) {
            Zoned::now()
                .strftime("[%Y-%m-%d %H:%M:%S.%6f] ")
                .to_string()
        } else {
            String::new()
        };
        // Nobody is left to be told when stderr is gone.
        let _ = std::io::stderr().write_all(format!("{timestamp}{text}\n").as_bytes());
    }

    fn send_to_syslog(&self, level: Level, text: &str) {
        if let Some(socket) = self.syslog.get_or_init(connect_syslog) {
            let priority = level.syslog_priority();
            let line = format!("<{priority}>rnbd[{}]: {text}", std::process::id());
            // A syslog that is gone or full loses lines; it must not stop an I/O.
            let _ = socket.send(line.as_bytes());
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = Level::of(metadata.level());
        level <= Level::Notice || self.flag(component(metadata.target()))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = Level::of(record.level());
        let text = line(level, record);
        if level <= self.print_level() {
            self.print(&text);
        }
        if level <= self.log_level() {
            self.send_to_syslog(level, &text);
        }
    }

    fn flush(&self) {}
}

/// `file: line:function: *LEVEL*: text`, with the module where C has the function.
fn line(level: Level, record: &Record<'_>) -> String {
    let path = record.file().unwrap_or("?");
    let file = path.rsplit('/').next().unwrap_or(path);
    let number = record.line().unwrap_or(0);
    let module = record.module_path().unwrap_or(record.target());
    format!(
        "{file}:{number:4}:{module}: *{}*: {}",
        level.name(),
        record.args()
    )
}

fn load(level: &AtomicU8) -> Level {
    let index = usize::from(level.load(Ordering::Relaxed));
    Level::ALL[index.min(Level::ALL.len() - 1)]
}

/// The flag of the crate that a target names.
fn component(target: &str) -> &str {
    match target.split("::").next().unwrap_or(target) {
        "bdev_rnbd" => "bdev_rnbd",
        "rnbd_proto" => "rnbd",
        name => name.strip_prefix("rnbd_").unwrap_or(name),
    }
}

fn flag_mask(name: &str) -> Option<u32> {
    if name == "all" {
        return Some(u32::MAX);
    }
    let index = FLAGS.iter().position(|flag| *flag == name)?;
    Some(1 << index)
}

fn connect_syslog() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect("/dev/log").ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_laid_out_as_spdks() {
        let record = Record::builder()
            .args(format_args!("path closed"))
            .level(log::Level::Warn)
            .file(Some("lib/rtrs/src/srv/path.rs"))
            .line(Some(7))
            .module_path(Some("rnbd_rtrs::srv::path"))
            .build();
        assert_eq!(
            line(Level::Warning, &record),
            "path.rs:   7:rnbd_rtrs::srv::path: *WARNING*: path closed"
        );
    }

    #[test]
    fn details_are_printed_only_of_components_whose_flag_is_set() {
        let logger = Logger::new();
        let enabled = |level, target| {
            logger.enabled(&Metadata::builder().level(level).target(target).build())
        };
        assert!(enabled(log::Level::Info, "rnbd_rtrs::srv"));
        assert!(!enabled(log::Level::Debug, "rnbd_rtrs::srv"));
        assert!(logger.set_flag("rtrs", true));
        assert!(enabled(log::Level::Debug, "rnbd_rtrs::srv"));
        assert!(!enabled(log::Level::Debug, "rnbd_proto::srv"));
        assert!(logger.set_flag("all", true));
        assert!(enabled(log::Level::Debug, "rnbd_proto::srv"));
        assert!(!logger.set_flag("unknown", true));
    }

    #[test]
    fn levels_have_spdks_names() {
        assert_eq!(Level::from_name("warning"), Some(Level::Warning));
        assert_eq!(Level::from_name("WARN"), None);
        assert!(Level::ALL.map(|level| Level::from_name(level.name())) == Level::ALL.map(Some));
    }
}
