//! What this repository logs, in SPDK's log.

use std::ffi::CString;

use log::{Level, Log, Metadata, Record};
use rnbd_spdk_sys as sys;

struct SpdkLog;

/// Sends everything that is logged through [`log`] to SPDK's log. Does nothing if the program has
/// a logger already.
pub fn install_logger() {
    if log::set_logger(&SpdkLog).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

fn level(level: Level) -> sys::spdk_log_level::Type {
    match level {
        Level::Error => sys::spdk_log_level::SPDK_LOG_ERROR,
        Level::Warn => sys::spdk_log_level::SPDK_LOG_WARN,
        Level::Info => sys::spdk_log_level::SPDK_LOG_NOTICE,
        Level::Debug | Level::Trace => sys::spdk_log_level::SPDK_LOG_DEBUG,
    }
}

impl Log for SpdkLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // SAFETY: reads a global.
        let most = unsafe { sys::spdk_log_get_print_level() };
        level(metadata.level()) <= most
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let (file, function) = (text(record.file().unwrap_or("rnbd")), text(record.target()));
        let line = i32::try_from(record.line().unwrap_or(0)).unwrap_or(0);
        let message = text(&format!("{}\n", record.args()));
        // SAFETY: all are strings that live through the call, and the format takes one string.
        unsafe {
            sys::spdk_log(
                level(record.level()),
                file.as_ptr(),
                line,
                function.as_ptr(),
                c"%s".as_ptr(),
                message.as_ptr(),
            );
        }
    }

    fn flush(&self) {}
}
