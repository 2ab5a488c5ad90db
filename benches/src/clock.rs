#![expect(unsafe_code, reason = "reads the time stamp counter and its CPUID description")]
//! A clock cheap enough to read once per burst: the time stamp counter where it is invariant,
//! `CLOCK_MONOTONIC` elsewhere.

use std::time::{Duration, Instant};

/// Reads time in ticks and converts ticks to nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: Source,
    /// Nanoseconds per tick as a fixed-point number with 32 fractional bits.
    scale: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Tsc,
    Monotonic,
}

impl Clock {
    /// Calibrates against `CLOCK_MONOTONIC`; takes 20 ms where the counter is usable.
    pub fn new() -> Self {
        if !tsc::is_invariant() {
            return Self { source: Source::Monotonic, scale: 1 << 32 };
        }
        let begin = (Instant::now(), tsc::read());
        std::thread::sleep(Duration::from_millis(20));
        let end = (Instant::now(), tsc::read());
        let nanos = (end.0 - begin.0).as_nanos();
        let ticks = u128::from(end.1.wrapping_sub(begin.1)).max(1);
        Self { source: Source::Tsc, scale: ((nanos << 32) / ticks) as u64 }
    }

    /// The current time in ticks; only differences mean something.
    #[inline]
    pub fn now(&self) -> u64 {
        match self.source {
            Source::Tsc => tsc::read(),
            Source::Monotonic => monotonic_ns(),
        }
    }

    /// Converts a number of ticks to nanoseconds.
    #[inline]
    pub fn nanos(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }

    /// Converts nanoseconds to ticks.
    pub fn ticks(&self, nanos: u64) -> u64 {
        ((u128::from(nanos) << 32) / u128::from(self.scale.max(1))) as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the whole call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(target_arch = "x86_64")]
mod tsc {
    use std::arch::x86_64::{__cpuid, _rdtsc};

    /// CPUID leaf 0x8000_0007, EDX bit 8: the counter runs at one rate in all power states.
    pub(super) fn is_invariant() -> bool {
        const POWER_LEAF: u32 = 0x8000_0007;
        __cpuid(0x8000_0000).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & (1 << 8) != 0
    }

    #[inline]
    pub(super) fn read() -> u64 {
        // SAFETY: RDTSC has no memory operands and exists on every x86-64 CPU.
        unsafe { _rdtsc() }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod tsc {
    pub(super) fn is_invariant() -> bool {
        false
    }

    pub(super) fn read() -> u64 {
        super::monotonic_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_measure_a_sleep_to_within_its_own_bounds() {
        let clock = Clock::new();
        let (outer, begin) = (Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(30));
        let nanos = clock.nanos(clock.now() - begin);
        assert!(nanos >= 29_500_000, "a sleep of 30 ms measured as {nanos} ns");
        assert!(nanos <= outer.elapsed().as_nanos() as u64 * 101 / 100);
    }

    #[test]
    fn conversion_there_and_back_keeps_the_time() {
        let clock = Clock::new();
        for nanos in [1_000, 1_000_000, 3_600_000_000_000] {
            let back = clock.nanos(clock.ticks(nanos));
            assert!(back.abs_diff(nanos) <= nanos / 1_000_000 + 2, "{nanos} came back as {back}");
        }
    }
}
