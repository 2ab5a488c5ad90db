//! A limiter for what the other side can trigger.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets a bounded number of messages in each second or minute through and counts the rest: what a guest or a front-end can
/// trigger must not fill the host's disk.
///
/// ```
/// static FAULTS: vhost_user::RateLimited = vhost_user::RateLimited::per_second(5);
/// if let Some(suppressed) = FAULTS.permit() {
///     tracing::warn!(suppressed, "ring broken by the guest");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimited {
    limit: u32,
    /// Length of a window in seconds.
    seconds: u64,
    /// Number of the window in the upper half, messages in it in the lower half.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimited {
    /// At most `limit` messages in each second.
    pub const fn per_second(limit: u32) -> Self {
        Self::new(limit, 1)
    }

    /// At most `limit` messages in each minute.
    pub const fn per_minute(limit: u32) -> Self {
        Self::new(limit, 60)
    }

    const fn new(limit: u32, seconds: u64) -> Self {
        Self { limit, seconds, window: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a message may be logged now, with the number of messages that were not since the last one.
    pub fn permit(&self) -> Option<u64> {
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        self.permit_at(BEGIN.get_or_init(Instant::now).elapsed())
    }

    fn permit_at(&self, now: Duration) -> Option<u64> {
        // Only the low 32 bits of the number matter: a window is only ever compared with its neighbours.
        let number = (now.as_secs() / self.seconds) << 32;
        let take = |window: u64| {
            let count = if window & !u64::from(u32::MAX) == number { window as u32 } else { 0 };
            (count < self.limit).then(|| number | u64::from(count + 1))
        };
        // Relaxed: the counters order nothing but themselves.
        match self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_beyond_the_limit_are_counted_and_reported_in_the_next_second() {
        let limited = RateLimited::per_second(2);
        let at = |ms| limited.permit_at(Duration::from_millis(ms));
        assert_eq!([at(1000), at(1300), at(1600), at(1999)], [Some(0), Some(0), None, None]);
        assert_eq!([at(2000), at(2001), at(2002)], [Some(2), Some(0), None]);
        assert_eq!(at(10_000), Some(1));
    }

    #[test]
    fn a_minute_has_one_limit_for_all_its_seconds() {
        let limited = RateLimited::per_minute(3);
        let lines = |range: std::ops::Range<u64>| {
            range.filter(|second| limited.permit_at(Duration::from_secs(*second)).is_some()).count()
        };
        assert_eq!([lines(60..120), lines(120..180)], [3, 3]);
        assert_eq!(limited.permit_at(Duration::from_secs(180)), Some(57));
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_through() {
        let limited = RateLimited::per_second(0);
        assert!((0..100).all(|ms| limited.permit_at(Duration::from_millis(ms * 500)).is_none()));
    }

    #[test]
    fn threads_together_stay_below_the_limit() {
        let limited = RateLimited::per_second(10);
        let passed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if limited.permit_at(Duration::from_secs(7)).is_some() {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 10);
        assert_eq!(limited.suppressed.into_inner(), 3990);
    }
}
