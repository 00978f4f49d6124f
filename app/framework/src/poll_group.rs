use rnbd_base::CoreIndex;
use rnbd_reactor::{CpuTimes, Reactors, ThreadId};

/// What is polled on a core for the target, the initiator and the NBD servers.
#[derive(Debug)]
pub(crate) struct PollGroup {
    pub(crate) core: CoreIndex,
    pub(crate) thread: ThreadId,
    /// Of the CPU when the reactor started.
    pub(crate) cpu_times: CpuTimes,
}

impl PollGroup {
    pub(crate) fn new(reactors: &Reactors, core: CoreIndex) -> Self {
        let name = Self::name_of(core);
        Self {
            core,
            thread: reactors.create_thread(core, &name),
            // A /proc that does not tell makes these columns grow from zero, nothing else.
            cpu_times: CpuTimes::read(reactors.lcore(core)).unwrap_or_default(),
        }
    }

    /// The name of the light thread.
    pub(crate) fn name_of(core: CoreIndex) -> String {
        format!("poll_group_{:03}", core.0)
    }
}
