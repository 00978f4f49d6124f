//! Job files, in fio's way: sections of `key=value`, `[global]` for what all have in common.

use std::str::FromStr;

use anyhow::{Context, bail};
use clap::ValueEnum;
use rnbd_reactor::CoreMask;

use crate::size::{parse_io_size, parse_size};
use crate::workload::Workload;

/// One section; what it leaves out comes from `[global]`, or else from the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobSection {
    pub(crate) name: String,
    pub(crate) filename: Option<String>,
    pub(crate) cores: Option<CoreMask>,
    pub(crate) io_bytes: Option<u32>,
    pub(crate) depth: Option<u32>,
    pub(crate) read_percent: Option<u8>,
    pub(crate) offset_bytes: Option<u64>,
    pub(crate) length_bytes: Option<u64>,
    pub(crate) workload: Option<Workload>,
}

/// The jobs in `text`, in their order.
///
/// # Errors
/// The first line that means nothing.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<JobSection>> {
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
                let name = name.to_owned();
                jobs.push(JobSection {
                    name,
                    ..global.clone()
                });
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
    fn set(&mut self, line: &str) -> anyhow::Result<()> {
        let (key, value) = line.split_once('=').context("it is no key=value")?;
        let value = value.trim();
        match key.trim() {
            "filename" => self.filename = Some(value.to_owned()),
            "cpumask" => self.cores = Some(CoreMask::from_str(value).map_err(anyhow::Error::msg)?),
            "bs" => self.io_bytes = Some(parse_io_size(value).map_err(anyhow::Error::msg)?),
            "iodepth" => self.depth = Some(value.parse()?),
            "rwmixread" => self.read_percent = Some(parse_percent(value)?),
            "offset" => self.offset_bytes = Some(parse_size(value).map_err(anyhow::Error::msg)?),
            "length" => self.length_bytes = Some(parse_size(value).map_err(anyhow::Error::msg)?),
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

    #[test]
    fn sections_inherit_from_global_what_they_do_not_say() {
        let text = "[global]\nbs=4k\n# a comment\niodepth = 16\n[a]\nfilename=Malloc0\nrw=randread\n\
                    [b]\nfilename=Malloc1\nrw=rw\nrwmixread=30\nbs=128k\noffset=1M\nlength=2M\ncpumask=0x2\n";
        let jobs = parse(text).unwrap();
        assert_eq!(jobs.len(), 2);
        assert_eq!((jobs[0].io_bytes, jobs[0].depth), (Some(4096), Some(16)));
        assert_eq!(jobs[0].workload, Some(Workload::RandRead));
        assert_eq!((jobs[1].io_bytes, jobs[1].depth), (Some(131_072), Some(16)));
        assert_eq!(
            (jobs[1].offset_bytes, jobs[1].length_bytes),
            (Some(1 << 20), Some(2 << 20))
        );
        assert_eq!(jobs[1].cores.as_ref().unwrap().to_hex(), "2");
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
