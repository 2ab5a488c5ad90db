//! The load on one queue, driven by one thread.
//!
//! `run` -> `round`: harvest what has finished, submit what may start, publish once -> `wait`.

use std::time::Duration;

use super::access::{Blocks, Random};
use super::client::{Completion, Operation, Queue, QueueError, Signals};
use super::options::{Load, Mix};
use super::verifier::{Expect, Verified, Verifier};
use super::wire::status;
use crate::clock::Clock;
use crate::control::{Control, Phase};
use crate::latency::Latencies;

/// Requests in flight that never come back end a run after this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// One queue's part of a run.
pub struct Job {
    index: usize,
    queue: Queue,
    clock: Clock,
    load: Load,
    blocks: Blocks,
    random: Random,
    verifier: Option<Verifier>,
    free: Vec<u16>,
    requests: Vec<Request>,
    /// Requests that may still be started.
    budget: u64,
    writes_since_flush: u32,
    due: Option<Schedule>,
    /// Next block to read back, once the load is over.
    read_back: Option<u64>,
    phase: Phase,
    /// Since the warm-up, or since the measurement began.
    live: Counts,
    live_since: u64,
    signals_before: Signals,
    tally: Tally,
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Request {
    operation: Operation,
    started: u64,
}

/// Start times of an open-loop load, in ticks.
struct Schedule {
    next: u64,
    interval: u64,
}

/// Requests completed in a span of time.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests.
    pub operations: u64,
    /// Bytes read and written by them.
    pub bytes: u64,
    /// Their latencies.
    pub latencies: Latencies,
    /// Bursts they were harvested in.
    pub bursts: u64,
}

/// What one queue has measured.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests of the measured time.
    pub counts: Counts,
    /// Notifications in the measured time.
    pub signals: Signals,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Requests the device refused, over the whole run.
    pub errors: u64,
    /// Status byte of the first of them.
    pub first_error: Option<u8>,
    /// Requests over the whole run.
    pub completed: u64,
    /// Result of `--verify`.
    pub verified: Verified,
}

/// How a job ended.
pub struct Outcome {
    /// The queue, for an orderly detach.
    pub queue: Queue,
    /// What it measured.
    pub tally: Tally,
    /// The device broke the rules of the ring.
    pub failure: Option<QueueError>,
}

impl Job {
    /// The part of queue `index`, on its own range of blocks.
    pub fn new(index: usize, queue: Queue, clock: Clock, load: &Load, blocks: Blocks) -> Self {
        let depth = queue.depth();
        let expect = if load.rw.writes() { Expect::Ledger } else { Expect::AnyWrite };
        let verifier = load.verify.then(|| Verifier::new(load.seed, expect, load.bs, blocks.range(), depth));
        let idle = Request { operation: Operation::Flush, started: 0 };
        Self {
            index,
            clock,
            blocks,
            verifier,
            random: Random::new(load.seed.wrapping_add(index as u64)),
            free: (0..depth).rev().collect(),
            requests: vec![idle; usize::from(depth)],
            budget: load.number_ios.unwrap_or(u64::MAX),
            writes_since_flush: 0,
            due: None,
            read_back: None,
            phase: Phase::Warmup,
            live: Counts::default(),
            live_since: 0,
            signals_before: Signals::default(),
            tally: Tally::default(),
            load: load.clone(),
            queue,
        }
    }

    /// Runs until the supervisor says stop or the requests are used up.
    pub fn run(mut self, control: &Control) -> Outcome {
        let now = self.clock.now();
        self.live_since = now;
        self.due = self
            .load
            .rate
            .map(|rate| Schedule { next: now, interval: self.clock.ticks(1_000_000_000 / rate) });
        if !self.load.rings.interrupt {
            self.queue.suppress_interrupts();
        }
        let failure = self.drive(control).err();
        if failure.is_some() {
            control.advance(Phase::Abort);
        }
        control.finish(self.index);
        self.tally.verified = self.verifier.take().map(Verifier::into_outcome).unwrap_or_default();
        Outcome { queue: self.queue, tally: self.tally, failure }
    }

    fn drive(&mut self, control: &Control) -> Result<(), QueueError> {
        while self.follow(control) < Phase::Drain && !self.used_up() {
            self.round(control)?;
        }
        self.end_measurement();
        self.drain(control)?;
        if self.verifier.is_some() && self.load.rw.writes() {
            self.read_back = Some(0);
            self.budget = u64::MAX;
            while control.phase() != Phase::Abort && !self.used_up() {
                self.round(control)?;
            }
        }
        Ok(())
    }

    /// One turn: harvest, submit, publish; waits when there was nothing to do.
    #[inline]
    fn round(&mut self, control: &Control) -> Result<(), QueueError> {
        let harvested = self.harvest(control)?;
        if self.submit() > 0 {
            self.queue.publish();
        } else if harvested == 0 {
            self.wait();
        }
        Ok(())
    }

    /// Collects finished requests; one clock reading serves the whole burst.
    #[inline]
    fn harvest(&mut self, control: &Control) -> Result<u32, QueueError> {
        let Some(first) = self.queue.harvest()? else { return Ok(0) };
        let now = self.clock.now();
        self.complete(first, now, control);
        let mut count = 1;
        while let Some(completion) = self.queue.harvest()? {
            self.complete(completion, now, control);
            count += 1;
        }
        self.live.bursts += 1;
        control.report(self.index, self.tally.completed);
        Ok(count)
    }

    #[inline]
    fn complete(&mut self, completion: Completion, now: u64, control: &Control) {
        let slot = completion.slot;
        let request = self.requests[usize::from(slot)];
        let ok = completion.status == status::OK;
        if let Some(verifier) = &mut self.verifier
            && request.operation != Operation::Flush
        {
            verifier.complete(&self.queue, slot, request.operation, ok);
        }
        self.free.push(slot);
        self.tally.completed += 1;
        if !ok {
            self.count_error(completion.status, control);
        }
        self.live.operations += 1;
        if matches!(request.operation, Operation::Read | Operation::Write) {
            self.live.bytes += self.load.bs;
        }
        self.live.latencies.record(self.clock.nanos(now.saturating_sub(request.started)));
    }

    #[cold]
    fn count_error(&mut self, status: u8, control: &Control) {
        self.tally.errors += 1;
        self.tally.first_error.get_or_insert(status);
        if !self.load.continue_on_error {
            control.advance(Phase::Drain);
        }
    }

    /// Starts what may start now; returns how many requests that were.
    #[inline]
    fn submit(&mut self) -> u32 {
        if self.free.is_empty() {
            return 0;
        }
        let now = self.clock.now();
        let mut count = 0;
        while let Some(&slot) = self.free.last() {
            let Some(started) = self.start_time(now) else { break };
            let Some((operation, block)) = self.next_request() else { break };
            self.free.pop();
            self.budget -= 1;
            if let Some(verifier) = &mut self.verifier
                && operation != Operation::Flush
            {
                verifier.prepare(&self.queue, slot, operation, block);
            }
            self.requests[usize::from(slot)] = Request { operation, started };
            self.queue.submit(slot, operation, block * self.load.bs, self.load.bs);
            count += 1;
        }
        count
    }

    /// When the next request counts as started: now, or when it was due; `None` if it is not due yet.
    #[inline]
    fn start_time(&mut self, now: u64) -> Option<u64> {
        if self.budget == 0 {
            return None;
        }
        match &mut self.due {
            Some(schedule) if self.read_back.is_none() => {
                let due = schedule.next;
                (due <= now).then(|| {
                    schedule.next += schedule.interval;
                    due
                })
            }
            _ => Some(now),
        }
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
        let Some(block) = verifier.next_written(self.read_back?) else {
            self.budget = 0;
            return None;
        };
        verifier.claim(block);
        self.read_back = Some(block + 1);
        Some((Operation::Read, block))
    }

    /// Nothing to do: spin, or sleep until an interrupt comes or the next request is due.
    #[inline]
    fn wait(&mut self) {
        if !self.load.rings.interrupt {
            std::hint::spin_loop();
            return;
        }
        match &self.due {
            Some(schedule) if !self.free.is_empty() => {
                let ticks = schedule.next.saturating_sub(self.clock.now());
                self.queue.sleep_at_most(Duration::from_nanos(self.clock.nanos(ticks)));
            }
            _ => self.queue.sleep(),
        }
    }

    /// Everything that may be started has been, and nothing is in flight.
    #[inline]
    fn used_up(&self) -> bool {
        self.budget == 0 && self.free.len() == self.requests.len()
    }

    /// Adopts the supervisor's phase; the measurement starts with it.
    #[inline]
    fn follow(&mut self, control: &Control) -> Phase {
        let phase = control.phase();
        if phase != self.phase {
            if phase == Phase::Measure {
                self.begin_measurement();
            }
            self.phase = phase;
        }
        phase
    }

    fn begin_measurement(&mut self) {
        self.queue.drain_interrupts();
        self.signals_before = self.queue.signals();
        self.live = Counts::default();
        self.live_since = self.clock.now();
    }

    fn end_measurement(&mut self) {
        self.tally.seconds = self.clock.nanos(self.clock.now() - self.live_since) as f64 / 1e9;
        self.tally.counts = std::mem::take(&mut self.live);
        self.queue.drain_interrupts();
        let (now, before) = (self.queue.signals(), self.signals_before);
        self.tally.signals =
            Signals { kicks: now.kicks - before.kicks, interrupts: now.interrupts - before.interrupts };
    }

    /// Waits for what is in flight.
    fn drain(&mut self, control: &Control) -> Result<(), QueueError> {
        let deadline = self.clock.now() + self.clock.ticks(DRAIN_LIMIT.as_nanos() as u64);
        while self.free.len() < self.requests.len() && control.phase() != Phase::Abort {
            if self.harvest(control)? == 0 {
                if self.clock.now() > deadline {
                    return Err(QueueError::Timeout(DRAIN_LIMIT));
                }
                if self.load.rings.interrupt {
                    self.queue.sleep_at_most(Duration::from_millis(100));
                }
            }
        }
        Ok(())
    }
}
