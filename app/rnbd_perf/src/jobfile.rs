//! Job files as bdevperf has them: sections of `key=value`, and `[global]` sections for what the
//! jobs below them have in common. The command line goes before `[global]`, but not before what a
//! job says itself.

use std::str::FromStr;

use anyhow::{Context, bail};
use clap::ValueEnum;
use rnbd_reactor::CoreMask;

use crate::size::{parse_io_size, parse_size};
use crate::spec::Extent;
use crate::workload::Workload;

/// What a section, or the command line, says of a job.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobSection {
    pub(crate) name: String,
    /// The bdevs; none if they are not said.
    pub(crate) filenames: Vec<String>,
    pub(crate) cores: Option<CoreMask>,
    pub(crate) io_bytes: Option<u32>,
    pub(crate) depth: Option<u32>,
    pub(crate) read_percent: Option<u8>,
    pub(crate) offset: Option<Extent>,
    pub(crate) length: Option<Extent>,
    pub(crate) workload: Option<Workload>,
}

/// The jobs in `text`, in their order, where the command line says `given`.
///
/// # Errors
/// The first line that means nothing.
pub(crate) fn parse(text: &str, given: &JobSection) -> anyhow::Result<Vec<JobSection>> {
    let mut global = JobSection::default();
    let mut jobs: Vec<JobSection> = Vec::new();
    let mut in_global = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = section_name(line) {
            in_global = name == "global";
            if !in_global {
                jobs.push(given.clone().with_defaults(name, &global));
            }
            continue;
        }
        let section = if in_global {
            &mut global
        } else {
            jobs.last_mut()
                .with_context(|| format!("line {number}: {line:?} belongs to no section"))?
        };
        section
            .set(line)
            .with_context(|| format!("line {number}: {line:?}"))?;
    }
    if jobs.is_empty() {
        bail!("there is no job in it");
    }
    Ok(jobs)
}

fn section_name(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.strip_suffix(']')
}

impl JobSection {
    /// The job `name` before its own lines are read.
    fn with_defaults(self, name: &str, defaults: &Self) -> Self {
        let filenames = match self.filenames.is_empty() {
            true => defaults.filenames.clone(),
            false => self.filenames,
        };
        Self {
            name: name.to_owned(),
            filenames,
            cores: self.cores.or_else(|| defaults.cores.clone()),
            io_bytes: self.io_bytes.or(defaults.io_bytes),
            depth: self.depth.or(defaults.depth),
            read_percent: self.read_percent.or(defaults.read_percent),
            offset: self.offset.or(defaults.offset),
            length: self.length.or(defaults.length),
            workload: self.workload.or(defaults.workload),
        }
    }

    fn set(&mut self, line: &str) -> anyhow::Result<()> {
        let (key, value) = line.split_once('=').context("it is no key=value")?;
        let value = value.trim();
        match key.trim() {
            "filename" => self.filenames = value.split(':').map(str::to_owned).collect(),
            "cpumask" => self.cores = Some(CoreMask::from_str(value).map_err(anyhow::Error::msg)?),
            "bs" => self.io_bytes = Some(parse_io_size(value).map_err(anyhow::Error::msg)?),
            "iodepth" => self.depth = Some(value.parse()?),
            "rwmixread" => self.read_percent = Some(parse_percent(value)?),
            "offset" => self.offset = Some(parse_extent(value)?),
            "length" => self.length = Some(parse_extent(value)?),
            "rw" => {
                let workload = Workload::from_str(value, false).map_err(anyhow::Error::msg)?;
                self.workload = Some(workload);
            }
            _ => bail!(
                "there is no such key; there are filename, cpumask, bs, iodepth, rwmixread, \
                 offset, length and rw"
            ),
        }
        Ok(())
    }
}

/// Blocks, as bdevperf has it, or bytes if there is a suffix.
fn parse_extent(value: &str) -> anyhow::Result<Extent> {
    if let Ok(blocks) = value.parse() {
        return Ok(Extent::Blocks(blocks));
    }
    let bytes = parse_size(value).map_err(anyhow::Error::msg)?;
    Ok(Extent::Bytes(bytes))
}

fn parse_percent(value: &str) -> anyhow::Result<u8> {
    let percent: u8 = value.parse()?;
    if percent > 100 {
        bail!("it is more than 100 percent");
    }
    Ok(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Vec<JobSection>> {
        super::parse(text, &JobSection::default())
    }

    #[test]
    fn sections_inherit_from_global_what_they_do_not_say() {
        let text = "[global]\nbs=4k\n# a comment\niodepth = 16\n[a]\nfilename=Malloc0\nrw=randread\n\
                    [b]\nfilename=Malloc1\nrw=rw\nrwmixread=30\nbs=128k\noffset=1M\nlength=200\ncpumask=0x2\n";
        let jobs = parse(text).unwrap();
        assert_eq!(jobs.len(), 2);
        assert_eq!((jobs[0].io_bytes, jobs[0].depth), (Some(4096), Some(16)));
        assert_eq!(jobs[0].workload, Some(Workload::RandRead));
        assert_eq!((jobs[1].io_bytes, jobs[1].depth), (Some(131_072), Some(16)));
        assert_eq!(
            (jobs[1].offset, jobs[1].length),
            (Some(Extent::Bytes(1 << 20)), Some(Extent::Blocks(200)))
        );
        assert_eq!(jobs[1].cores.as_ref().unwrap().to_hex(), "2");
    }

    #[test]
    fn a_second_global_changes_what_the_jobs_below_it_inherit() {
        let text = "[global]\nfilename=Malloc0:Malloc1\nbs=1024\n[A]\n[B]\nfilename=Malloc1\n\
                    [global]\nfilename=Malloc0\n[C]\nbs=4096\n";
        let jobs = parse(text).unwrap();
        let said: Vec<_> = jobs
            .iter()
            .map(|job| (job.filenames.join("+"), job.io_bytes))
            .collect();
        let expected = [
            ("Malloc0+Malloc1", 1024),
            ("Malloc1", 1024),
            ("Malloc0", 4096),
        ];
        assert_eq!(
            said,
            expected.map(|(names, bs)| (names.to_owned(), Some(bs)))
        );
    }

    #[test]
    fn the_command_line_goes_before_global_and_not_before_the_job() {
        let given = JobSection {
            depth: Some(7),
            io_bytes: Some(512),
            ..JobSection::default()
        };
        let text = "[global]\niodepth=3\nbs=8k\n[a]\nbs=4k\n";
        let jobs = super::parse(text, &given).unwrap();
        assert_eq!((jobs[0].depth, jobs[0].io_bytes), (Some(7), Some(4096)));
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        for (text, expected) in [
            ("bs=4k", "line 1: \"bs=4k\" belongs to no section"),
            ("[a]\ncolour=red", "line 2: \"colour=red\""),
            ("[a]\nrwmixread=101", "line 2"),
            ("[a]\nbs", "line 2"),
            ("[global]\nbs=4k", "no job"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
