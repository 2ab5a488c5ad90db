//! Rate limits: packets and bits a second, each way, and storm control.
//!
//! A token bucket in its GCRA form: one number, the time at which the bucket is full again. A frame passes while the bucket
//! is not in debt and pays at once, so a frame larger than the burst passes too and the next one waits the longer. All
//! workers share the number; the rates are part of the [`Policy`](super::Policy), so a change of the policy keeps the debt.
//!
//! **What counts:** a frame counts once, with its length from the destination MAC to the end of the payload as the
//! guest hands it over: no virtio-net header, no preamble, no frame check sequence, and for a frame to be segmented
//! (TSO, USO) the length before it is segmented.

use crossbeam_utils::CachePadded;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Fractions of a nanosecond the buckets count in: a bit at 64 Gbit/s costs one, and the clock lasts 9 years.
const FRACTION: u64 = 64;
const SECOND: u64 = 1_000_000_000;
/// Binary places of [`Price::each`].
const SHIFT: u32 = 24;

/// A sustained rate and how much may pass at once after a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rate {
    /// Tokens (packets or bits) a second; 0 is no limit.
    pub rate: u64,
    /// Tokens that accumulate in a pause; 0 stands for a tenth of a second's worth.
    pub burst: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { rate: 0, burst: 0 };

    /// `rate` tokens a second, with the usual burst.
    pub const fn per_second(rate: u64) -> Self {
        Self { rate, burst: 0 }
    }

    /// Whether this limits anything.
    pub const fn is_limit(self) -> bool {
        self.rate != 0
    }
}

/// Limits of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RatePair {
    /// Packets a second.
    pub packets: Rate,
    /// Bits a second.
    pub bits: Rate,
}

impl RatePair {
    /// Whether this limits anything.
    pub const fn is_limit(self) -> bool {
        self.packets.is_limit() || self.bits.is_limit()
    }
}

/// Rate limits of a port, seen from the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// From the port into the switch. A guest is held back and loses nothing; frames of the uplink are dropped.
    pub ingress: RatePair,
    /// From the switch to the port. What is over is dropped.
    pub egress: RatePair,
}

/// Storm control of a port: most frames a second that it may send to everybody. What is over is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StormLimits {
    /// Frames to unicast addresses that no port is known for.
    pub unknown: Rate,
    /// Broadcasts.
    pub broadcast: Rate,
    /// Multicasts, but for broadcasts.
    pub multicast: Rate,
}

impl StormLimits {
    /// Whether this limits anything.
    pub const fn is_limit(self) -> bool {
        self.unknown.is_limit() || self.broadcast.is_limit() || self.multicast.is_limit()
    }
}

/// A [`Rate`] in the units of a [`Bucket`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Price {
    /// Fractions a token costs, shifted by [`SHIFT`]; 0: no limit.
    each: u64,
    /// Fractions the bucket may run ahead of the clock.
    tolerance: u64,
}

impl Price {
    pub(super) fn new(rate: Rate) -> Self {
        if !rate.is_limit() {
            return Self::default();
        }
        // At most 64e9 << 24, which is below 2^64. A rate too fast for the fixed point is no limit in practice, but stays one.
        let each = ((u128::from(SECOND * FRACTION) << SHIFT) / u128::from(rate.rate)).max(1) as u64;
        let burst = if rate.burst == 0 { rate.rate / 10 } else { rate.burst };
        Self { each, tolerance: Self { each, tolerance: 0 }.of(burst) }
    }

    fn of(self, tokens: u64) -> u64 {
        u64::try_from((u128::from(tokens) * u128::from(self.each)) >> SHIFT).unwrap_or(u64::MAX)
    }
}

/// When one limit's bucket is full again, in fractions.
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

fn clock(now_ns: u64) -> u64 {
    now_ns.saturating_mul(FRACTION)
}

impl Bucket {
    /// Nanosecond from which the bucket takes another frame; `None`: now. Nothing is paid.
    fn busy_until(&self, price: Price, now_ns: u64) -> Option<u64> {
        if price.each == 0 {
            return None;
        }
        let ready = self.0.load(Relaxed).saturating_sub(price.tolerance);
        (ready > clock(now_ns)).then(|| ready.div_ceil(FRACTION))
    }

    /// Pays, into debt if need be.
    pub(super) fn pay(&self, price: Price, tokens: u64, now_ns: u64) {
        if price.each == 0 {
            return;
        }
        let cost = price.of(tokens);
        let paid = |full_at: u64| Some(full_at.max(clock(now_ns)).saturating_add(cost));
        // The closure always has a value, so this cannot fail.
        let _ = self.0.fetch_update(Relaxed, Relaxed, paid);
    }

    /// Pays if the bucket is not in debt; false: it is, and nothing was paid.
    pub(super) fn take(&self, price: Price, tokens: u64, now_ns: u64) -> bool {
        let free = self.busy_until(price, now_ns).is_none();
        if free {
            self.pay(price, tokens, now_ns);
        }
        free
    }
}

/// [`RatePair`] in the units of the buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PricePair {
    packets: Price,
    bits: Price,
}

impl PricePair {
    pub(super) fn new(rates: RatePair) -> Self {
        Self { packets: Price::new(rates.packets), bits: Price::new(rates.bits) }
    }
}

/// The buckets of one direction.
#[derive(Debug, Default)]
pub(super) struct Pair {
    packets: Bucket,
    bits: Bucket,
}

impl Pair {
    /// One frame of `bytes` pays for both; `Err`: it may pass from that nanosecond on, and nothing was paid.
    /// Two workers that ask at the same moment may both pass; the debt of both is paid off afterwards.
    pub(super) fn take(&self, prices: &PricePair, bytes: usize, now_ns: u64) -> Result<(), u64> {
        let waits =
            [self.packets.busy_until(prices.packets, now_ns), self.bits.busy_until(prices.bits, now_ns)];
        if let Some(until) = waits.into_iter().flatten().max() {
            return Err(until);
        }
        self.packets.pay(prices.packets, 1, now_ns);
        self.bits.pay(prices.bits, bytes as u64 * 8, now_ns);
        Ok(())
    }
}

/// [`StormLimits`] in the units of the buckets, by [`Storm`].
pub(super) type StormPrices = [Price; 3];

/// Kinds of frames that go to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storm {
    Unknown,
    Broadcast,
    Multicast,
}

pub(super) fn storm_prices(limits: &StormLimits) -> StormPrices {
    [limits.unknown, limits.broadcast, limits.multicast].map(Price::new)
}

/// All buckets of one port: a line that only limited ports touch.
#[derive(Debug, Default)]
pub(super) struct PortBuckets(CachePadded<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    ingress: Pair,
    egress: Pair,
    storm: [Bucket; 3],
}

impl PortBuckets {
    pub(super) fn ingress(&self) -> &Pair {
        &self.0.ingress
    }

    pub(super) fn egress(&self) -> &Pair {
        &self.0.egress
    }

    pub(super) fn storm(&self, kind: Storm) -> &Bucket {
        &self.0.storm[kind as usize]
    }

    /// Forgives all debt: for a new port with an old number.
    pub(super) fn clear(&self) {
        let Buckets { ingress, egress, storm } = &*self.0;
        let all = [&ingress.packets, &ingress.bits, &egress.packets, &egress.bits];
        all.into_iter().chain(storm).for_each(|bucket| bucket.0.store(0, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(rate: u64, burst: u64) -> PricePair {
        PricePair::new(RatePair { packets: Rate::UNLIMITED, bits: Rate { rate, burst } })
    }

    #[test]
    fn without_a_limit_everything_passes_and_nothing_is_written() {
        let pair = Pair::default();
        assert!((0..1000).all(|_| pair.take(&PricePair::default(), 1 << 16, 0).is_ok()));
        assert_eq!(pair.bits.0.load(Relaxed), 0);
    }

    #[test]
    fn both_limits_hold_and_what_is_refused_pays_for_neither() {
        let rates = RatePair { packets: Rate { rate: 1000, burst: 1 }, bits: Rate { rate: 8000, burst: 8 } };
        let (pair, prices) = (Pair::default(), PricePair::new(rates));
        assert_eq!(pair.take(&prices, 1000, 0), Ok(()));
        let until = pair.take(&prices, 1000, 0).unwrap_err();
        assert!((998_000_000..1_000_000_000).contains(&until), "1000 bytes at 1000 bytes/s: {until}");
        let debts = || [&pair.packets, &pair.bits].map(|bucket| bucket.0.load(Relaxed));
        let before = debts();
        assert!((0..100).all(|_| pair.take(&prices, 1000, 5).is_err()));
        assert_eq!(debts(), before);
        assert_eq!(pair.take(&prices, 1000, until), Ok(()));
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_the_next_one_waits_for_it() {
        let (pair, prices) = (Pair::default(), bits(8_000_000, 8 * 64));
        assert_eq!(pair.take(&prices, 65_536, 0), Ok(()));
        let until = pair.take(&prices, 64, 0).unwrap_err();
        assert!((65_400_000..65_536_000).contains(&until), "{until}");
    }

    #[test]
    fn the_slowest_and_the_fastest_rates_are_kept() {
        for rate in [1, 1_000, 64_000_000_000, 400_000_000_000] {
            let price = Price::new(Rate { rate, burst: 1 });
            let second = price.of(rate);
            let exact = SECOND * FRACTION;
            assert!(second <= exact && second >= exact - exact / 4000, "{rate}: {second} of {exact}");
        }
        assert!(Price::new(Rate { rate: u64::MAX, burst: u64::MAX }).each > 0, "a limit stays a limit");
        assert_eq!(Price::new(Rate { rate: 1, burst: u64::MAX }).tolerance, u64::MAX);
    }

    #[test]
    fn a_new_port_with_an_old_number_has_no_debt() {
        let (buckets, prices) = (PortBuckets::default(), bits(8, 8));
        while buckets.ingress().take(&prices, 100, 0).is_ok() {}
        buckets.clear();
        assert!(buckets.ingress().take(&prices, 100, 0).is_ok());
    }

    #[test]
    fn workers_that_share_a_bucket_share_its_rate() {
        let (pair, prices) = (&Pair::default(), &bits(8 * 1_000_000, 8 * 1000));
        let passed = |_| (0..200_000u64).filter(|n| pair.take(prices, 100, n * 1000).is_ok()).count();
        let total: usize = std::thread::scope(|scope| {
            let workers = [0, 1].map(|worker| scope.spawn(move || passed(worker)));
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // 0.2 s at 10,000 frames a second, the burst of 10, and what each may take on credit.
        assert!((2000..=2000 + 10 + 4).contains(&total), "{total}");
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_rate_and_burst(
            rate in 8_000u64..10_000_000_000,
            burst in 1u64..10_000_000,
            steps in prop::collection::vec((0u64..2_000_000, 14usize..65_536), 1..200),
        ) {
            let (pair, prices) = (Pair::default(), bits(rate, burst));
            let mut now = SECOND;
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (wait, bytes) in steps {
                now += wait;
                if pair.take(&prices, bytes, now).is_ok() {
                    passed.push((now, bytes as u64 * 8));
                }
            }
            for first in 0..passed.len() {
                let mut sum = 0u128;
                for &(at, bits) in &passed[first..] {
                    // The last frame may take the bucket into debt.
                    let window = u128::from(at - passed[first].0);
                    let allowed = u128::from(burst) + u128::from(rate) * window / u128::from(SECOND);
                    let slack = allowed / 1000 + u128::from(rate) / u128::from(SECOND) + 2;
                    prop_assert!(sum <= allowed + slack, "{sum} > {allowed}");
                    sum += u128::from(bits);
                }
            }
        }

        /// A guest that comes back when it was told reaches its rate.
        #[test]
        fn who_waits_as_told_gets_the_whole_rate(rate in 8_000u64..10_000_000_000, bytes in 14usize..65_536) {
            let (pair, prices) = (Pair::default(), bits(rate, 1));
            let mut now = SECOND;
            for _ in 0..64 {
                while let Err(until) = pair.take(&prices, bytes, now) {
                    prop_assert!(until > now);
                    now = until;
                }
            }
            let expected = u128::from(bytes as u64 * 8) * 64 * u128::from(SECOND) / u128::from(rate);
            prop_assert!(u128::from(now - SECOND) <= expected + 64);
        }
    }
}
