//! The requests of one queue: which operation on which block, and whether what came back is right.

use super::access::{Blocks, Random};
use super::client::{Operation, Queue};
use super::options::{Load, Mix};
use super::verifier::{Expect, Verified, Verifier};
use super::wire::status;
use crate::guest::{Finished, Ring, RingError, Workload};

/// One queue's part of a load, on its own range of blocks.
pub struct Requests {
    queue: Queue,
    load: Load,
    blocks: Blocks,
    random: Random,
    verifier: Option<Verifier>,
    /// By slot.
    operations: Vec<Operation>,
    writes_since_flush: u32,
    /// Next block to read back, once the load is over.
    read_back: Option<u64>,
}

impl Requests {
    /// The part of queue `index`.
    pub fn new(index: usize, queue: Queue, load: &Load, blocks: Blocks) -> Self {
        let depth = queue.depth();
        let expect = if load.rw.writes() { Expect::Ledger } else { Expect::AnyWrite };
        let verifier = load.verify.then(|| Verifier::new(load.seed, expect, load.bs, blocks.range(), depth));
        Self {
            blocks,
            verifier,
            random: Random::new(load.seed.wrapping_add(index as u64)),
            operations: vec![Operation::Flush; usize::from(depth)],
            writes_since_flush: 0,
            read_back: None,
            load: load.clone(),
            queue,
        }
    }

    /// The queue, for an orderly detach, and the result of `--verify`.
    pub fn into_parts(self) -> (Queue, Verified) {
        (self.queue, self.verifier.map(Verifier::into_outcome).unwrap_or_default())
    }

    /// The next operation and the block it works on; `None` when there is nothing left to read back.
    #[inline]
    fn next_request(&mut self) -> Option<(Operation, u64)> {
        if self.read_back.is_some() {
            return self.next_read_back();
        }
        let operation = self.next_operation();
        if operation == Operation::Flush {
            return Some((operation, 0));
        }
        loop {
            let block = self.blocks.next(&mut self.random);
            if self.verifier.as_mut().is_none_or(|verifier| verifier.claim(block)) {
                return Some((operation, block));
            }
        }
    }

    #[inline]
    fn next_operation(&mut self) -> Operation {
        if self.load.fsync > 0 && self.writes_since_flush >= self.load.fsync {
            self.writes_since_flush = 0;
            return Operation::Flush;
        }
        let operation = match self.load.rw {
            Mix::Read | Mix::Randread => return Operation::Read,
            Mix::Flush => return Operation::Flush,
            Mix::Rw | Mix::Randrw if self.random.below(100) < u64::from(self.load.rwmixread) => {
                return Operation::Read;
            }
            Mix::Write | Mix::Randwrite | Mix::Rw | Mix::Randrw => Operation::Write,
            Mix::Trim | Mix::Randtrim => Operation::Discard,
            Mix::Zero | Mix::Randzero => Operation::WriteZeroes,
        };
        self.writes_since_flush += 1;
        operation
    }

    #[cold]
    fn next_read_back(&mut self) -> Option<(Operation, u64)> {
        let verifier = self.verifier.as_mut()?;
        let block = verifier.next_written(self.read_back?)?;
        verifier.claim(block);
        self.read_back = Some(block + 1);
        Some((Operation::Read, block))
    }
}

impl Workload for Requests {
    fn ring(&mut self) -> &mut Ring {
        &mut self.queue.requests.ring
    }

    fn depth(&self) -> u16 {
        self.queue.depth()
    }

    #[inline]
    fn submit(&mut self, slot: u16) -> bool {
        let Some((operation, block)) = self.next_request() else { return false };
        if let Some(verifier) = &mut self.verifier
            && operation != Operation::Flush
        {
            verifier.prepare(&self.queue, slot, operation, block);
        }
        self.operations[usize::from(slot)] = operation;
        self.queue.submit(slot, operation, block * self.load.bs, self.load.bs);
        true
    }

    #[inline]
    fn harvest(&mut self) -> Result<Option<Finished>, RingError> {
        let Some(completion) = self.queue.harvest()? else { return Ok(None) };
        let slot = completion.slot;
        let operation = self.operations[usize::from(slot)];
        let error = (completion.status != status::OK).then_some(completion.status);
        if let Some(verifier) = &mut self.verifier
            && operation != Operation::Flush
        {
            verifier.complete(&self.queue, slot, operation, error.is_none());
        }
        let moves = matches!(operation, Operation::Read | Operation::Write);
        Ok(Some(Finished { slot, bytes: if moves { self.load.bs } else { 0 }, error }))
    }

    /// Everything written is read back.
    fn begin_check(&mut self) -> bool {
        let check = self.verifier.is_some() && self.load.rw.writes();
        if check {
            self.read_back = Some(0);
        }
        check
    }
}
