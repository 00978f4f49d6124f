use clap::ValueEnum;

use crate::places::Order;

/// What is done to the devices, named as bdevperf names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Workload {
    /// Reads, one after the other
    Read,
    /// Writes, one after the other
    Write,
    /// Reads at random places
    RandRead,
    /// Writes at random places
    RandWrite,
    /// Reads and writes, one after the other
    Rw,
    /// Reads and writes at random places
    RandRw,
    /// Stamped writes and checked reads at random places, and a check of everything at the end
    Verify,
    /// Unmaps (trims), one after the other
    #[value(alias = "trim")]
    Unmap,
    /// Write-zeroes, one after the other
    #[value(name = "write_zeroes")]
    WriteZeroes,
    /// Flushes
    Flush,
}

/// One kind of I/O that a workload consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Read,
    Write,
    Unmap,
    WriteZeroes,
    Flush,
}

impl Workload {
    /// As on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Rw => "rw",
            Self::RandRw => "randrw",
            Self::Verify => "verify",
            Self::Unmap => "unmap",
            Self::WriteZeroes => "write_zeroes",
            Self::Flush => "flush",
        }
    }

    /// Whether places are random.
    pub(crate) fn is_random(self) -> bool {
        matches!(
            self,
            Self::RandRead | Self::RandWrite | Self::RandRw | Self::Verify
        )
    }

    /// Whether it has a share of reads that can be chosen.
    pub(crate) fn is_mixed(self) -> bool {
        matches!(self, Self::Rw | Self::RandRw | Self::Verify)
    }

    /// The order of its places, if no other was asked for.
    pub(crate) fn order(self) -> Order {
        match self.is_random() {
            true => Order::Uniform,
            false => Order::Sequential,
        }
    }

    /// Whether it changes the device.
    pub(crate) fn modifies(self) -> bool {
        !matches!(self, Self::Read | Self::RandRead | Self::Flush)
    }

    /// The next I/O's kind; `percent` is a random number below 100.
    pub(crate) fn action(self, read_percent: u8, percent: u8) -> Action {
        match self {
            Self::Read | Self::RandRead => Action::Read,
            Self::Write | Self::RandWrite => Action::Write,
            Self::Rw | Self::RandRw | Self::Verify if percent < read_percent => Action::Read,
            Self::Rw | Self::RandRw | Self::Verify => Action::Write,
            Self::Unmap => Action::Unmap,
            Self::WriteZeroes => Action::WriteZeroes,
            Self::Flush => Action::Flush,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_what_the_command_line_takes() {
        for workload in Workload::value_variants() {
            assert_eq!(Workload::from_str(workload.name(), false), Ok(*workload));
        }
        assert_eq!(Workload::from_str("trim", false), Ok(Workload::Unmap));
    }

    #[test]
    fn mixed_workloads_read_as_often_as_asked() {
        let reads = |read_percent| {
            (0..100)
                .filter(|&percent| Workload::RandRw.action(read_percent, percent) == Action::Read)
                .count()
        };
        assert_eq!([reads(0), reads(70), reads(100)], [0, 70, 100]);
    }
}
