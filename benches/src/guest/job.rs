//! The requests of one ring, driven by one thread, for devices that answer each request.
//!
//! `run` -> `round`: harvest what has finished, submit what may start, publish once -> `wait`.

use std::time::Duration;

use super::options::Pace;
use super::ring::{Ring, Signals};
use super::slots::RingError;
use super::tally::{Counts, Tally};
use crate::clock::Clock;
use crate::control::{Control, Follower, Phase};

/// Requests in flight that never come back end a run after this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// What the requests are: owns the ring and its buffers.
pub trait Workload {
    /// The ring.
    fn ring(&mut self) -> &mut Ring;

    /// Requests that can be in flight; slots are counted from 0.
    fn depth(&self) -> u16;

    /// Puts the next request into the ring, in a slot that is free; `false` when there is nothing left to do.
    fn submit(&mut self, slot: u16) -> bool;

    /// The next finished request. Its slot is free again.
    fn harvest(&mut self) -> Result<Option<Finished>, RingError>;

    /// After the load, with nothing in flight: `true` when there is a second part to do as fast as it goes, not measured.
    fn begin_check(&mut self) -> bool {
        false
    }
}

/// One finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its slot.
    pub slot: u16,
    /// Bytes it moved.
    pub bytes: u64,
    /// The device's status byte, if that is an error.
    pub error: Option<u8>,
}

/// One queue's part of a run.
pub struct Job<W: Workload> {
    index: usize,
    workload: W,
    clock: Clock,
    pace: Pace,
    /// Sleeps when there is nothing to do.
    interrupt: bool,
    free: Vec<u16>,
    /// By slot: when the request in flight there counts as started.
    started: Vec<u64>,
    /// Requests that may still be started.
    budget: u64,
    due: Option<Schedule>,
    follower: Follower,
    /// Since the warm-up, or since the measurement began.
    live: Counts,
    live_since: u64,
    signals_before: Signals,
    tally: Tally,
}

/// Start times of an open-loop load, in ticks.
struct Schedule {
    next: u64,
    interval: u64,
}

/// How a job ended.
pub struct Outcome<W: Workload> {
    /// The ring, for an orderly detach, and what the workload has found out.
    pub workload: W,
    /// What was measured.
    pub tally: Tally,
    /// The device broke the rules of the ring.
    pub failure: Option<RingError>,
}

impl<W: Workload> Job<W> {
    /// The part of queue `index`; `interrupt`: sleeps when there is nothing to do.
    pub fn new(index: usize, workload: W, clock: Clock, pace: &Pace, interrupt: bool) -> Self {
        let depth = workload.depth();
        Self {
            index,
            workload,
            clock,
            pace: pace.clone(),
            interrupt,
            free: (0..depth).rev().collect(),
            started: vec![0; usize::from(depth)],
            budget: pace.requests.unwrap_or(u64::MAX),
            due: None,
            follower: Follower::default(),
            live: Counts::default(),
            live_since: 0,
            signals_before: Signals::default(),
            tally: Tally::default(),
        }
    }

    /// Runs until the supervisor says stop or the requests are used up.
    pub fn run(mut self, control: &Control) -> Outcome<W> {
        let now = self.clock.now();
        self.live_since = now;
        let interval = self.pace.rate.map(|rate| self.clock.ticks(1_000_000_000 / rate));
        self.due = interval.map(|interval| Schedule { next: now, interval });
        if !self.interrupt {
            self.workload.ring().suppress();
        }
        let failure = self.drive(control).err();
        if failure.is_some() {
            control.advance(Phase::Abort);
        }
        control.finish(self.index);
        Outcome { workload: self.workload, tally: self.tally, failure }
    }

    fn drive(&mut self, control: &Control) -> Result<(), RingError> {
        while self.follow(control) < Phase::Drain && !self.used_up() {
            self.round(control)?;
        }
        self.end_measurement();
        self.drain(control)?;
        if self.workload.begin_check() {
            (self.budget, self.due) = (u64::MAX, None);
            while control.phase() != Phase::Abort && !self.used_up() {
                self.round(control)?;
            }
        }
        Ok(())
    }

    /// One turn: harvest, submit, publish; waits when there was nothing to do.
    #[inline]
    fn round(&mut self, control: &Control) -> Result<(), RingError> {
        let harvested = self.harvest(control)?;
        if self.submit() > 0 {
            self.workload.ring().publish();
        } else if harvested == 0 {
            self.wait();
        }
        Ok(())
    }

    /// Collects finished requests; one clock reading serves the whole burst.
    #[inline]
    fn harvest(&mut self, control: &Control) -> Result<u32, RingError> {
        let Some(first) = self.workload.harvest()? else { return Ok(0) };
        let now = self.clock.now();
        self.complete(first, now, control);
        let mut count = 1;
        while let Some(finished) = self.workload.harvest()? {
            self.complete(finished, now, control);
            count += 1;
        }
        self.live.bursts += 1;
        control.report(self.index, self.tally.completed);
        Ok(count)
    }

    #[inline]
    fn complete(&mut self, finished: Finished, now: u64, control: &Control) {
        let Finished { slot, bytes, error } = finished;
        self.free.push(slot);
        self.tally.completed += 1;
        if let Some(status) = error {
            self.count_error(status, control);
        }
        self.live.operations += 1;
        self.live.bytes += bytes;
        let ticks = now.saturating_sub(self.started[usize::from(slot)]);
        self.live.latencies.record(self.clock.nanos(ticks));
    }

    #[cold]
    fn count_error(&mut self, status: u8, control: &Control) {
        self.tally.errors += 1;
        self.tally.first_error.get_or_insert(status);
        if !self.pace.continue_on_error {
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
        while self.budget > 0
            && let Some(&slot) = self.free.last()
            && let Some(started) = self.start_time(now)
        {
            if !self.workload.submit(slot) {
                self.budget = 0;
                break;
            }
            self.free.pop();
            self.budget -= 1;
            self.started[usize::from(slot)] = started;
            count += 1;
        }
        count
    }

    /// When the next request counts as started: now, or when it was due; `None` if it is not due yet.
    #[inline]
    fn start_time(&mut self, now: u64) -> Option<u64> {
        let Some(schedule) = &mut self.due else { return Some(now) };
        let due = schedule.next;
        (due <= now).then(|| {
            schedule.next += schedule.interval;
            due
        })
    }

    /// Nothing to do: spin, or sleep until an interrupt comes or the next request is due.
    #[inline]
    fn wait(&mut self) {
        if !self.interrupt {
            std::hint::spin_loop();
            return;
        }
        match &self.due {
            Some(schedule) if !self.free.is_empty() => {
                let ticks = schedule.next.saturating_sub(self.clock.now());
                let nanos = self.clock.nanos(ticks);
                self.workload.ring().sleep_at_most(Duration::from_nanos(nanos));
            }
            _ => self.workload.ring().sleep(),
        }
    }

    /// Everything that may be started has been, and nothing is in flight.
    #[inline]
    fn used_up(&self) -> bool {
        self.budget == 0 && self.free.len() == self.started.len()
    }

    /// Adopts the supervisor's phase; the measurement starts with it.
    #[inline]
    fn follow(&mut self, control: &Control) -> Phase {
        let (phase, begins) = self.follower.look(control);
        if begins {
            self.begin_measurement();
        }
        phase
    }

    fn begin_measurement(&mut self) {
        self.signals_before = self.signals();
        self.live = Counts::default();
        self.live_since = self.clock.now();
    }

    fn end_measurement(&mut self) {
        self.tally.seconds = self.clock.nanos(self.clock.now() - self.live_since) as f64 / 1e9;
        self.tally.counts = std::mem::take(&mut self.live);
        self.tally.signals = self.signals() - self.signals_before;
    }

    fn signals(&mut self) -> Signals {
        let ring = self.workload.ring();
        ring.drain_interrupts();
        ring.signals()
    }

    /// Waits for what is in flight.
    fn drain(&mut self, control: &Control) -> Result<(), RingError> {
        let deadline = self.clock.now() + self.clock.ticks(DRAIN_LIMIT.as_nanos() as u64);
        while self.free.len() < self.started.len() && control.phase() != Phase::Abort {
            if self.harvest(control)? == 0 {
                if self.clock.now() > deadline {
                    return Err(RingError::Timeout(DRAIN_LIMIT));
                }
                if self.interrupt {
                    self.workload.ring().sleep_at_most(Duration::from_millis(100));
                }
            }
        }
        Ok(())
    }
}
