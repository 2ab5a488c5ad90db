//! When to look for results.
//!
//! Every look costs a cache miss, and every result that nobody looks for costs latency. The rule is the one that TLS servers
//! use with hardware accelerators: look when enough is in flight to make it worth while, or when everybody who could do
//! something else is waiting, and in any case once in a while.

use std::time::{Duration, Instant};

/// The rule and its state.
#[derive(Clone, Debug)]
pub struct Reaper {
    threshold: usize,
    deadline: Duration,
    last: Instant,
}

impl Reaper {
    /// Requests in flight that make a look worth while.
    pub const THRESHOLD: usize = 24;
    /// The longest time without a look.
    pub const DEADLINE: Duration = Duration::from_micros(100);

    /// Looks with this many in flight, and after this long.
    pub fn new(threshold: usize, deadline: Duration) -> Self {
        Self { threshold: threshold.max(1), deadline, last: Instant::now() }
    }

    /// Whether to look: `in_flight` requests, `active` tasks that still have something to do besides waiting or
    /// wait already.
    pub fn due(&self, in_flight: usize, active: usize, now: Instant) -> bool {
        in_flight > 0
            && (in_flight >= self.threshold
                || in_flight >= active
                || now.saturating_duration_since(self.last) >= self.deadline)
    }

    /// Somebody has looked.
    pub fn looked(&mut self, now: Instant) {
        self.last = now;
    }
}

impl Default for Reaper {
    fn default() -> Self {
        Self::new(Self::THRESHOLD, Self::DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_due_for_many_requests_for_idle_tasks_and_in_time() {
        let mut reaper = Reaper::new(8, Duration::from_millis(1));
        let start = Instant::now();
        reaper.looked(start);
        assert!(!reaper.due(0, 0, start + Duration::from_secs(1)), "nothing is in flight");
        assert!(!reaper.due(7, 10, start), "three tasks may still submit something");
        assert!(reaper.due(8, 10, start), "worth while");
        assert!(reaper.due(2, 2, start), "everybody waits");
        assert!(!reaper.due(2, 3, start + Duration::from_micros(999)));
        assert!(reaper.due(2, 3, start + Duration::from_millis(1)), "in time");
    }
}
