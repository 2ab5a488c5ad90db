//! Engines without a device in front of them, on the threads and in the phases of a run: what a core can do at most.

use std::time::Duration;

use anyhow::Result;

use super::memory::PAGE;
use super::options::{Pace, Timing};
use super::supervisor::{CpuMeter, Hooks, Supervisor};
use super::tally::{Counts, Tally};
use crate::clock::Clock;
use crate::control::{Control, Follower, Phase};
use crate::latency::Latencies;
use crate::progress::Progress;

/// The requests of one thread, which an engine answers.
pub trait Rounds: Send + 'static {
    /// Each request once. Records the latency of each, and returns what was done.
    fn round(&mut self, clock: Clock, latencies: &mut Latencies) -> Result<Round>;
}

/// What was done in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Requests.
    pub requests: u64,
    /// Bytes they count for.
    pub bytes: u64,
}

/// What the threads have done.
pub struct Alone<R> {
    /// By thread: its requests as the last round has left them, and what was measured.
    pub threads: Vec<(R, Tally)>,
    /// CPU time of this process in the measured time.
    pub cpu: Option<Duration>,
}

/// Drives each of `rounds` on a thread of its own.
pub fn run<R: Rounds>(
    rounds: Vec<R>,
    timing: &Timing,
    pace: &Pace,
    progress: &mut dyn FnMut(Progress),
) -> Result<Alone<R>> {
    let mut own = Own { cpu: CpuMeter::default() };
    let goal = pace.goal(rounds.len() as u16);
    let mut supervisor = Supervisor::new(rounds.len(), timing, goal, &mut own)?;
    let (clock, budget) = (Clock::new(), pace.requests.unwrap_or(u64::MAX));
    for (index, mut rounds) in rounds.into_iter().enumerate() {
        supervisor.spawn(move |control| {
            let tally = drive(&mut rounds, index, clock, budget, control);
            control.finish(index);
            anyhow::Ok((rounds, tally?))
        })?;
    }
    let threads = supervisor.supervise(&mut own, progress)?.into_iter().collect::<Result<_>>()?;
    Ok(Alone { threads, cpu: own.cpu.used() })
}

/// Round after round until the supervisor says stop or `budget` is used up.
fn drive(
    rounds: &mut impl Rounds,
    index: usize,
    clock: Clock,
    budget: u64,
    control: &Control,
) -> Result<Tally> {
    let (mut counts, mut since, mut completed) = (Counts::default(), clock.now(), 0);
    let mut follower = Follower::default();
    while completed < budget {
        let (phase, begins) = follower.look(control);
        if begins {
            (counts, since) = (Counts::default(), clock.now());
        }
        if phase >= Phase::Drain {
            break;
        }
        let round = rounds.round(clock, &mut counts.latencies)?;
        completed += round.requests;
        counts.operations += round.requests;
        counts.bytes += round.bytes;
        counts.bursts += 1;
        control.report(index, completed);
    }
    let seconds = clock.nanos(clock.now() - since) as f64 / 1e9;
    Ok(Tally { counts, seconds, completed, ..Tally::default() })
}

/// The measured process is this one.
struct Own {
    cpu: CpuMeter,
}

impl Hooks for Own {
    fn enter(&mut self, phase: Phase, control: &Control) -> Result<()> {
        self.cpu.enter(phase, Some(std::process::id() as i32));
        control.advance(phase);
        Ok(())
    }

    fn wake_all(&self) {}

    /// There is nobody who could go.
    fn hung_up_within(&self, limit: Duration) -> bool {
        std::thread::sleep(limit);
        false
    }

    fn outage(&mut self, _waiting: &mut dyn FnMut()) -> Result<()> {
        Ok(())
    }
}

/// Buffers that begin on pages of their own, as those of requests do.
pub struct Buffers {
    bytes: Vec<u8>,
    first: usize,
    stride: usize,
    len: usize,
}

impl Buffers {
    /// `count` buffers of `len` bytes.
    pub fn new(count: usize, len: usize) -> Self {
        let stride = len.next_multiple_of(PAGE);
        let bytes = vec![0; count * stride + PAGE];
        let first = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, first, stride, len }
    }

    /// One of them.
    pub fn get(&mut self, slot: usize) -> &mut [u8] {
        &mut self.bytes[self.first + slot * self.stride..][..self.len]
    }
}
