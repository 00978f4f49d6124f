use std::fs;
use std::io;

/// What the kernel says a CPU spent its time on, in jiffies since boot (`/proc/stat`). These are
/// the members `usr`, `sys` and `irq` of `framework_get_reactors`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// User mode.
    pub usr: u64,
    /// Kernel mode.
    pub sys: u64,
    /// Hardware interrupts.
    pub irq: u64,
}

impl CpuTimes {
    /// The times of CPU `lcore`. Reads a file: for the control thread only.
    ///
    /// # Errors
    /// If `/proc/stat` cannot be read or lists no such CPU.
    pub fn read(lcore: u32) -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::parse(&text, lcore).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("/proc/stat lists no CPU {lcore}"),
            )
        })
    }

    fn parse(text: &str, lcore: u32) -> Option<Self> {
        let label = format!("cpu{lcore}");
        let line = text
            .lines()
            .find(|line| line.split_ascii_whitespace().next() == Some(&label))?;
        let mut fields = line
            .split_ascii_whitespace()
            .skip(1)
            .map_while(|field| field.parse::<u64>().ok());
        // user nice system idle iowait irq …
        Some(Self {
            usr: fields.next()?,
            sys: fields.nth(1)?,
            irq: fields.nth(2)?,
        })
    }

    /// What was added since `start`.
    #[must_use]
    pub fn since(self, start: Self) -> Self {
        Self {
            usr: self.usr.saturating_sub(start.usr),
            sys: self.sys.saturating_sub(start.sys),
            irq: self.irq.saturating_sub(start.irq),
        }
    }
}

/// The NUMA node of CPU `lcore`, or 0 where the kernel knows no nodes.
#[must_use]
pub fn numa_node(lcore: u32) -> i32 {
    let Ok(entries) = fs::read_dir(format!("/sys/devices/system/cpu/cpu{lcore}")) else {
        return 0;
    };
    entries
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("node")?.parse().ok()
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  9 9 9 9 9 9 9 9 9 9\n\
        cpu1 10 20 30 40 50 60 70 80 0 0\n\
        cpu12 1 2 3 4 5 6 7 0 0 0\n\
        cpu2 1 2\nintr 5\n";

    #[test]
    fn the_line_of_the_cpu_is_found_and_its_columns_named() {
        let expected = CpuTimes {
            usr: 10,
            sys: 30,
            irq: 60,
        };
        assert_eq!(CpuTimes::parse(STAT, 1), Some(expected));
        assert_eq!(CpuTimes::parse(STAT, 12).map(|times| times.irq), Some(6));
        assert_eq!(CpuTimes::parse(STAT, 2), None);
        assert_eq!(CpuTimes::parse(STAT, 0), None);
    }

    #[test]
    fn the_running_kernel_lists_its_cpus() {
        let core = crate::CoreMask::available()
            .unwrap()
            .cores()
            .next()
            .unwrap();
        let first = CpuTimes::read(core).unwrap();
        let later = CpuTimes::read(core).unwrap();
        assert!(later.usr >= first.usr);
        assert!(CpuTimes::read(1023).is_err());
        assert!(numa_node(core) >= 0);
    }
}
