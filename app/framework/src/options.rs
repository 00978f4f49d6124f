use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use rnbd_reactor::{CoreMask, Mode, ReactorConfig};

/// Where SPDK's tools look for a server.
pub const DEFAULT_SOCKET: &str = "/var/tmp/spdk.sock";

/// The command line options that all programs share, spelled as SPDK's.
///
/// They take the letters `c h i L m r s u v`; a program does not use them for its own, nor SPDK's
/// other ones (`d e g n p A B R W`).
#[derive(Args, Clone, Debug)]
#[command(disable_version_flag = true)]
pub struct Options {
    /// Listen for RPC on this Unix socket
    #[arg(short = 'r', long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    #[arg(help_heading = "Configuration")]
    pub rpc_socket: PathBuf,

    /// Start no RPC server
    #[arg(long, conflicts_with = "wait_for_rpc", help_heading = "Configuration")]
    pub no_rpc_server: bool,

    /// Apply this JSON configuration, as save_config writes it
    #[arg(short = 'c', long, visible_alias = "json", value_name = "FILE")]
    #[arg(help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Go on after a configuration entry that failed
    #[arg(long, help_heading = "Configuration")]
    pub json_ignore_init_errors: bool,

    /// Wait for framework_start_init before anything is initialized
    #[arg(long, help_heading = "Configuration")]
    pub wait_for_rpc: bool,

    /// Permit only these RPC methods
    #[arg(long, value_name = "METHOD,…", value_delimiter = ',')]
    #[arg(help_heading = "Configuration")]
    pub rpcs_allowed: Option<Vec<String>>,

    /// Cores to run on: a hexadecimal mask, or a list as [0,2-3]
    #[arg(short = 'm', long, value_name = "MASK", default_value = "0x1")]
    #[arg(help_heading = "CPU")]
    pub cpumask: CoreMask,

    /// Run on these cores even if another program has claimed them
    #[arg(long, help_heading = "CPU")]
    pub disable_cpumask_locks: bool,

    /// What a core does when there is nothing to do
    #[arg(long, value_enum, default_value_t = ReactorMode::Busy, help_heading = "CPU")]
    pub reactor_mode: ReactorMode,

    /// Microseconds without work after which an adaptive reactor sleeps
    #[arg(long, value_name = "US", default_value_t = 50, help_heading = "CPU")]
    pub reactor_idle_us: u32,

    /// Memory for I/O: MiB, or with a suffix K, M or G [default: no limit]
    #[arg(short = 's', long, value_name = "SIZE", value_parser = parse_mem_size)]
    #[arg(help_heading = "Memory")]
    pub mem_size: Option<u64>,

    /// Use ordinary pages
    #[arg(long, help_heading = "Memory")]
    pub no_huge: bool,

    /// NUMA node that memory is taken from
    #[arg(long, value_name = "NODE", help_heading = "Memory")]
    pub mem_numa_node: Option<u32>,

    /// Print this component's debug messages; repeatable, "all" for all
    #[arg(short = 'L', long, value_name = "NAME", help_heading = "Log")]
    pub logflag: Vec<String>,

    /// Print warnings and errors only
    #[arg(long, help_heading = "Log")]
    pub silence_noticelog: bool,

    /// Accepted for scripts written for SPDK; no PCI device is touched anyway
    #[arg(short = 'u', long, hide = true)]
    pub no_pci: bool,

    /// Accepted for scripts written for SPDK; memory is never shared
    #[arg(short = 'i', long, value_name = "ID", hide = true)]
    pub shm_id: Option<i32>,

    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// What a core does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReactorMode {
    /// Polls on: lowest latency, 100 % of the core
    Busy,
    /// Sleeps until something arrives: some microseconds of latency, no CPU when idle
    Adaptive,
}

impl Options {
    /// Starts the RPC server only if `-r` named another socket than SPDK's, or something on the
    /// command line needs it. For programs that run a job and exit.
    #[must_use]
    pub fn without_rpc_unless_asked(mut self) -> Self {
        let asked = self.wait_for_rpc || self.rpc_socket.as_os_str() != DEFAULT_SOCKET;
        self.no_rpc_server |= !asked;
        self
    }

    pub(crate) fn reactor_config(&self) -> ReactorConfig {
        ReactorConfig {
            cores: self.cpumask.clone(),
            mode: match self.reactor_mode {
                ReactorMode::Busy => Mode::Busy,
                ReactorMode::Adaptive => Mode::Adaptive {
                    idle_us: self.reactor_idle_us,
                },
            },
        }
    }
}

/// Bytes of a size as SPDK writes it: MiB unless a suffix says otherwise.
fn parse_mem_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 20),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number with an optional suffix K, M or G".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("no memory at all is not enough".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("more than 64 bits can say".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(version = "1.2.3")]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let all = ["program"].iter().chain(arguments);
        Program::try_parse_from(all).map(|program| program.options)
    }

    #[test]
    fn a_memory_size_is_in_mib_unless_a_suffix_says_otherwise() {
        let size = |text| parse(&["-s", text]).unwrap().mem_size;
        assert_eq!(size("256"), Some(256 << 20));
        assert_eq!(size("512K"), Some(512 << 10));
        assert_eq!(size("2G"), Some(2 << 30));
        for bad in ["", "0", "G", "1T", "-1", "99999999999999999999G", "ü"] {
            assert!(parse(&["-s", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_three_spellings_of_the_configuration_are_one_option() {
        for option in ["-c", "--config", "--json"] {
            let options = parse(&[option, "x.json"]).unwrap();
            assert_eq!(options.config, Some(PathBuf::from("x.json")));
        }
    }

    #[test]
    fn a_mask_that_is_none_is_refused() {
        assert!(parse(&["-m", "0x3"]).is_ok());
        assert!(parse(&["-m", "[0,2-3]"]).is_ok());
        assert!(parse(&["-m", "cores"]).is_err());
    }

    #[test]
    fn waiting_for_rpc_needs_a_server() {
        assert!(parse(&["--wait-for-rpc", "--no-rpc-server"]).is_err());
    }

    #[test]
    fn a_job_has_no_server_unless_asked() {
        let no_server = |arguments: &[&str]| {
            let options = parse(arguments).unwrap();
            options.without_rpc_unless_asked().no_rpc_server
        };
        assert!(no_server(&[]));
        assert!(!no_server(&["-r", "/tmp/x.sock"]));
        assert!(!no_server(&["--wait-for-rpc"]));
    }

    #[test]
    fn the_version_is_a_small_v() {
        let error = parse(&["-v"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::DisplayVersion);
    }
}
