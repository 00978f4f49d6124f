//! From options to jobs: which core does what to which device.

use anyhow::{Context, ensure};
use rnbd_base::{CoreIndex, Nanos};

use crate::cli::Cli;
use crate::jobfile::{self, JobSection};
use crate::places::Order;
use crate::spec::{Extent, JobSpec, Share};
use crate::stamp::mix;
use crate::workload::Workload;

/// A core to run on: the reactor and its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    pub(crate) index: CoreIndex,
    pub(crate) lcore: u32,
}

/// What the command line says for all jobs.
struct Common<'a> {
    cli: &'a Cli,
    seed: u64,
}

/// The jobs of the command line: one for each device, on the cores in turn, or with `-C` one for
/// each device and core, each with its own part of the device.
///
/// # Errors
/// What is missing.
pub(crate) fn from_options(
    cli: &Cli,
    bdevs: &[String],
    cores: &[Core],
    seed: u64,
) -> anyhow::Result<Vec<JobSpec>> {
    ensure!(
        !bdevs.is_empty(),
        "there is no bdev to run on: see -c and --attach"
    );
    let common = Common { cli, seed };
    let section = given(cli);
    if cli.every_core {
        return common.jobs_on(bdevs, cores, &section);
    }
    let turns = bdevs.iter().zip(cores.iter().cycle());
    turns
        .map(|(bdev, core)| common.job(bdev, *core, Share::WHOLE, &section))
        .collect()
}

/// The jobs of a job file's text: for each section, one for each of its devices and cores.
///
/// # Errors
/// What is missing, or a core that is not there.
pub(crate) fn from_file(
    cli: &Cli,
    text: &str,
    cores: &[Core],
    seed: u64,
) -> anyhow::Result<Vec<JobSpec>> {
    let common = Common { cli, seed };
    let mut specs = Vec::new();
    for section in jobfile::parse(text, &given(cli))? {
        let name = &section.name;
        ensure!(!section.filenames.is_empty(), "job {name} has no filename");
        let on = cores_of(&section, cores)?;
        let jobs = common.jobs_on(&section.filenames, &on, &section);
        specs.extend(jobs.with_context(|| format!("job {name}"))?);
    }
    Ok(specs)
}

/// What the command line says as a section would.
fn given(cli: &Cli) -> JobSection {
    JobSection {
        filenames: cli.bdev.clone().into_iter().collect(),
        io_bytes: cli.io_bytes,
        depth: cli.depth,
        read_percent: cli.read_percent,
        workload: cli.workload,
        ..JobSection::default()
    }
}

/// All, unless the section says otherwise.
fn cores_of(section: &JobSection, cores: &[Core]) -> anyhow::Result<Vec<Core>> {
    let Some(mask) = &section.cores else {
        return Ok(cores.to_vec());
    };
    let find = |lcore| {
        let found = cores.iter().find(|core| core.lcore == lcore).copied();
        found.with_context(|| format!("job {}: core {lcore} is not in -m", section.name))
    };
    mask.cores().map(find).collect()
}

impl Common<'_> {
    /// A job for each device and core, each core with its own part of the device.
    fn jobs_on(
        &self,
        bdevs: &[String],
        cores: &[Core],
        section: &JobSection,
    ) -> anyhow::Result<Vec<JobSpec>> {
        let count = u32::try_from(cores.len())?;
        let pairs = bdevs
            .iter()
            .flat_map(|bdev| (0..count).zip(cores).map(move |pair| (bdev, pair)));
        pairs
            .map(|(bdev, (index, core))| self.job(bdev, *core, Share { index, count }, section))
            .collect()
    }

    fn job(
        &self,
        bdev: &str,
        core: Core,
        share: Share,
        section: &JobSection,
    ) -> anyhow::Result<JobSpec> {
        let cli = self.cli;
        let workload = section.workload.context("-w WORKLOAD is missing")?;
        let depth = section.depth.context("-q DEPTH is missing")?;
        let io_bytes = section.io_bytes.context("-o SIZE is missing")?;
        ensure!((1..=65536).contains(&depth), "a queue depth is 1 to 65536");
        self.check_letters(workload)?;
        Ok(JobSpec {
            bdev: bdev.to_owned(),
            core: core.index,
            lcore: core.lcore,
            workload,
            depth,
            io_bytes,
            read_percent: section.read_percent.unwrap_or(50),
            order: self.order(workload),
            offset: section.offset.unwrap_or(Extent::ZERO),
            length: section.length.unwrap_or(Extent::ZERO),
            share,
            duration: Nanos::from_secs(cli.seconds),
            timeout: cli.timeout.map(Nanos::from_secs),
            continue_on_failure: cli.continue_on_failure,
            verify: cli.verify || workload == Workload::Verify,
            unique_writes: cli.unique_writes,
            small_pages: cli.small_pages,
            seed: self.seed_of(bdev, core, share),
        })
    }

    /// Jobs of a file may differ in their workload; what makes no sense for one has no effect there.
    fn check_letters(&self, workload: Workload) -> anyhow::Result<()> {
        let cli = self.cli;
        if cli.job_file.is_some() {
            return Ok(());
        }
        let name = workload.name();
        let is_mix_given = cli.read_percent.is_some();
        ensure!(
            !is_mix_given || workload.is_mixed(),
            "-M makes no sense with -w {name}"
        );
        let is_random = workload.is_random();
        ensure!(
            !cli.each_once || is_random,
            "-D makes no sense with -w {name}"
        );
        ensure!(
            cli.zipf_theta.is_none() || is_random,
            "-F makes no sense with -w {name}"
        );
        Ok(())
    }

    fn order(&self, workload: Workload) -> Order {
        match (workload.order(), self.cli.zipf_theta) {
            (Order::Sequential, _) => Order::Sequential,
            (_, Some(theta)) => Order::Zipf(theta),
            _ if self.cli.each_once => Order::EachOnce,
            (order, None) => order,
        }
    }

    /// Jobs differ from each other, and are the same again with the same `--seed`.
    fn seed_of(&self, bdev: &str, core: Core, share: Share) -> u64 {
        let job = u64::from(core.lcore) << 32 | u64::from(share.index);
        bdev.bytes().fold(mix(self.seed ^ mix(job)), |seed, byte| {
            mix(seed ^ u64::from(byte))
        })
    }
}

#[cfg(test)]
mod tests;
