//! What the blocks of a disk may contain.
//!
//! Every write has a generation, and a written block says which it is and where it belongs. A
//! block whose last change ended well has exactly that content; one whose change is on its way, or
//! failed, may have the old or the new one, until a read shows which. A read may return what the
//! block could contain at any time between its submission and its end, and nothing else.
//!
//! A disk with a volatile cache may fall back, when its power fails, to any content that a block
//! had since the last flush, or since the last write that was to be durable by itself.

use std::ops::Range;

/// What a block contains, as far as one can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only zeroes.
    Zeroes,
    /// All of the write of this generation.
    Written(u64),
}

/// What a read found that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(pub String);

/// One block.
#[derive(Clone, Debug)]
struct Block {
    /// What it may contain if nothing is on its way.
    possible: Vec<Content>,
    /// What it contained before and may contain again after a power failure, and when that was
    /// superseded.
    unflushed: Vec<(u64, Content)>,
    /// What is on its way.
    coming: Option<Content>,
    /// The power failed since: what is on its way may have come and gone.
    is_shaken: bool,
    /// A change that failed may still happen.
    is_haunted: bool,
    /// Counts beginnings and ends of changes.
    version: u64,
}

impl Block {
    /// From now on it has one of these.
    fn become_one_of(&mut self, contents: Vec<Content>, clock: u64) {
        for old in std::mem::replace(&mut self.possible, contents) {
            if !self.possible.contains(&old) {
                self.unflushed.push((clock, old));
            }
        }
    }
}

/// Names a flush on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushId(u64);

/// How a change has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It may have happened or not.
    Unknown,
    /// It may have happened or not, or happen until another change has ended: its path is lost,
    /// and reads over others do not wait for the fence.
    Lingering,
    /// It has happened.
    Done,
    /// It has happened and outlives a power failure.
    Durable,
}

/// A read on its way.
#[derive(Clone, Debug)]
struct Read {
    blocks: Range<u64>,
    allowed: Vec<Vec<Content>>,
    versions: Vec<u64>,
}

/// Names a read of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadId(usize);

/// A disk.
#[derive(Clone, Debug)]
pub struct DiskModel {
    id: u16,
    block_size: usize,
    blocks: Vec<Block>,
    reads: Vec<Option<Read>>,
    generation: u64,
    /// Counts whatever contents and flushes are ordered by.
    clock: u64,
}

impl DiskModel {
    /// A disk of zeroes. `id` is written into its blocks.
    #[must_use]
    pub fn new(id: u16, block_size: usize, num_blocks: usize) -> Self {
        let block = Block {
            possible: vec![Content::Zeroes],
            unflushed: Vec::new(),
            coming: None,
            is_shaken: false,
            is_haunted: false,
            version: 0,
        };
        Self {
            id,
            block_size,
            blocks: vec![block; num_blocks],
            reads: Vec::new(),
            generation: 0,
            clock: 0,
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// A content that was never written.
    pub fn next_write(&mut self) -> Content {
        self.generation += 1;
        Content::Written(self.generation)
    }

    /// Whether no change is on its way to any of the blocks. Changes of one block are not to
    /// overlap: a disk gives them no order.
    #[must_use]
    pub fn is_unchanging(&self, blocks: Range<u64>) -> bool {
        self.of(blocks).iter().all(|block| block.coming.is_none())
    }

    /// A change was submitted.
    pub fn begin_change(&mut self, blocks: Range<u64>, content: Content) {
        for at in blocks.clone() {
            let block = self.block_mut(at);
            block.coming = Some(content);
            block.is_shaken = false;
            block.version += 1;
        }
        self.allow(blocks, content);
    }

    /// Reads on their way may see this.
    fn allow(&mut self, blocks: Range<u64>, content: Content) {
        for read in self.reads.iter_mut().flatten() {
            let first = read.blocks.start;
            for at in overlap(&read.blocks, &blocks) {
                add(&mut read.allowed[index(at - first)], content);
            }
        }
    }

    /// A change has ended.
    pub fn end_change(&mut self, blocks: Range<u64>, how: Change) {
        self.clock += 1;
        let clock = self.clock;
        for at in blocks {
            let block = self.block_mut(at);
            block.version += 1;
            let Some(content) = block.coming.take() else {
                continue;
            };
            let is_certain = !block.is_shaken || how == Change::Durable;
            block.is_haunted |= how == Change::Lingering;
            if matches!(how, Change::Done | Change::Durable) && is_certain {
                block.become_one_of(vec![content], clock);
                block.is_haunted = false;
            } else {
                add(&mut block.possible, content);
            }
            if how == Change::Durable {
                block.unflushed.clear();
            }
        }
    }

    /// A flush was submitted.
    pub fn begin_flush(&mut self) -> FlushId {
        self.clock += 1;
        FlushId(self.clock)
    }

    /// A flush has ended well: what was superseded before it began does not come back.
    pub fn end_flush(&mut self, id: FlushId) {
        for block in &mut self.blocks {
            block.unflushed.retain(|&(at, _)| at > id.0);
        }
    }

    /// The disk lost what was only in its cache, or some of it.
    pub fn lose_power(&mut self) {
        for at in 0..self.num_blocks() {
            let block = self.block_mut(at);
            block.is_shaken = true;
            let old = std::mem::take(&mut block.unflushed);
            if old.is_empty() && block.possible.len() == 1 {
                continue;
            }
            // What a read on its way saw before shows nothing of what is there now.
            block.version += 1;
            for (_, content) in old {
                add(&mut self.block_mut(at).possible, content);
                self.allow(at..at + 1, content);
            }
        }
    }

    /// A read was submitted.
    pub fn begin_read(&mut self, blocks: Range<u64>) -> ReadId {
        let allowed = |block: &Block| {
            let mut allowed = block.possible.clone();
            if let Some(coming) = block.coming {
                add(&mut allowed, coming);
            }
            allowed
        };
        let read = Read {
            allowed: self.of(blocks.clone()).iter().map(allowed).collect(),
            versions: self.of(blocks.clone()).iter().map(|b| b.version).collect(),
            blocks,
        };
        let free = self.reads.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.reads.push(None);
            self.reads.len() - 1
        });
        self.reads[at] = Some(read);
        ReadId(at)
    }

    /// A read failed.
    pub fn fail_read(&mut self, id: ReadId) {
        self.reads[id.0] = None;
    }

    /// A read has ended with these bytes. What it shows of a block that nothing changed meanwhile
    /// holds from now on.
    ///
    /// # Errors
    /// What it shows that cannot be.
    ///
    /// # Panics
    /// If there is no such read, or it is not of that many bytes.
    pub fn end_read(&mut self, id: ReadId, bytes: &[u8]) -> Result<(), Mismatch> {
        let read = self.reads[id.0].take().expect("a read ends once");
        self.clock += 1;
        let clock = self.clock;
        assert_eq!(bytes.len(), read.allowed.len() * self.block_size);
        for (nth, at) in read.blocks.clone().enumerate() {
            let part = &bytes[nth * self.block_size..][..self.block_size];
            let found = self.decode(at, part)?;
            if !read.allowed[nth].contains(&found) {
                return Err(Mismatch(format!(
                    "disk {} block {at} has {found:?}, but may have only {:?}",
                    self.id, read.allowed[nth]
                )));
            }
            let block = self.block_mut(at);
            let is_settled = block.coming.is_none() && !block.is_haunted;
            if is_settled && block.version == read.versions[nth] {
                block.become_one_of(vec![found], clock);
            }
        }
        Ok(())
    }

    /// Whoever did I/O is gone: what was on its way may have happened or not.
    pub fn abandon(&mut self) {
        self.reads.clear();
        for block in &mut self.blocks {
            block.is_haunted = false;
            if let Some(content) = block.coming.take() {
                block.version += 1;
                add(&mut block.possible, content);
            }
        }
    }

    /// The bytes of a block with this content.
    pub fn encode(&self, at: u64, content: Content, bytes: &mut [u8]) {
        match content {
            Content::Zeroes => bytes.fill(0),
            Content::Written(generation) => {
                for (nth, line) in bytes.chunks_exact_mut(LINE).enumerate() {
                    line.copy_from_slice(&line_of(self.id, at, generation, nth));
                }
            }
        }
    }

    fn decode(&self, at: u64, bytes: &[u8]) -> Result<Content, Mismatch> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(Content::Zeroes);
        }
        let generation = word(bytes, 2);
        let is_whole = bytes
            .chunks_exact(LINE)
            .enumerate()
            .all(|(nth, line)| line == line_of(self.id, at, generation, nth));
        if is_whole {
            return Ok(Content::Written(generation));
        }
        Err(Mismatch(format!(
            "disk {} block {at} is torn, damaged or of another place: it begins with disk {:#x}, \
             block {}, generation {generation}",
            self.id,
            word(bytes, 0),
            word(bytes, 1),
        )))
    }

    fn of(&self, blocks: Range<u64>) -> &[Block] {
        &self.blocks[index(blocks.start)..index(blocks.end)]
    }

    fn block_mut(&mut self, at: u64) -> &mut Block {
        &mut self.blocks[index(at)]
    }
}

const LINE: usize = 32;
const MAGIC: u64 = 0x5EED_0000_0000_0000;

/// 32 bytes: disk, block, generation, and the line's own number.
fn line_of(id: u16, at: u64, generation: u64, nth: usize) -> [u8; LINE] {
    let mut line = [0; LINE];
    let words = [MAGIC | u64::from(id), at, generation, nth as u64];
    for (to, word) in line.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    line
}

fn word(bytes: &[u8], nth: usize) -> u64 {
    let word = bytes[nth * 8..].first_chunk();
    word.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn index(block: u64) -> usize {
    usize::try_from(block).expect("simulated disks are small")
}

fn add(contents: &mut Vec<Content>, content: Content) {
    if !contents.contains(&content) {
        contents.push(content);
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

#[cfg(test)]
mod tests;
