//! The loop of a worker.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{io, mem};

use super::{Command, Context, Inbox, Service, Shared, panic_text};
use crate::cpu;
use crate::doorbell::Doorbell;
use crate::io::Event;
use crate::policy::{PollPolicy, Poller};

/// An idle worker reads the clock every so many rounds: a round over idle rings takes some tens of nanoseconds, as does
/// the clock.
const ROUNDS_PER_CLOCK: u32 = 32;

/// A busy worker shows its engine's counters every so many rounds.
const ROUNDS_PER_SHOW: u64 = 64;

/// Most messages of a round: who sends one after the other must not keep the worker from its rings.
const MOST_MESSAGES: usize = 64;

/// Everything a worker has, on its own stack.
struct Loop<'a, S: Service> {
    shared: &'a Shared,
    service: S,
    cx: Context,
    inbox: Inbox<S::Message>,
    poller: Poller,
    spin: Spin,
    /// Time stamp counter at the end of the last round or sleep.
    stamp: u64,
    stopping: bool,
}

/// The current idle phase.
#[derive(Default)]
struct Spin {
    rounds: u32,
    /// When the clock was first read in this phase; 0 before.
    since: u64,
    /// When it was last read.
    last: u64,
}

/// Runs until it is stopped or the service panics. Never unwinds.
pub(super) fn run<S: Service>(
    shared: &Shared,
    mut cx: Context,
    policy: PollPolicy,
    inbox: Inbox<S::Message>,
    build: impl FnOnce(&mut Context) -> S,
) {
    let service = match catch_unwind(AssertUnwindSafe(|| build(&mut cx))) {
        Ok(service) => service,
        Err(payload) => return fail(shared, panic_text(&*payload)),
    };
    let poller = Poller::new(policy);
    let (spin, stamp) = (Spin::default(), cpu::cycles());
    let mut worker = Loop { shared, service, cx, inbox, poller, spin, stamp, stopping: false };
    // The state may be torn after a panic: nothing of it is used again but `panicked` and the drop.
    let reason = match catch_unwind(AssertUnwindSafe(|| worker.turn())) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("its I/O engine failed: {error}")),
        Err(payload) => Some(panic_text(&*payload)),
    };
    if let Some(reason) = reason {
        fail(shared, reason);
        worker.end_failed();
    }
}

fn fail(shared: &Shared, reason: String) {
    tracing::error!(worker = shared.name, reason, "A worker has failed; its rings are lost");
    // Set once: a worker fails once.
    let _ = shared.failure.set(reason);
}

impl<S: Service> Loop<'_, S> {
    fn turn(&mut self) -> io::Result<()> {
        self.service.suppress();
        loop {
            self.cx.begin_round();
            self.shared.pulse.beat();
            let work = self.round()?;
            let began = mem::replace(&mut self.stamp, cpu::cycles());
            if self.stopping && self.service.outstanding() == 0 && self.cx.io.in_flight() == 0 {
                self.cx.show_io_counters();
                return Ok(());
            }
            if work > 0 {
                self.cx.stats.busy_cycles.add(self.stamp.saturating_sub(began));
                self.busy(work);
            } else if self.may_sleep()? {
                self.park()?;
            }
        }
    }

    /// Messages, completions, rings, submission.
    #[inline]
    fn round(&mut self) -> io::Result<usize> {
        let messages = if self.cx.doorbell.take() { self.take_messages() } else { 0 };
        let completions = self.harvest()?;
        let work = self.service.poll_once(&mut self.cx);
        self.cx.io.flush()?;
        Ok(messages + completions + work)
    }

    #[cold]
    fn take_messages(&mut self) -> usize {
        let mut taken = 0;
        while !self.stopping
            && taken < MOST_MESSAGES
            && let Some(command) = self.inbox.next()
        {
            taken += 1;
            match command {
                Command::Service(message) => self.service.message(message, &mut self.cx),
                Command::Poll(policy) => self.poller.set(policy),
                Command::Stop => {
                    self.stopping = true;
                    self.service.close();
                }
            }
        }
        if taken == MOST_MESSAGES {
            // There may be more, which the next round takes.
            self.cx.doorbell.ring();
        }
        self.cx.stats.messages.add(taken as u64);
        taken
    }

    #[inline]
    fn harvest(&mut self) -> io::Result<usize> {
        // Taken out, so that the service may use the context; its allocation goes back.
        let mut events = mem::take(&mut self.cx.events);
        self.cx.io.harvest(&mut events)?;
        let mut completions = 0;
        for event in events.drain(..) {
            match event {
                Event::Done { user_data, result } => {
                    completions += 1;
                    self.service.completed(user_data, result, &mut self.cx);
                }
                // A kick is no work by itself: the rings will tell.
                Event::Ready(watch) => {
                    self.cx.stats.kicks.add(1);
                    self.service.ready(watch, &mut self.cx);
                }
                Event::Rung => {}
            }
        }
        self.cx.events = events;
        Ok(completions)
    }

    #[inline]
    fn busy(&mut self, work: usize) {
        let stats = &self.cx.stats;
        stats.busy_rounds.add(1);
        stats.work.add(work as u64);
        if self.spin.rounds > 0 {
            stats.poll_success.add(1);
            stats.poll_success_ns.add(self.spin.last - self.spin.since);
            self.spin = Spin::default();
        }
        if stats.busy_rounds.get().is_multiple_of(ROUNDS_PER_SHOW) {
            self.cx.show_io_counters();
        }
    }

    /// One idle round more. True when the window is over.
    #[inline]
    fn may_sleep(&mut self) -> io::Result<bool> {
        let window = match self.poller.window_ns() {
            Some(0) => return Ok(true),
            window => window,
        };
        if self.spin.rounds == 0 {
            self.cx.stats.poll_attempted.add(1);
        }
        self.spin.rounds = self.spin.rounds.saturating_add(1);
        if !self.spin.rounds.is_multiple_of(ROUNDS_PER_CLOCK) {
            std::hint::spin_loop();
            return Ok(false);
        }
        self.cx.io.look()?;
        let now = self.cx.now_ns();
        if self.spin.since == 0 {
            self.spin.since = now;
        }
        self.spin.last = now;
        // A wish that comes true now is answered by the next round's poll.
        let over = window.is_some_and(|window| now - self.spin.since >= window);
        Ok(!self.cx.take_due(now) && over)
    }

    fn park(&mut self) -> io::Result<()> {
        let before = self.cx.read_clock();
        let spin = mem::take(&mut self.spin);
        let polled = if spin.since == 0 { 0 } else { before - spin.since };
        if spin.rounds > 0 {
            self.cx.stats.poll_fail.add(1);
            self.cx.stats.poll_fail_ns.add(polled);
        }
        if self.cx.take_due(before) {
            return Ok(());
        }
        let timeout = self.cx.timeout(before);
        self.sample_contention(before);
        self.cx.show_io_counters();
        let slept = self.sleep(timeout)?;
        self.stamp = cpu::cycles();
        self.shared.pulse.awake();
        self.cx.disarm();
        self.service.suppress();
        if slept {
            let asleep = self.cx.read_clock().saturating_sub(before);
            self.poller.observe(polled, asleep);
            self.cx.stats.parks.add(1);
            self.cx.stats.parked_ns.add(asleep);
            self.cx.stats.block_ns.record(asleep);
            self.cx.take_due(before + asleep);
        } else {
            self.cx.stats.parks_avoided.add(1);
        }
        Ok(())
    }

    /// Kicks on, one more look, and the wait that covers everything.
    fn sleep(&mut self, timeout: Option<u64>) -> io::Result<bool> {
        let (service, io) = (&mut self.service, &mut self.cx.io);
        let mut waited = Ok(());
        let doorbell: &Doorbell<_> = &self.cx.doorbell;
        let slept = doorbell.sleep(|| service.arm(), || waited = io.wait(timeout));
        waited.map(|()| slept)
    }

    fn sample_contention(&mut self, now: u64) {
        if self.poller.wants_sample(now) {
            let switches = cpu::involuntary_switches();
            self.poller.sample(now, switches);
            self.cx.stats.involuntary_switches.set(switches);
        }
    }

    /// After a failure: nobody may wait for this worker, and nothing may touch guest memory after the service is gone.
    fn end_failed(self) {
        let Self { shared, mut service, mut cx, inbox, .. } = self;
        // Messages that were never read hold replies that somebody waits for.
        drop(inbox);
        let told = catch_unwind(AssertUnwindSafe(|| service.panicked()));
        if told.is_err() {
            tracing::error!(worker = shared.name, "The failed service panicked again");
        }
        if let Err(error) = cx.io.drain() {
            // The kernel may still write into buffers of the service: they must never be freed.
            tracing::error!(worker = shared.name, %error, "I/O in flight cannot be awaited; its memory is kept");
            mem::forget(service);
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| drop(service))).is_err() {
            tracing::error!(worker = shared.name, "The failed service panicked in its drop");
        }
    }
}
