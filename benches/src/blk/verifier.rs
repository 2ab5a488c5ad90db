//! Verification of one queue's requests: fills buffers before writes, checks buffers after reads.

use super::client::{Operation, Queue};
use super::verify::{Ledger, Mismatch, Pattern};

/// How many mismatches are kept for the report.
const KEPT: usize = 8;

/// What a read must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// What this run has written last; blocks it has not written are not checked.
    Ledger,
    /// Any whole block of this seed: what an earlier run has written.
    AnyWrite,
}

/// Book-keeping and contents of one queue under `--verify`.
#[derive(Debug)]
pub struct Verifier {
    pattern: Pattern,
    ledger: Ledger,
    expect: Expect,
    block: u64,
    /// Per slot: block number and the generation it is written with or must be read with.
    requests: Vec<(u64, u32)>,
    buffer: Vec<u8>,
    outcome: Verified,
}

/// Result of verification.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Blocks compared byte by byte.
    pub blocks: u64,
    /// Blocks that were wrong.
    pub wrong: u64,
    /// The first few of them.
    pub mismatches: Vec<Mismatch>,
}

impl Verified {
    /// Adds the result of another queue.
    pub fn merge(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.wrong += other.wrong;
        self.mismatches.extend(other.mismatches);
        self.mismatches.truncate(KEPT);
    }
}

impl Verifier {
    /// For a queue with `depth` slots that works on the blocks of `range`, each of `block` bytes.
    pub fn new(seed: u64, expect: Expect, block: u64, range: std::ops::Range<u64>, depth: u16) -> Self {
        Self {
            pattern: Pattern::new(seed, block as usize),
            ledger: Ledger::new(range),
            expect,
            block,
            requests: vec![(0, 0); usize::from(depth)],
            buffer: vec![0; block as usize],
            outcome: Verified::default(),
        }
    }

    /// Takes a block for a request; `false` while another request works on it.
    pub fn claim(&mut self, block: u64) -> bool {
        self.ledger.claim(block)
    }

    /// Prepares the buffer of `slot` for a request on a claimed block.
    pub fn prepare(&mut self, queue: &Queue, slot: u16, operation: Operation, block: u64) {
        let mut generation = self.ledger.generation(block);
        if operation == Operation::Write {
            generation += 1;
            queue.write_data(slot, self.pattern.contents(block * self.block, generation));
        } else {
            // A device that completes without reading must not find the right bytes there already.
            self.buffer.fill(0xa5);
            queue.write_data(slot, &self.buffer);
        }
        self.requests[usize::from(slot)] = (block, generation);
    }

    /// A prepared request has ended; `ok`: without an error.
    pub fn complete(&mut self, queue: &Queue, slot: u16, operation: Operation, ok: bool) {
        let (block, generation) = self.requests[usize::from(slot)];
        match operation {
            Operation::Write if ok => self.ledger.set_generation(block, generation),
            Operation::Read if ok => self.check(queue, slot, block, generation),
            _ => {}
        }
        self.ledger.release(block);
    }

    fn check(&mut self, queue: &Queue, slot: u16, block: u64, generation: u32) {
        queue.copy_data(slot, &mut self.buffer);
        let expected = match self.expect {
            Expect::Ledger if generation == 0 => return,
            Expect::Ledger => generation,
            Expect::AnyWrite => self.pattern.generation_of(&self.buffer).unwrap_or(1),
        };
        self.outcome.blocks += 1;
        if let Err(mismatch) = self.pattern.check(block * self.block, expected, &self.buffer) {
            self.outcome.wrong += 1;
            if self.outcome.mismatches.len() < KEPT {
                self.outcome.mismatches.push(mismatch);
            }
        }
    }

    /// The next block written in this run at or behind `from`.
    pub fn next_written(&self, from: u64) -> Option<u64> {
        self.ledger.next_written(from)
    }

    /// The result.
    pub fn into_outcome(self) -> Verified {
        self.outcome
    }
}
