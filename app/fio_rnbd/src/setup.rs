//! From a job's options to a job that can run.

use std::sync::Arc;

use rnbd_base::Errno;
use rnbd_bdev::{BdevInfo, RegistryError};

use crate::job::{Disk, Job, Manner};
use crate::runtime::{self, Runtime};
use crate::sys::{Direction, KnownJob, Td};

/// Why a job cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(errno: Errno, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { errno, text }
    }
}

/// Finds the job's bdevs, checks that it can work on them, and tells fio their sizes.
pub(crate) fn prepare(td: Td<'_>) -> Result<(), Failure> {
    // A job that is a process would have none of the threads and connections that are made here.
    td.become_thread();
    let runtime = runtime(td)?;
    for file in td.files() {
        let info = bdev(&runtime, &file.name())?;
        check_use(td, &info)?;
        file.set_size(info.bdev.geometry().bytes());
    }
    Ok(())
}

/// Opens the job's bdevs for the thread that it runs on.
pub(crate) fn start(td: Td<'_>) -> Result<Job, Failure> {
    if !td.is_thread() {
        let text = "with create_serialize=0, this engine needs thread=1";
        return Err(Failure::new(Errno::INVAL, text));
    }
    let runtime = runtime(td)?;
    let seat = runtime.take_seat().ok_or_else(|| {
        let text = "more jobs run at a time than there were when the first one was set up";
        Failure::new(Errno::AGAIN, text)
    })?;
    let write = td.does(Direction::Write) || td.does(Direction::Trim);
    let open = |name: String| {
        let refused = |errno: Errno, reason: String| {
            Failure::new(errno, format!("bdev {name} cannot be opened: {reason}"))
        };
        let desc = runtime
            .bdevs
            .open(&name, write)
            .map_err(|error: RegistryError| refused(error.errno(), error.to_string()))?;
        let channel = desc
            .open_channel(seat.core(), td.iodepth())
            .map_err(|errno| refused(errno, errno.to_string()))?;
        Ok(Disk::new(name.clone(), desc, channel))
    };
    let disks: Result<Vec<Disk>, Failure> = td.files().map(|file| open(file.name())).collect();
    let manner = Manner {
        depth: td.iodepth(),
        is_sync: td.is_sync(),
        is_paced: td.is_paced(),
        writes_zeroes: td.writes_zeroes(),
    };
    Ok(Job::new(disks?, seat, manner, Arc::clone(&runtime)))
}

fn runtime(td: Td<'_>) -> Result<Arc<Runtime>, Failure> {
    let config = td.json_conf().ok_or_else(no_config)?;
    let config = std::fs::canonicalize(&config).unwrap_or(config);
    let jobs = || most_at_once(&td.all_jobs());
    runtime::get(&config, jobs).map_err(|error| Failure::new(Errno::INVAL, format!("{error:#}")))
}

fn no_config() -> Failure {
    let text = "rnbd_json_conf is missing: a JSON configuration that makes the bdevs which \
                filename names";
    Failure::new(Errno::INVAL, text)
}

/// How many jobs of this engine may run at a time; `stonewall` lets those before it end first.
fn most_at_once(jobs: &[KnownJob]) -> usize {
    let (mut most, mut now) = (0, 0);
    for job in jobs {
        if job.waits_for_others {
            now = 0;
        }
        now += usize::from(job.is_ours);
        most = most.max(now);
    }
    most
}

fn bdev(runtime: &Runtime, name: &str) -> Result<BdevInfo, Failure> {
    runtime.bdevs.get(name).ok_or_else(|| {
        let all = runtime.bdevs.list();
        let names: Vec<&str> = all.iter().map(|info| info.bdev.name()).collect();
        let known = match names.is_empty() {
            true => "the configuration makes none".to_owned(),
            false => format!("there are: {}", names.join(", ")),
        };
        Failure::new(Errno::NODEV, format!("there is no bdev {name}; {known}"))
    })
}

/// Whether the bdev can do what the job is going to do.
fn check_use(td: Td<'_>, info: &BdevInfo) -> Result<(), Failure> {
    let name = info.bdev.name();
    let features = info.bdev.features();
    let refuse = |errno, text: &str| Err(Failure::new(errno, format!("bdev {name} {text}")));
    let writes = td.does(Direction::Write) || td.does(Direction::Trim);
    if writes && features.read_only {
        return refuse(Errno::ROFS, "is read-only");
    }
    if td.does(Direction::Trim) && !features.unmap {
        return refuse(Errno::OPNOTSUPP, "takes no trim");
    }
    let block_size = info.bdev.geometry().block_size;
    if td.is_unaligned() {
        let text = format!("has blocks of {block_size} bytes: bs_unaligned does not work");
        return refuse(Errno::INVAL, &text);
    }
    for direction in Direction::ALL.into_iter().filter(|&one| td.does(one)) {
        for (size, option) in td
            .block_sizes(direction)
            .into_iter()
            .zip(["bs", "blockalign"])
        {
            if !size.is_multiple_of(block_size.into()) {
                let text =
                    format!("has blocks of {block_size} bytes: {option}={size} does not fit");
                return refuse(Errno::INVAL, &text);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_behind_a_stonewall_do_not_run_with_those_before_it() {
        let jobs = |text: &str| -> Vec<KnownJob> {
            let job = |letter: char| KnownJob {
                is_ours: letter != 'x' && letter != 'X',
                waits_for_others: letter.is_uppercase(),
            };
            text.chars().map(job).collect()
        };
        assert_eq!(most_at_once(&jobs("aaa")), 3);
        assert_eq!(most_at_once(&jobs("aAAaAaaA")), 3);
        assert_eq!(most_at_once(&jobs("xaxXaa")), 2);
        assert_eq!(most_at_once(&jobs("")), 0);
    }
}
