//! From options to jobs: which core does what to which device.

use anyhow::{Context, bail, ensure};
use rnbd_base::{CoreIndex, Nanos};

use crate::cli::Cli;
use crate::jobfile::JobSection;
use crate::spec::{JobSpec, Share};
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
    let section = JobSection::default();
    if !cli.every_core {
        let turns = bdevs.iter().zip(cores.iter().cycle());
        return turns
            .map(|(bdev, core)| common.job(bdev, *core, Share::WHOLE, &section))
            .collect();
    }
    let count = u32::try_from(cores.len())?;
    let pairs = bdevs
        .iter()
        .flat_map(|bdev| (0..count).zip(cores).map(move |pair| (bdev, pair)));
    pairs
        .map(|(bdev, (index, core))| common.job(bdev, *core, Share { index, count }, &section))
        .collect()
}

/// The jobs of a job file: one for each section and core of its mask; without a mask they take
/// the cores in turn.
///
/// # Errors
/// What is missing, or a core that is not there.
pub(crate) fn from_sections(
    cli: &Cli,
    sections: &[JobSection],
    cores: &[Core],
    seed: u64,
) -> anyhow::Result<Vec<JobSpec>> {
    let common = Common { cli, seed };
    let mut specs = Vec::new();
    for (section, next) in sections.iter().zip(cores.iter().cycle()) {
        let name = &section.name;
        let bdev = cli.bdev.as_ref().or(section.filename.as_ref());
        let bdev = bdev.with_context(|| format!("job {name} has no filename"))?;
        let on = cores_of(section, cores, *next)?;
        let count = u32::try_from(on.len())?;
        for (index, core) in (0..count).zip(on) {
            let job = common.job(bdev, core, Share { index, count }, section);
            specs.push(job.with_context(|| format!("job {name}"))?);
        }
    }
    Ok(specs)
}

fn cores_of(section: &JobSection, cores: &[Core], next: Core) -> anyhow::Result<Vec<Core>> {
    let Some(mask) = &section.cores else {
        return Ok(vec![next]);
    };
    let find = |lcore| {
        let found = cores.iter().find(|core| core.lcore == lcore).copied();
        found.with_context(|| format!("job {}: core {lcore} is not in -m", section.name))
    };
    mask.cores().map(find).collect()
}

impl Common<'_> {
    /// What the command line says goes before what the section says.
    fn job(
        &self,
        bdev: &str,
        core: Core,
        share: Share,
        section: &JobSection,
    ) -> anyhow::Result<JobSpec> {
        let cli = self.cli;
        let workload = cli
            .workload
            .or(section.workload)
            .context("-w WORKLOAD is missing")?;
        let depth = cli.depth.or(section.depth).context("-q DEPTH is missing")?;
        let io_bytes = cli
            .io_bytes
            .or(section.io_bytes)
            .context("-o SIZE is missing")?;
        let read_percent = cli.read_percent.or(section.read_percent);
        ensure!((1..=65536).contains(&depth), "a queue depth is 1 to 65536");
        if cli.read_percent.is_some() && !workload.is_mixed() {
            bail!("-M makes no sense with -w {}", workload.name());
        }
        Ok(JobSpec {
            bdev: bdev.to_owned(),
            core: core.index,
            lcore: core.lcore,
            workload,
            depth,
            io_bytes,
            read_percent: read_percent.unwrap_or(50),
            offset_bytes: section.offset_bytes.unwrap_or(0),
            length_bytes: section.length_bytes.unwrap_or(0),
            share,
            duration: Nanos::from_secs(cli.seconds),
            timeout: cli.timeout.map(Nanos::from_secs),
            continue_on_failure: cli.continue_on_failure,
            verify: cli.verify || workload == Workload::Verify,
            seed: self.seed_of(bdev, core, share),
        })
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
