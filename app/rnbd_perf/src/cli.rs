use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};

use crate::attach::Attach;
use crate::size::parse_io_size;
use crate::workload::Workload;

/// Loads bdevs with I/O, measures it, and verifies it.
///
/// Letters, table and names are bdevperf's. Bdevs come from a configuration (-c), or from
/// --attach. The exit status is 0 only if it ran to its end, every I/O succeeded, and every byte was
/// right.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) app: rnbd_framework::Options,

    /// I/Os in flight per job
    #[arg(short = 'q', value_name = "DEPTH")]
    pub(crate) depth: Option<u32>,

    /// Bytes of an I/O, with an optional suffix K, M or G
    #[arg(short = 'o', value_name = "SIZE", value_parser = parse_io_size)]
    pub(crate) io_bytes: Option<u32>,

    /// What to do
    #[arg(short = 'w', value_name = "WORKLOAD", value_enum)]
    pub(crate) workload: Option<Workload>,

    /// Seconds to run
    #[arg(short = 't', value_name = "SECONDS", default_value_t = 10)]
    pub(crate) seconds: u64,

    /// Percentage of reads in rw, randrw and verify [default: 50]
    #[arg(short = 'M', value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: Option<u8>,

    /// Count I/O that takes longer than this many seconds as timed out
    #[arg(short = 'k', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,

    /// Use this bdev only
    #[arg(short = 'T', value_name = "BDEV")]
    pub(crate) bdev: Option<String>,

    /// Run every bdev from every core, each with its part of the bdev
    #[arg(short = 'C')]
    pub(crate) every_core: bool,

    /// Take the jobs from this file (sections with filename, cpumask, bs, iodepth, rwmixread,
    /// offset, length, rw); -q, -o, -w, -M and -T go before its global section
    #[arg(short = 'j', value_name = "FILE", conflicts_with = "every_core")]
    pub(crate) job_file: Option<PathBuf>,

    /// Print a latency summary; twice: and a histogram
    #[arg(short = 'l', action = ArgAction::Count)]
    pub(crate) latency: u8,

    /// Print the rate every so many seconds, as lines to keep
    #[arg(short = 'S', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) report_seconds: Option<u64>,

    /// Smooth that rate over so many lines
    #[arg(short = 'P', value_name = "LINES", requires = "report_seconds")]
    pub(crate) smooth_over: Option<u32>,

    /// Go on after I/O that failed, and do not let it fail the run
    #[arg(short = 'f')]
    pub(crate) continue_on_failure: bool,

    /// Start, and run when the RPC method perform_tests asks, as often as it does
    #[arg(short = 'z', conflicts_with = "no_rpc_server")]
    pub(crate) wait_for_tests: bool,

    /// Prefer the first places in random workloads: the nth as often as 1 / n^THETA
    #[arg(short = 'F', value_name = "THETA", value_parser = parse_theta)]
    pub(crate) zipf_theta: Option<f64>,

    /// In random workloads, go to no place again before all others were visited
    #[arg(short = 'D', conflicts_with = "zipf_theta")]
    pub(crate) each_once: bool,

    /// Run all jobs of a core in one light thread
    #[arg(short = 'E', conflicts_with = "job_file")]
    pub(crate) thread_per_core: bool,

    /// Write other data each time
    #[arg(short = 'U')]
    pub(crate) unique_writes: bool,

    /// Keep the data in ordinary pages
    #[arg(short = 'H')]
    pub(crate) small_pages: bool,

    /// Append every RPC request and reply to this file
    #[arg(short = 'J', value_name = "FILE")]
    pub(crate) rpc_log: Option<PathBuf>,

    /// Accepted for scripts written for bdevperf: no bdev here has metadata to hide
    #[arg(short = 'N', hide = true)]
    pub(crate) hide_metadata: bool,

    #[arg(short = 'X', hide = true)]
    pub(crate) abort: bool,

    #[arg(short = 'Z', hide = true)]
    pub(crate) zcopy: bool,

    /// Stamp what is written and check what is read, with any workload
    #[arg(long)]
    pub(crate) verify: bool,

    /// Do the same I/O as a run before that printed this seed
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// Attach a device of a target before the run: traddr=ADDRESS,device=NAME and, if they are not
    /// the default, trtype=TCP, trsvcid=1234, sessname=NAME. Repeatable
    #[arg(long, value_name = "KEY=VALUE,…")]
    pub(crate) attach: Vec<Attach>,

    /// Write the results as JSON; "-" for standard output, all else then goes to standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write each job's latency distribution for HdrHistogram's plotter
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) hgrm: Option<PathBuf>,
}

impl Cli {
    /// From the command line of the process; does not return if it makes no sense.
    pub(crate) fn from_command_line() -> Self {
        Self::parse(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn parse<T: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::unambiguous_command();
        let matches = command.try_get_matches_from_mut(words)?;
        let cli = Self::from_arg_matches(&matches)?;
        match cli.impossible() {
            Some(reason) => Err(command.error(ErrorKind::InvalidValue, reason)),
            None => Ok(cli),
        }
    }

    /// Why one of bdevperf's letters cannot be obeyed.
    fn impossible(&self) -> Option<&'static str> {
        if self.abort {
            return Some("-X: no bdev here can abort an I/O; -k alone counts those that take long");
        }
        if self.zcopy {
            return Some("-Z: no bdev here lends its buffers; I/O is always done into the job's");
        }
        None
    }

    /// `--json` is where results go; as another name of `--config` it is not needed here.
    fn unambiguous_command() -> clap::Command {
        Self::command().mut_arg("config", |config| config.visible_alias(None))
    }

    #[cfg(test)]
    pub(crate) fn parse_words(words: &str) -> Result<Self, clap::Error> {
        let words = ["rnbd_perf"].into_iter().chain(words.split_whitespace());
        Self::parse(words)
    }
}

fn parse_theta(text: &str) -> Result<f64, String> {
    let theta: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match theta.is_finite() && theta >= 0.0 {
        true => Ok(theta),
        false => Err("theta is 0 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    #[test]
    fn no_letter_is_used_twice() {
        Cli::unambiguous_command().debug_assert();
    }

    #[test]
    fn the_documentation_lists_all_options() {
        let shared = rnbd_framework::Options::augment_args(clap::Command::new("shared"));
        let tables = rnbd_docs::option_tables(&Cli::unambiguous_command(), &shared);
        rnbd_docs::assert_generated("docs/options.md", "rnbd_perf", &tables);
    }

    #[test]
    fn json_is_for_results() {
        let cli = Cli::parse_words("-c disks.json --json -").unwrap();
        assert_eq!(cli.json, Some(PathBuf::from("-")));
        assert_eq!(cli.app.config, Some(PathBuf::from("disks.json")));
    }

    #[test]
    fn letters_that_cannot_be_obeyed_are_refused_by_name() {
        for (words, reason) in [("-X -k 1", "-X: no bdev"), ("-Z", "-Z: no bdev")] {
            let error = Cli::parse_words(words).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(Cli::parse_words("-N").is_ok());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for words in [
            "-M 101",
            "-k 0",
            "-w dance",
            "-o 100",
            "-o 4kb",
            "--attach disk0",
            "-P 3",
            "-F -1",
            "-F nan",
            "-D -F 1",
            "-E -j jobs",
            "-z --no-rpc-server",
        ] {
            assert!(Cli::parse_words(words).is_err(), "{words}");
        }
    }
}
