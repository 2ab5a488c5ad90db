//! The load of one thread: frames sent as fast as they go, or at a rate, and taken in at the other end.
//!
//! `run` -> `round`: receive on every lane, send on every lane that sends -> `wait`.

use std::os::fd::RawFd;
use std::time::Duration;

use super::client::RingError;
use super::host::Sender;
use super::lane::{Lane, Verified};
use super::ledger::Seen;
use super::options::{Load, Mode};
use super::outage::Outage;
use crate::clock::Clock;
use crate::control::{Control, Follower, Phase};
use crate::guest::Signals;
use crate::latency::Latencies;
use crate::wait;

/// After the load, frames under way are waited for until nothing has come for so long.
const QUIET: Duration = Duration::from_millis(100);
/// Frames that have not come for so long no longer count as under way.
const WRITE_OFF: Duration = Duration::from_millis(20);
/// A thread that sleeps looks at the phase so often.
const NAP: Duration = Duration::from_millis(100);

/// One thread's part of a run.
pub struct Job {
    pub(super) index: usize,
    pub(super) lanes: Vec<Lane>,
    /// Sends on the host's end of the uplink.
    pub(super) sender: Option<Sender>,
    pub(super) clock: Clock,
    pub(super) load: Load,
    due: Option<Schedule>,
    budget: u64,
    /// Frames sent that have not arrived, as far as this thread knows.
    under_way: u64,
    last_arrival: u64,
    follower: Follower,
    pub(super) live: Counts,
    live_since: u64,
    signals_before: Signals,
    pub(super) tally: Tally,
}

/// Start times of an open-loop load, in ticks.
struct Schedule {
    next: u64,
    interval: u64,
}

/// What happened in a span of time.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Frames put into transmit rings.
    pub sent: u64,
    /// Frames that the backend gave back.
    pub taken: u64,
    /// Frames received.
    pub received: u64,
    /// Bytes of frames received.
    pub bytes: u64,
    /// Rounds in which frames were received or given back.
    pub bursts: u64,
    /// Ticks spent in rounds that had something to do.
    pub busy: u64,
    /// Longest time without an arrival between two of them, in ticks.
    pub silence: u64,
    /// Round trips.
    pub latencies: Latencies,
}

/// What one thread has measured.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// What happened in the measured time.
    pub counts: Counts,
    /// Notifications in the measured time.
    pub signals: Signals,
    /// Measured time in seconds.
    pub seconds: f64,
    /// The share of it that the driver was busy.
    pub busy: f64,
    /// Longest time without an arrival in seconds.
    pub silence: f64,
    /// Frames sent over the whole run.
    pub sent: u64,
    /// Frames seen over the whole run.
    pub seen: Seen,
    /// Result of `--verify`.
    pub verified: Verified,
    /// Round trips that never ended.
    pub timeouts: u64,
}

/// How a job ended.
pub struct Outcome {
    /// The lanes, for an orderly detach.
    pub lanes: Vec<Lane>,
    /// What it measured.
    pub tally: Tally,
    /// The device broke the rules of the ring.
    pub failure: Option<RingError>,
}

/// Tells the supervisor that a thread has ended, whatever ended it.
struct Farewell<'a> {
    index: usize,
    control: &'a Control,
    outage: &'a Outage,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.control.finish(self.index);
        self.outage.leave();
    }
}

impl Job {
    /// The part of thread `index`, which drives one queue pair of each guest.
    pub fn new(index: usize, lanes: Vec<Lane>, sender: Option<Sender>, clock: Clock, load: &Load) -> Self {
        Self {
            index,
            lanes,
            sender,
            clock,
            load: load.clone(),
            due: None,
            budget: load.packets.unwrap_or(u64::MAX),
            under_way: 0,
            last_arrival: 0,
            follower: Follower::default(),
            live: Counts::default(),
            live_since: 0,
            signals_before: Signals::default(),
            tally: Tally::default(),
        }
    }

    /// Runs until the supervisor says stop or the frames are used up.
    pub fn run(mut self, control: &Control, outage: &Outage) -> Outcome {
        let _farewell = Farewell { index: self.index, control, outage };
        let failure = self.drive(control, outage).err();
        if failure.is_some() {
            control.advance(Phase::Abort);
        }
        self.tally.sent = self.lanes.iter().map(|lane| lane.pair.transmit.sent()).sum();
        self.tally.sent += self.sender.as_ref().map_or(0, Sender::sent);
        for lane in &self.lanes {
            self.tally.seen += lane.inbox.seen();
            let verified = lane.inbox.verified();
            self.tally.verified.frames += verified.frames;
            self.tally.verified.wrong += verified.wrong;
            self.tally.verified.mismatches.extend(verified.mismatches);
        }
        Outcome { lanes: self.lanes, tally: self.tally, failure }
    }

    fn drive(&mut self, control: &Control, outage: &Outage) -> Result<(), RingError> {
        self.prepare()?;
        if self.load.mode == Mode::Ping {
            self.ping_pong(control, outage)?;
            self.end_measurement();
            return Ok(());
        }
        while self.follow(control) < Phase::Drain && !self.used_up() {
            if outage.hold(self.index, || self.bases()) {
                self.resume();
            }
            if !self.round(true)? {
                self.wait();
            }
            control.report(self.index, self.live.received.max(self.live.taken));
        }
        self.end_measurement();
        self.drain(control, outage)
    }

    /// Switches off interrupts where the driver polls, and lets switches learn where the guests are.
    fn prepare(&mut self) -> Result<(), RingError> {
        for lane in &mut self.lanes {
            lane.pair.transmit.ring.suppress();
            lane.pair.receive.ring.suppress();
            if self.index == 0 && self.load.mode != Mode::Loopback {
                lane.announce()?;
            }
        }
        let now = self.clock.now();
        (self.live_since, self.last_arrival) = (now, now);
        self.due = self
            .load
            .rate
            .map(|rate| Schedule { next: now, interval: self.clock.ticks(1_000_000_000 / rate) });
        Ok(())
    }

    /// Frames that were not sent while there was no backend are not owed: sent all at once they would only be dropped.
    fn resume(&mut self) {
        if let Some(schedule) = &mut self.due {
            schedule.next = self.clock.now();
        }
    }

    /// Where each ring of this thread goes on after the backend's death: receive and transmit ring of each lane.
    pub(super) fn bases(&self) -> Vec<[u32; 2]> {
        let of = |lane: &Lane| {
            [lane.pair.receive.ring.base_for_restart(), lane.pair.transmit.ring.base_for_restart()]
        };
        self.lanes.iter().map(of).collect()
    }

    /// One turn; `false` when there was nothing to do.
    #[inline]
    fn round(&mut self, sending: bool) -> Result<bool, RingError> {
        let begin = self.clock.now();
        let received = self.receive()?;
        let taken = self.reclaim()?;
        let sent = if sending { self.send(begin) } else { 0 };
        let harvested = received + taken > 0;
        if harvested {
            self.live.bursts += 1;
        }
        if received > 0 {
            self.live.silence = self.live.silence.max(begin.saturating_sub(self.last_arrival));
            self.last_arrival = begin;
        }
        let worked = harvested || sent > 0;
        if worked {
            self.live.busy += self.clock.now().saturating_sub(begin);
        }
        Ok(worked)
    }

    #[inline]
    fn receive(&mut self) -> Result<u32, RingError> {
        let max = u32::from(self.load.rings.queue_size);
        let mut received = 0;
        for lane in &mut self.lanes {
            let before = lane.inbox.bytes;
            received += lane.receive(max)?;
            self.live.bytes += lane.inbox.bytes - before;
        }
        self.live.received += u64::from(received);
        self.under_way = self.under_way.saturating_sub(u64::from(received));
        Ok(received)
    }

    #[inline]
    fn reclaim(&mut self) -> Result<u32, RingError> {
        let mut taken = 0;
        for lane in &mut self.lanes {
            if lane.sends {
                taken += lane.pair.transmit.reclaim()?;
            }
        }
        self.live.taken += u64::from(taken);
        Ok(taken)
    }

    #[inline]
    fn send(&mut self, now: u64) -> u32 {
        let mut total = 0;
        for index in 0..self.lanes.len() {
            if self.lanes[index].sends {
                let count = self.allowance(now);
                let sent = self.lanes[index].pair.transmit.send(count);
                total += self.account(sent);
            }
        }
        if self.sender.is_some() {
            let count = self.allowance(now);
            let sent = self.sender.as_mut().map_or(0, |sender| sender.send(count));
            total += self.account(sent);
        }
        total
    }

    /// Frames were sent: that many fewer may be sent from now on.
    #[inline]
    fn account(&mut self, sent: u32) -> u32 {
        let count = u64::from(sent);
        self.live.sent += count;
        self.under_way += count;
        self.budget -= count;
        if let Some(schedule) = &mut self.due {
            schedule.next += count * schedule.interval;
        }
        sent
    }

    /// How many frames may be sent now.
    #[inline]
    fn allowance(&mut self, now: u64) -> u32 {
        let mut count = u64::from(self.load.burst).min(self.budget);
        if let Some(schedule) = &self.due {
            count = count.min(now.saturating_sub(schedule.next) / schedule.interval.max(1));
        }
        let window = self.window();
        if window > 0 {
            if self.under_way >= window && now.saturating_sub(self.last_arrival) > self.ticks(WRITE_OFF) {
                self.under_way = 0;
                self.last_arrival = now;
            }
            count = count.min(window.saturating_sub(self.under_way));
        }
        count as u32
    }

    /// Frames that may be under way. What the host sends has no ring to slow it down.
    #[inline]
    fn window(&self) -> u64 {
        match (self.load.window, &self.sender) {
            (0, Some(_)) => u64::from(self.load.rings.queue_size),
            (window, _) => u64::from(window),
        }
    }

    fn ticks(&self, time: Duration) -> u64 {
        self.clock.ticks(time.as_nanos() as u64)
    }

    /// Nothing to do: spin, or sleep until an interrupt comes or the next frame is due.
    #[inline]
    fn wait(&mut self) {
        if !self.load.rings.interrupt {
            std::hint::spin_loop();
            return;
        }
        let limit = match &self.due {
            Some(schedule) => {
                let ticks = (schedule.next + schedule.interval).saturating_sub(self.clock.now());
                Duration::from_nanos(self.clock.nanos(ticks)).min(NAP)
            }
            None if self.sender.is_some() => Duration::from_millis(1),
            None => NAP,
        };
        self.sleep(limit);
    }

    /// Sleeps until a frame comes, or until there is room where a transmit ring was full.
    pub(super) fn sleep(&mut self, limit: Duration) {
        let mut ready = false;
        let mut calls: Vec<RawFd> = Vec::new();
        for lane in &mut self.lanes {
            ready |= lane.pair.receive.ring.arm();
            calls.push(lane.pair.receive.ring.call_fd());
            if lane.sends {
                ready |= lane.pair.transmit.ring.arm();
                calls.push(lane.pair.transmit.ring.call_fd());
            }
        }
        if !ready {
            wait::any_readable(&calls, limit);
        }
        for lane in &mut self.lanes {
            lane.pair.receive.ring.drain_interrupts();
            lane.pair.transmit.ring.drain_interrupts();
            lane.pair.receive.ring.suppress();
            lane.pair.transmit.ring.suppress();
        }
    }

    #[inline]
    fn used_up(&self) -> bool {
        self.budget == 0
    }

    /// Adopts the supervisor's phase; the measurement starts with it.
    #[inline]
    pub(super) fn follow(&mut self, control: &Control) -> Phase {
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
        self.last_arrival = self.live_since;
    }

    fn end_measurement(&mut self) {
        let ticks = self.clock.now().saturating_sub(self.live_since);
        self.tally.seconds = self.clock.nanos(ticks) as f64 / 1e9;
        self.tally.busy = self.live.busy as f64 / ticks.max(1) as f64;
        self.tally.silence = self.clock.nanos(self.live.silence) as f64 / 1e9;
        self.tally.counts = std::mem::take(&mut self.live);
        self.tally.signals = self.signals() - self.signals_before;
    }

    fn signals(&mut self) -> Signals {
        let mut sum = Signals::default();
        for lane in &mut self.lanes {
            lane.pair.receive.ring.drain_interrupts();
            lane.pair.transmit.ring.drain_interrupts();
            sum += lane.signals();
        }
        sum
    }

    /// Waits for what is under way: until everything sent has come, or nothing comes any more.
    fn drain(&mut self, control: &Control, outage: &Outage) -> Result<(), RingError> {
        let (quiet, limit) = (self.ticks(QUIET), self.clock.now() + self.ticks(Duration::from_secs(2)));
        self.last_arrival = self.clock.now();
        while control.phase() != Phase::Abort && self.load.mode != Mode::Rx {
            outage.hold(self.index, || self.bases());
            self.round(false)?;
            let now = self.clock.now();
            if now.saturating_sub(self.last_arrival) > quiet || now > limit {
                break;
            }
        }
        Ok(())
    }
}
