//! When to submit what was collected, and when to look for results.
//!
//! # The rule
//!
//! A batch is worth waiting for, but never for nothing. What was collected is submitted
//!
//! - when the batch is **full**, or a ring has used up its share of the round, which is a batch in itself (efficiency);
//! - when every ring is **empty** after a fetch (timeliness): whoever submits now waits for an answer, so nothing else
//!   will come;
//! - when its oldest request has waited for the **deadline** (safety).
//!
//! The same rule, seen from the other side, tells when to look for the results of an asynchronous engine: when a batch
//! of them may be ready, when every submitter waits, or when the deadline has passed. A guest that polls for its
//! completions does well by the same rule: look when as many requests are in flight as make a batch, or as many as there
//! are tasks that wait for one; else after a deadline. It is the heuristic polling of QTLS (PPoPP 2019), with the number
//! of active connections replaced by what a device can see of it: an empty ring.
//!
//! # Modes
//!
//! | mode | waits | submits | looks for results |
//! |---|---|---|---|
//! | [`Mode::Interrupt`] | asleep; kicks and the engine's event wake it | by the rule | when woken |
//! | [`Mode::Timer`] | asleep for the period, kicks off, while there is or lately was work | when a tick has taken all there is | at each tick |
//! | [`Mode::Heuristic`] | spins for a learned while, then sleeps | by the rule | by the rule |
//! | [`Mode::Busy`] | never sleeps | by the rule | every round |
//!
//! Everything here is pure: no clock, no thread. Times are nanoseconds of whatever clock the caller reads.

use runtime::policy::{PollPolicy, Preset};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A batch of so many bytes is full, however few its requests are: more of them gain nothing from company, and would
/// keep other rings waiting.
pub const BATCH_BYTES: u64 = 1 << 20;

/// Ticks without work after which the timer stops and kicks are asked for again.
const QUIET_TICKS: u32 = 8;

/// Shortest and longest period of [`Mode::Timer`].
pub const PERIODS: std::ops::RangeInclusive<Duration> = Duration::from_micros(1)..=Duration::from_secs(1);

/// How a worker waits for work and results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Sleeps, and is woken by kicks.
    Interrupt,
    /// Looks at its rings once a period.
    Timer(Duration),
    /// Polls for a learned while, then sleeps.
    #[default]
    Heuristic,
    /// Never sleeps.
    Busy,
}

impl Mode {
    /// How the worker's own loop has to wait; `adaptive` is the policy for [`Mode::Heuristic`].
    pub fn poll_policy(self, adaptive: PollPolicy) -> PollPolicy {
        match self {
            Self::Interrupt | Self::Timer(_) => PollPolicy::Off,
            Self::Heuristic => adaptive,
            Self::Busy => PollPolicy::Always,
        }
    }

    /// What [`Mode::Heuristic`] uses unless told otherwise.
    pub const ADAPTIVE: PollPolicy = PollPolicy::Adaptive { preset: Preset::Kvm, max_us: 50 };

    fn period_ns(self) -> Option<u64> {
        match self {
            Self::Timer(period) => {
                Some((period.as_nanos() as u64).clamp(ns(*PERIODS.start()), ns(*PERIODS.end())))
            }
            _ => None,
        }
    }
}

fn ns(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt => f.write_str("interrupt"),
            Self::Timer(period) => match period.as_micros() {
                us if us % 1000 == 0 => write!(f, "timer={}ms", us / 1000),
                us => write!(f, "timer={us}us"),
            },
            Self::Heuristic => f.write_str("heuristic"),
            Self::Busy => f.write_str("busy"),
        }
    }
}

/// A text that names no [`Mode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Unknown mode {0:?}: expected interrupt, timer=PERIOD (such as 100us or 1ms, up to 1s), heuristic or busy"
)]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let unknown = || UnknownMode(text.to_owned());
        match text {
            "interrupt" => Ok(Self::Interrupt),
            "heuristic" => Ok(Self::Heuristic),
            "busy" => Ok(Self::Busy),
            _ => {
                let period = text.strip_prefix("timer=").and_then(period).ok_or_else(unknown)?;
                PERIODS.contains(&period).then_some(Self::Timer(period)).ok_or_else(unknown)
            }
        }
    }
}

/// A number and its unit.
fn period(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().ok()?;
    let us = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.checked_mul(us)?))
}

/// The numbers of the rule. They can be changed while a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// Requests of a full batch.
    pub batch: u16,
    /// Results of other threads that are gathered before the worker is told, while it waits for more of them.
    pub answers: u16,
    /// How long a request may wait for company, and a result for others, in microseconds.
    pub deadline_us: u32,
    /// Requests of at most so many bytes are answered at once, without a batch.
    pub inline_bytes: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { batch: 64, answers: 48, deadline_us: 50, inline_bytes: 64 }
    }
}

impl Thresholds {
    /// The deadline in nanoseconds.
    pub fn deadline_ns(&self) -> u64 {
        u64::from(self.deadline_us) * 1_000
    }

    /// Whether other threads have to tell the worker about `done` results, the oldest of which has waited for `age_ns`,
    /// while `left` more requests of that worker are being computed or wait to be. `next_is_slow`: so does the thread that
    /// asks, and its next one will take longer than a deadline.
    pub fn deliver(&self, done: usize, left: usize, age_ns: u64, next_is_slow: bool) -> bool {
        let due = left == 0 || next_is_slow || age_ns >= self.deadline_ns();
        done > 0 && (due || done >= usize::from(self.answers.max(1)))
    }
}

/// Why a batch was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Reason {
    /// It was full.
    Full,
    /// Every ring was empty: all submitters wait.
    Empty,
    /// Its oldest request had waited long enough.
    Deadline,
    /// The timer's tick has taken all there was.
    Timer,
}

/// Number of [`Reason`]s.
pub const REASONS: usize = 4;

impl Reason {
    /// All, in the order of the counters.
    pub const ALL: [Self; REASONS] = [Self::Full, Self::Empty, Self::Deadline, Self::Timer];

    /// Label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Empty => "empty",
            Self::Deadline => "deadline",
            Self::Timer => "timer",
        }
    }
}

/// What was collected and not yet submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Requests.
    pub jobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest has waited, in nanoseconds.
    pub age_ns: u64,
    /// Nothing is left in any ring that may be served.
    pub rings_empty: bool,
    /// A ring has used up its share of the round.
    pub throttled: bool,
}

/// A mode and its thresholds, as one worker follows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How the worker waits.
    pub mode: Mode,
    /// The numbers.
    pub thresholds: Thresholds,
}

impl Policy {
    /// Whether the batch has no room for another request.
    #[inline]
    pub fn full(&self, jobs: usize, bytes: u64) -> bool {
        jobs >= usize::from(self.thresholds.batch.max(1)) || bytes >= BATCH_BYTES
    }

    /// Whether to submit now, and why.
    #[inline]
    pub fn submit(&self, collected: Collected) -> Option<Reason> {
        let Collected { jobs, bytes, age_ns, rings_empty, throttled } = collected;
        if jobs == 0 {
            None
        } else if throttled || self.full(jobs, bytes) {
            Some(Reason::Full)
        } else if rings_empty {
            Some(if matches!(self.mode, Mode::Timer(_)) { Reason::Timer } else { Reason::Empty })
        } else if age_ns >= self.thresholds.deadline_ns() {
            Some(Reason::Deadline)
        } else {
            None
        }
    }

    /// Whether to look for results of asynchronous engines: `in_flight` requests are with them, the last look was
    /// `since_ns` ago. In [`Mode::Interrupt`] and [`Mode::Timer`] a round is only run when there is a reason to look.
    #[inline]
    pub fn reap(&self, in_flight: usize, rings_empty: bool, since_ns: u64) -> bool {
        match self.mode {
            _ if in_flight == 0 => false,
            Mode::Interrupt | Mode::Timer(_) | Mode::Busy => true,
            Mode::Heuristic => {
                let many = in_flight >= usize::from(self.thresholds.batch.max(1));
                many || rings_empty || since_ns >= self.thresholds.deadline_ns()
            }
        }
    }
}

/// The clock of [`Mode::Timer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticker {
    /// When the next tick is due; 0 while the timer is off.
    due_ns: u64,
    /// Ticks since the last one with work.
    quiet: u32,
    /// The present tick goes on: there was more than one round could take.
    open: bool,
}

impl Ticker {
    /// Whether the rings may be looked at now. Always, in other modes, and when the timer is off, as it is then a kick
    /// that has woken the worker.
    #[inline]
    pub fn due(&self, mode: Mode, now_ns: u64) -> bool {
        !matches!(mode, Mode::Timer(_)) || self.open || self.due_ns <= now_ns
    }

    /// The rings were looked at: `worked` says whether something was found or is in flight, `more` whether something was
    /// left. Returns when to wake up for the next tick.
    pub fn looked(&mut self, mode: Mode, now_ns: u64, worked: bool, more: bool) -> Option<u64> {
        let Some(period) = mode.period_ns() else {
            *self = Self::default();
            return None;
        };
        self.quiet = if worked { 0 } else { self.quiet.saturating_add(1) };
        self.open = more;
        let on = self.quiet < QUIET_TICKS && (worked || self.due_ns != 0);
        self.due_ns = if on { now_ns + period } else { 0 };
        on.then_some(self.due_ns)
    }

    /// Whether the timer runs, so that kicks need not be asked for.
    #[inline]
    pub fn running(&self) -> bool {
        self.due_ns != 0
    }

    /// When the next tick is due, while the timer runs.
    pub fn next(&self) -> Option<u64> {
        self.running().then_some(self.due_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    fn policy(mode: Mode) -> Policy {
        Policy { mode, thresholds: Thresholds { batch: 8, answers: 4, deadline_us: 50, inline_bytes: 0 } }
    }

    fn collected(jobs: usize, bytes: u64, age_us: u64, rings_empty: bool) -> Collected {
        Collected { jobs, bytes, age_ns: age_us * US, rings_empty, throttled: false }
    }

    #[test]
    fn a_batch_is_submitted_by_the_rule() {
        let timer = Mode::Timer(Duration::from_micros(100));
        let table = [
            (Mode::Heuristic, collected(0, 0, 0, true), None),
            (Mode::Heuristic, collected(0, 0, 99, false), None),
            (Mode::Heuristic, collected(8, 64, 0, false), Some(Reason::Full)),
            (Mode::Heuristic, collected(9, 64, 0, true), Some(Reason::Full)),
            (Mode::Heuristic, collected(1, BATCH_BYTES, 0, false), Some(Reason::Full)),
            (Mode::Heuristic, collected(7, 64, 49, true), Some(Reason::Empty)),
            (Mode::Heuristic, collected(7, 64, 49, false), None),
            (Mode::Heuristic, collected(7, 64, 50, false), Some(Reason::Deadline)),
            (Mode::Interrupt, collected(1, 64, 0, true), Some(Reason::Empty)),
            (Mode::Busy, collected(1, 64, 0, true), Some(Reason::Empty)),
            (Mode::Busy, collected(1, 64, 0, false), None),
            (timer, collected(1, 64, 0, true), Some(Reason::Timer)),
            (timer, collected(8, 64, 0, true), Some(Reason::Full)),
            (timer, collected(7, 64, 1, false), None),
        ];
        for (mode, collected, expected) in table {
            assert_eq!(policy(mode).submit(collected), expected, "{mode} {collected:?}");
        }
    }

    #[test]
    fn a_ring_that_has_used_up_its_share_waits_for_nobody() {
        let throttled = Collected { throttled: true, ..collected(1, 64, 0, false) };
        assert_eq!(policy(Mode::Heuristic).submit(throttled), Some(Reason::Full));
    }

    #[test]
    fn results_are_looked_for_by_the_same_rule() {
        let timer = Mode::Timer(Duration::from_micros(100));
        let table = [
            (Mode::Heuristic, 0, true, 999, false),
            (Mode::Heuristic, 8, false, 0, true),
            (Mode::Heuristic, 7, true, 0, true),
            (Mode::Heuristic, 7, false, 49, false),
            (Mode::Heuristic, 7, false, 50, true),
            (Mode::Interrupt, 1, false, 0, true),
            (timer, 1, false, 0, true),
            (Mode::Busy, 1, false, 0, true),
            (Mode::Busy, 0, true, 0, false),
        ];
        for (mode, in_flight, empty, since_us, expected) in table {
            let reap = policy(mode).reap(in_flight, empty, since_us * US);
            assert_eq!(reap, expected, "{mode} {in_flight} {empty} {since_us}");
        }
    }

    #[test]
    fn results_of_other_threads_are_delivered_together_but_never_late() {
        let rule = policy(Mode::Heuristic).thresholds;
        assert!(!rule.deliver(0, 0, 999 * US, true), "nothing to tell");
        assert!(rule.deliver(1, 0, 0, false), "nothing else will come");
        assert!(!rule.deliver(3, 5, 49 * US, false));
        assert!(rule.deliver(4, 5, 0, false), "enough for one wake-up");
        assert!(rule.deliver(1, 5, 50 * US, false), "the oldest has waited");
        assert!(rule.deliver(1, 5, 0, true), "the next one takes long");
        let zero = Thresholds { answers: 0, ..rule };
        assert!(zero.deliver(1, 5, 0, false), "a threshold of nothing gathers nothing");
    }

    #[test]
    fn thresholds_of_zero_mean_batches_of_one() {
        let none = Thresholds { batch: 0, answers: 0, deadline_us: 0, inline_bytes: 0 };
        let policy = Policy { mode: Mode::Heuristic, thresholds: none };
        assert_eq!(policy.submit(collected(1, 1, 0, false)), Some(Reason::Full));
        assert_eq!(policy.submit(collected(0, 0, 0, true)), None);
    }

    #[test]
    fn the_timer_ticks_while_there_is_work_and_stops_after_it() {
        let mode = Mode::Timer(Duration::from_micros(100));
        let mut ticker = Ticker::default();
        assert!(ticker.due(mode, 5), "off: whoever wakes the worker is served at once");
        assert!(!ticker.running());
        assert_eq!(ticker.looked(mode, 5, true, false), Some(5 + 100 * US));
        assert!(!ticker.due(mode, 5 + 99 * US));
        let mut now = 5 + 100 * US;
        for tick in 1..QUIET_TICKS {
            assert!(ticker.due(mode, now), "tick {tick}");
            assert_eq!(ticker.looked(mode, now, false, false), Some(now + 100 * US));
            now += 100 * US;
        }
        assert_eq!(ticker.looked(mode, now, false, false), None, "quiet for long enough");
        assert!(!ticker.running() && ticker.due(mode, now));
        assert_eq!(ticker.looked(mode, now, false, false), None, "a look without work starts nothing");
        assert_eq!(ticker.looked(mode, now, true, false), Some(now + 100 * US));
    }

    #[test]
    fn a_tick_goes_on_until_it_has_taken_all() {
        let mode = Mode::Timer(Duration::from_micros(100));
        let mut ticker = Ticker::default();
        let _ = ticker.looked(mode, 0, true, true);
        assert!(ticker.due(mode, 1));
        let _ = ticker.looked(mode, 1, true, false);
        assert!(!ticker.due(mode, 2));
    }

    #[test]
    fn other_modes_know_no_ticks() {
        let mut ticker = Ticker::default();
        let _ = ticker.looked(Mode::Timer(Duration::from_millis(1)), 0, true, false);
        assert!(ticker.due(Mode::Heuristic, 1));
        assert_eq!(ticker.looked(Mode::Heuristic, 1, true, false), None);
        assert!(!ticker.running(), "a change of the mode ends the timer");
    }

    #[test]
    fn modes_parse_back_from_their_text() {
        let timer = |us| Mode::Timer(Duration::from_micros(us));
        for mode in [Mode::Interrupt, Mode::Heuristic, Mode::Busy, timer(100), timer(1_000), timer(1_500)] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("timer=1s".parse(), Ok(timer(1_000_000)));
        for text in
            ["", "timer", "timer=", "timer=5", "timer=0us", "timer=2s", "timer=1h", "timer=us", "poll"]
        {
            assert_eq!(text.parse::<Mode>(), Err(UnknownMode(text.into())));
        }
        assert_eq!(format!("timer={}s", u64::MAX).parse::<Mode>().ok(), None);
    }

    #[test]
    fn only_busy_never_sleeps_and_only_heuristic_spins() {
        let adaptive = Mode::ADAPTIVE;
        let timer = Mode::Timer(Duration::from_millis(1));
        assert_eq!(Mode::Busy.poll_policy(adaptive), PollPolicy::Always);
        assert_eq!(Mode::Heuristic.poll_policy(adaptive), adaptive);
        assert_eq!(Mode::Interrupt.poll_policy(adaptive), PollPolicy::Off);
        assert_eq!(timer.poll_policy(adaptive), PollPolicy::Off);
    }
}
