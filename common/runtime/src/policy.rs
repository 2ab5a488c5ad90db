//! What a worker does while it has nothing to do: sleep at once, spin for a learned while, or spin for ever.
//!
//! KVM stops polling when another task wants the CPU (`need_resched`). User space has no such flag; what it has is the
//! count of involuntary context switches of its own thread. A worker that keeps being thrown off its CPU shares it with
//! somebody, probably with the very vCPU whose request it waits for: then spinning steals the time it hopes to save,
//! and the window is halved until the switches stop ([`Contention`]).

use std::fmt;
use std::str::FromStr;

use crate::poll::Window;

/// Which published predictor an adaptive worker runs. See [`crate::poll`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preset {
    /// KVM's host-side halt polling.
    #[default]
    Kvm,
    /// The guest-side cpuidle governor.
    Haltpoll,
    /// QEMU's event loop.
    QemuAio,
    /// Always the maximum.
    Fixed,
}

impl Preset {
    /// A fresh window under this rule that never exceeds `max_us`.
    pub const fn window(self, max_us: u64) -> Window {
        let window = match self {
            Self::Kvm => Window::kvm(),
            Self::Haltpoll => Window::haltpoll(),
            Self::QemuAio => Window::qemu_aio(),
            Self::Fixed => Window::fixed(max_us),
        };
        window.with_max(max_us.saturating_mul(1_000))
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Haltpoll => "haltpoll",
            Self::QemuAio => "qemu-aio",
            Self::Fixed => "fixed",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Preset`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Unknown polling preset {0:?}: expected kvm, haltpoll, qemu-aio or fixed")]
pub struct UnknownPreset(pub String);

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, UnknownPreset> {
        [Self::Kvm, Self::Haltpoll, Self::QemuAio, Self::Fixed]
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| UnknownPreset(name.to_owned()))
    }
}

/// How a worker waits. Can be changed while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PollPolicy {
    /// Sleep as soon as there is no work.
    Off,
    /// Spin for a learned while, then sleep.
    Adaptive {
        /// The predictor.
        preset: Preset,
        /// Longest spin, in microseconds.
        max_us: u64,
    },
    /// Never sleep. Costs a whole CPU.
    Always,
}

impl Default for PollPolicy {
    /// Adaptive by KVM's rule, 50 us at most: beyond what a sleep costs, below what a disk takes.
    fn default() -> Self {
        Self::Adaptive { preset: Preset::Kvm, max_us: 50 }
    }
}

/// A policy at work in one worker.
#[derive(Debug)]
pub struct Poller {
    policy: PollPolicy,
    window: Window,
    contention: Contention,
}

impl Poller {
    /// Starts a policy with nothing learned.
    pub const fn new(policy: PollPolicy) -> Self {
        Self { policy, window: window_of(policy), contention: Contention::new() }
    }

    /// Changes the policy; what was learned is forgotten.
    pub const fn set(&mut self, policy: PollPolicy) {
        *self = Self::new(policy);
    }

    /// The policy in force.
    pub const fn policy(&self) -> PollPolicy {
        self.policy
    }

    /// How long the next idle phase may spin, in nanoseconds; `None`: for ever.
    #[inline]
    pub const fn window_ns(&self) -> Option<u64> {
        match self.policy {
            PollPolicy::Off => Some(0),
            PollPolicy::Adaptive { .. } => Some(self.contention.cut(self.window.limit())),
            PollPolicy::Always => None,
        }
    }

    /// Learns from a wait that ended in sleep.
    pub const fn observe(&mut self, polled_ns: u64, slept_ns: u64) {
        self.window.observe_wait(polled_ns, slept_ns);
    }

    /// Whether it is time to look at the thread's switch count again. Asked at park time only.
    pub const fn wants_sample(&self, now_ns: u64) -> bool {
        matches!(self.policy, PollPolicy::Adaptive { .. }) && self.contention.due(now_ns)
    }

    /// Takes the thread's involuntary switches so far (`getrusage(RUSAGE_THREAD)`, `ru_nivcsw`).
    pub const fn sample(&mut self, now_ns: u64, involuntary: u64) {
        self.contention.sample(now_ns, involuntary);
    }
}

const fn window_of(policy: PollPolicy) -> Window {
    match policy {
        PollPolicy::Adaptive { preset, max_us } => preset.window(max_us),
        PollPolicy::Off | PollPolicy::Always => Window::fixed(0),
    }
}

/// Notices that the worker shares its CPU, and by how much its windows must shrink for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contention {
    sampled_ns: u64,
    switches: u64,
    shift: u32,
    started: bool,
}

impl Contention {
    /// Shortest time between two samples: one `getrusage` in 20 ms costs nothing measurable.
    pub const INTERVAL_NS: u64 = 20_000_000;
    /// A rate (switches a second) above this halves the window; none at all doubles it again.
    pub const BUSY_RATE: u64 = 40;
    /// Halving stops here: 2^8 turns the longest sensible window into none.
    const MAX_SHIFT: u32 = 8;
    /// A window shorter than this cannot pay for its two clock reads.
    const FLOOR_NS: u64 = 1_000;

    /// No contention seen.
    pub const fn new() -> Self {
        Self { sampled_ns: 0, switches: 0, shift: 0, started: false }
    }

    const fn due(&self, now_ns: u64) -> bool {
        !self.started || now_ns.saturating_sub(self.sampled_ns) >= Self::INTERVAL_NS
    }

    const fn sample(&mut self, now_ns: u64, switches: u64) {
        if self.started {
            let elapsed = now_ns.saturating_sub(self.sampled_ns);
            let new = switches.saturating_sub(self.switches);
            if new.saturating_mul(1_000_000_000) > elapsed.saturating_mul(Self::BUSY_RATE) {
                self.shift = if self.shift < Self::MAX_SHIFT { self.shift + 1 } else { self.shift };
            } else if new == 0 {
                self.shift = self.shift.saturating_sub(1);
            }
        }
        *self = Self { sampled_ns: now_ns, switches, shift: self.shift, started: true };
    }

    const fn cut(&self, limit_ns: u64) -> u64 {
        let cut = limit_ns >> self.shift;
        if cut < Self::FLOOR_NS { 0 } else { cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn learned() -> Poller {
        let mut poller = Poller::new(PollPolicy::default());
        for _ in 0..8 {
            poller.observe(0, 45_000);
        }
        assert_eq!(poller.window_ns(), Some(50_000));
        poller
    }

    #[test]
    fn off_never_spins_and_always_never_stops() {
        let mut off = Poller::new(PollPolicy::Off);
        off.observe(0, 20_000);
        assert_eq!(off.window_ns(), Some(0));
        assert_eq!(Poller::new(PollPolicy::Always).window_ns(), None);
    }

    #[test]
    fn adaptive_never_exceeds_its_maximum() {
        for preset in [Preset::Kvm, Preset::Haltpoll, Preset::QemuAio, Preset::Fixed] {
            let mut poller = Poller::new(PollPolicy::Adaptive { preset, max_us: 30 });
            for wait in [1_000, 5_000, 29_000, 29_999, 12_345] {
                poller.observe(0, wait);
                assert!(poller.window_ns().unwrap() <= 30_000);
            }
        }
    }

    #[test]
    fn involuntary_switches_shrink_the_window_and_quiet_restores_it() {
        let mut poller = learned();
        poller.sample(MS, 100);
        assert_eq!(poller.window_ns(), Some(50_000), "the first sample is only a base");
        let mut switches = 100;
        for step in 1..=10 {
            switches += 5; // 5 in 20 ms: 250 a second
            poller.sample(MS + step * 20 * MS, switches);
        }
        assert_eq!(poller.window_ns(), Some(0), "a contended CPU ends polling");
        for step in 11..=30 {
            poller.sample(MS + step * 20 * MS, switches);
        }
        assert_eq!(poller.window_ns(), Some(50_000), "and polling returns when the CPU is free");
    }

    #[test]
    fn a_rare_switch_changes_nothing() {
        let mut poller = learned();
        poller.sample(MS, 0);
        poller.sample(1_001 * MS, 20);
        assert_eq!(poller.window_ns(), Some(50_000));
    }

    #[test]
    fn samples_are_rare_and_only_taken_where_they_can_matter() {
        let mut poller = learned();
        assert!(poller.wants_sample(0));
        poller.sample(0, 0);
        assert!(!poller.wants_sample(19 * MS));
        assert!(poller.wants_sample(20 * MS));
        assert!(!Poller::new(PollPolicy::Always).wants_sample(0));
        assert!(!Poller::new(PollPolicy::Off).wants_sample(0));
    }

    #[test]
    fn preset_names_parse_back() {
        for preset in [Preset::Kvm, Preset::Haltpoll, Preset::QemuAio, Preset::Fixed] {
            assert_eq!(preset.to_string().parse(), Ok(preset));
        }
        assert_eq!("fast".parse::<Preset>(), Err(UnknownPreset("fast".into())));
    }
}
