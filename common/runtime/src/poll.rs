//! How long to busy-poll before sleeping: a pure, integer-only predictor.
//!
//! A [`Window`] looks at how long the last waits took and says for how long the next one may spin. It knows no clock,
//! no thread and no allocation (it needs nothing beyond `core`), so that it can be compared against the published
//! algorithms row by row and reused where there is no operating system.
//!
//! Four published rules are presets, and can be compared in one daemon:
//!
//! | preset | published as | shrinks | grows |
//! |---|---|---|---|
//! | [`Window::kvm`] | Linux `virt/kvm/kvm_main.c`, `kvm_vcpu_halt` (6.12) | wait > max: / 2, under the start value: 0 | limit < wait < max: x 2, at least 10 us |
//! | [`Window::haltpoll`] | Linux `drivers/cpuidle/governors/haltpoll.c` (6.9) | wait > max: / 2, under the start value: 0 | limit < wait <= max: x 2, at least 50 us |
//! | [`Window::qemu_aio`] | QEMU `util/aio-posix.c`, `adjust_polling_time` (9.2) | wait > max: 0 | limit < wait < max: x 2, first 4 us |
//! | [`Window::fixed`] | vhost-net `busyloop_timeout`, most user-space backends | never | never |

/// Microsecond in the unit of this module.
const US: u64 = 1_000;

/// Which published rule a window follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// KVM's host-side halt polling.
    Kvm,
    /// The guest-side cpuidle governor.
    Haltpoll,
    /// QEMU's event loop.
    QemuAio,
    /// A constant.
    Fixed,
}

/// The length of the next busy-poll, in nanoseconds, learned from the lengths of past waits.
///
/// Invariant: `0 <= limit() <= max()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    rule: Rule,
    limit: u64,
    max: u64,
    grow: u64,
    grow_start: u64,
    shrink: u64,
}

impl Window {
    /// KVM halt polling with the kernel's x86 defaults: at most 200 us, starts at 10 us, doubles and halves.
    pub const fn kvm() -> Self {
        Self { rule: Rule::Kvm, limit: 0, max: 200 * US, grow: 2, grow_start: 10 * US, shrink: 2 }
    }

    /// cpuidle-haltpoll with the kernel's defaults: at most 200 us, starts at 50 us, doubles and halves.
    pub const fn haltpoll() -> Self {
        Self { rule: Rule::Haltpoll, limit: 0, max: 200 * US, grow: 2, grow_start: 50 * US, shrink: 2 }
    }

    /// QEMU's event loop with its defaults: at most 32.768 us, starts at 4 us, doubles, resets to 0.
    pub const fn qemu_aio() -> Self {
        Self { rule: Rule::QemuAio, limit: 0, max: 32_768, grow: 2, grow_start: 4 * US, shrink: 0 }
    }

    /// Always `us` microseconds.
    pub const fn fixed(us: u64) -> Self {
        let ns = us.saturating_mul(US);
        Self { rule: Rule::Fixed, limit: ns, max: ns, grow: 1, grow_start: 0, shrink: 1 }
    }

    /// The same rule with another upper bound, in nanoseconds. A limit above it is cut down to it; a fixed window
    /// takes it as its length.
    pub const fn with_max(mut self, max_ns: u64) -> Self {
        self.max = max_ns;
        if matches!(self.rule, Rule::Fixed) || self.limit > max_ns {
            self.limit = max_ns;
        }
        self
    }

    /// Which rule this window follows.
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    /// How long the next wait may spin, in nanoseconds. 0: sleep at once.
    #[inline]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The upper bound, in nanoseconds.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Learns from one wait that ended in sleep. `block_ns` is what the rule's authors measured: see
    /// [`Window::observe_wait`], which picks it.
    pub const fn observe(&mut self, block_ns: u64) {
        match self.rule {
            Rule::Kvm => {
                if block_ns <= self.limit {
                } else if self.limit > 0 && block_ns > self.max {
                    self.shrink();
                } else if self.limit < self.max && block_ns < self.max {
                    self.grow();
                }
            }
            Rule::Haltpoll => {
                if block_ns > self.limit && block_ns <= self.max {
                    self.grow();
                } else if block_ns > self.max {
                    self.shrink();
                }
            }
            Rule::QemuAio => {
                if block_ns <= self.limit {
                } else if block_ns > self.max {
                    self.shrink();
                } else if self.limit < self.max && block_ns < self.max {
                    self.grow();
                }
            }
            Rule::Fixed => {}
        }
    }

    /// Learns from one wait given in its two parts: the time spent spinning and the time spent asleep.
    ///
    /// KVM and QEMU judge the whole wait, since they ask whether a longer spin would have caught the event. The cpuidle
    /// governor sees only the residency of the halted state.
    pub const fn observe_wait(&mut self, polled_ns: u64, slept_ns: u64) {
        match self.rule {
            Rule::Haltpoll => self.observe(slept_ns),
            _ => self.observe(polled_ns.saturating_add(slept_ns)),
        }
    }

    const fn grow(&mut self) {
        let grown = self.limit.saturating_mul(self.grow);
        let grown = if grown < self.grow_start { self.grow_start } else { grown };
        self.limit = if grown > self.max { self.max } else { grown };
    }

    const fn shrink(&mut self) {
        self.limit = match self.limit.checked_div(self.shrink) {
            Some(less) if less >= self.grow_start => less,
            _ => 0,
        };
    }
}

#[cfg(test)]
#[path = "poll_tests.rs"]
mod tests;
