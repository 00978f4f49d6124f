use std::collections::VecDeque;

use rnbd_base::{Errno, Progress};

use crate::io::IoDone;

/// What ended inside of a module and waits for the next poll, in order. Sized for the depth of
/// its channel, so that it never grows.
#[derive(Debug)]
pub(crate) struct Completions {
    ended: VecDeque<IoDone>,
}

impl Completions {
    pub(crate) fn new(depth: u32) -> Self {
        Self {
            ended: VecDeque::with_capacity(depth as usize),
        }
    }

    pub(crate) fn push(&mut self, tag: u64, result: Result<(), Errno>) {
        self.ended.push_back(IoDone { tag, result });
    }

    /// Moves as many as fit to `done`.
    pub(crate) fn drain_to(&mut self, done: &mut Vec<IoDone>) -> Progress {
        let spare = done.capacity() - done.len();
        let count = spare.min(self.ended.len());
        done.extend(self.ended.drain(..count));
        Progress::from_work(count > 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ended.is_empty()
    }
}
