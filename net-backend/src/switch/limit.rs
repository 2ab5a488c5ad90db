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
        u64::try_from(u128::from(tokens) * u128::from(self.each) >> SHIFT).unwrap_or(u64::MAX)
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
    fn pay(&self, price: Price, tokens: u64, now_ns: u64) {
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
