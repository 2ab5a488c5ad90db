//! The address table: (VLAN, MAC) to port.
//!
//! Fixed size, shared by all workers, no lock. A bucket is one cache line of five entries, and an entry is one atomic word
//! that says everything (which key, which port, static or learned), so a reader never sees half of a change. The time an
//! entry was last seen lies beside it and is only written when it is a second old or more: a flow that goes on writes nothing.
//! An address may be in one of two buckets, the second one for when the first is full.
//!
//! Nothing that a guest sends makes an entry of another port go away but an address moving (IEEE 802.1Q §8.7): entries that are
//! in use are never evicted, a port learns only as many as its limit allows, and static entries do not move.

mod mix;
#[cfg(test)]
mod tests;

use super::ports::{MAX_PORTS, PortId};
use super::vlan::MAX_VLAN;
use crate::frame::MacAddr;
use crossbeam_utils::CachePadded;
use mix::{KEY_BITS, Mix};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Entries of a bucket.
const SLOTS: usize = 5;
/// Entries of a bucket while the table holds what it was made for.
const FILL: usize = 3;
/// Fewest and most bits of a bucket's number.
const INDEX_BITS: std::ops::RangeInclusive<u32> = 10..=22;
/// Times to look for a free slot again when other workers take it.
const ATTEMPTS: u32 = 8;

const PORT: u64 = 0xff;
const STATIC: u64 = 1 << 8;
/// The entry is in the second bucket of its key.
const SECOND: u64 = 1 << 9;
const TAG_SHIFT: u32 = 10;
const PRESENT: u64 = 1 << 63;
/// What says whose entry it is.
const KEY: u64 = !(PORT | STATIC);

const _: () = assert!(MAX_PORTS <= PORT as usize + 1);
const _: () = assert!(KEY_BITS - *INDEX_BITS.start() + TAG_SHIFT < 63);

#[derive(Default)]
#[repr(C, align(64))]
struct Bucket {
    entries: [AtomicU64; SLOTS],
    /// Ticks.
    seen: [AtomicU32; SLOTS],
}

/// What the table knows about a port.
#[derive(Debug, Default)]
struct Tally {
    learned: AtomicU32,
    moved: AtomicU64,
    refused: AtomicU64,
}

/// How much a port has learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Census {
    /// Learned addresses in the table, old ones that were not swept yet included.
    pub learned: u32,
    /// Addresses that moved here from another port.
    pub moved: u64,
    /// Frames whose source address was not learned: the port's limit, a static address of another port, or no room.
    pub refused: u64,
}

/// A moment, for the table: about a second is a tick, so that a shift makes it from nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    tick: u32,
    aging: u32,
}

const TICK_SHIFT: u32 = 30;

/// Seconds in ticks, rounded up.
pub(super) fn ticks(seconds: u32) -> u32 {
    (u64::from(seconds) * 1_000_000_000).div_ceil(1 << TICK_SHIFT) as u32
}

impl Moment {
    /// `aging` in ticks; 0: nothing gets too old.
    #[inline]
    pub(super) fn new(now_ns: u64, aging: u32) -> Self {
        Self { tick: (now_ns >> TICK_SHIFT) as u32, aging }
    }

    #[inline]
    fn age(self, seen: u32) -> u32 {
        self.tick.saturating_sub(seen)
    }

    #[inline]
    fn is_old(self, seen: u32) -> bool {
        self.aging != 0 && self.age(seen) > self.aging
    }
}

/// One entry, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// VLAN; 0 is the untagged one of open ports.
    pub vlan: u16,
    /// Address.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
    /// Configured, not learned.
    #[serde(rename = "static")]
    pub fixed: bool,
    /// Seconds since it was last seen, roughly; 0 for static ones.
    pub age: u32,
}

/// Why an address was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Both of its buckets are full of static entries.
    #[error("The address table has no room for {mac} in VLAN {vlan}: make it larger (table-size)")]
    Full {
        /// VLAN.
        vlan: u16,
        /// Address.
        mac: MacAddr,
    },
    /// It is a static address of another port.
    #[error("{mac} is already a static address of port {port} in VLAN {vlan}")]
    Taken {
        /// VLAN.
        vlan: u16,
        /// Address.
        mac: MacAddr,
        /// Whose it is.
        port: PortId,
    },
    /// A group address or zero.
    #[error("{0} is not the address of a station")]
    NotUnicast(MacAddr),
    /// No VLAN there is.
    #[error("VLAN {0} is not from 0 (untagged) to {MAX_VLAN}")]
    Vlan(u16),
    /// No port there can be.
    #[error("There is no port {0}")]
    Port(PortId),
}

/// What became of a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    Known,
    New,
    Moved,
    Refused,
}

/// Where the two buckets of a key are, and how its entry looks there.
#[derive(Clone, Copy)]
struct Places {
    buckets: [usize; 2],
    /// With the port 0, learned.
    words: [u64; 2],
}

#[derive(Clone, Copy)]
struct Found {
    bucket: usize,
    slot: usize,
    word: u64,
}

/// See the module.
pub(super) struct MacTable {
    buckets: Box<[Bucket]>,
    mix: Mix,
    index_bits: u32,
    tallies: Box<[CachePadded<Tally>]>,
    /// Where the next partial sweep begins, and when the last one was.
    sweep: CachePadded<(AtomicU32, AtomicU32)>,
}

impl std::fmt::Debug for MacTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MacTable").field("buckets", &self.buckets.len()).finish_non_exhaustive()
    }
}

fn port_of(word: u64) -> PortId {
    PortId((word & PORT) as u16)
}

impl MacTable {
    /// Room for `capacity` entries while buckets are three fifths full: then hardly any key meets two full ones.
    pub(super) fn new(capacity: usize) -> Self {
        Self::with_mix(capacity, Mix::random())
    }

    fn with_mix(capacity: usize, mix: Mix) -> Self {
        let wanted =
            capacity.div_ceil(FILL).max(1).checked_next_power_of_two().map_or(u32::MAX, usize::ilog2);
        let index_bits = wanted.clamp(*INDEX_BITS.start(), *INDEX_BITS.end());
        let buckets = (0..1usize << index_bits).map(|_| Bucket::default()).collect();
        let tallies = (0..MAX_PORTS).map(|_| CachePadded::default()).collect();
        Self { buckets, mix, index_bits, tallies, sweep: CachePadded::default() }
    }

    /// Entries there can be at most.
    pub(super) fn slots(&self) -> usize {
        self.buckets.len() * SLOTS
    }

    /// Distance of the two buckets of a key, from what an entry holds of it. Never 0.
    #[inline]
    fn distance(&self, tag: u64) -> usize {
        (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 | 1) as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn places(&self, vlan: u16, mac: MacAddr) -> Places {
        let mixed = self.mix.mix(u64::from(vlan & 0xfff) << 48 | mac.as_u64());
        let first = mixed as usize & (self.buckets.len() - 1);
        let tag = mixed >> self.index_bits;
        let word = PRESENT | tag << TAG_SHIFT;
        Places { buckets: [first, first ^ self.distance(tag)], words: [word, word | SECOND] }
    }

    /// The key of an entry in bucket number `bucket`.
    fn key_of(&self, bucket: usize, word: u64) -> (u16, MacAddr) {
        let tag = (word & !PRESENT) >> TAG_SHIFT;
        let first = if word & SECOND == 0 { bucket } else { bucket ^ self.distance(tag) };
        let key = self.mix.unmix(tag << self.index_bits | first as u64);
        ((key >> 48) as u16, MacAddr::from_u64(key))
    }

    #[inline]
    fn find(&self, places: &Places) -> Option<Found> {
        for (&bucket, wanted) in places.buckets.iter().zip(places.words) {
            let entries = &self.buckets[bucket].entries;
            for (slot, entry) in entries.iter().enumerate() {
                let word = entry.load(Relaxed);
                if word & KEY == wanted {
                    return Some(Found { bucket, slot, word });
                }
            }
        }
        None
    }

    #[inline]
    fn seen(&self, found: &Found) -> &AtomicU32 {
        &self.buckets[found.bucket].seen[found.slot]
    }

    fn entry(&self, found: &Found) -> &AtomicU64 {
        &self.buckets[found.bucket].entries[found.slot]
    }

    fn tally(&self, port: PortId) -> &Tally {
        &self.tallies[port.index() % MAX_PORTS]
    }

    /// The port behind which an address is, if it is known and not too old.
    #[inline]
    pub(super) fn lookup(&self, vlan: u16, mac: MacAddr, now: Moment) -> Option<PortId> {
        let found = self.find(&self.places(vlan, mac))?;
        let alive = found.word & STATIC != 0 || !now.is_old(self.seen(&found).load(Relaxed));
        alive.then(|| port_of(found.word))
    }

    /// Takes note that `port` sent from an address, one of a station.
    #[inline]
    pub(super) fn learn(&self, vlan: u16, mac: MacAddr, port: PortId, limit: u32, now: Moment) -> Learned {
        let places = self.places(vlan, mac);
        match self.find(&places) {
            Some(found) if found.word & PORT == u64::from(port.0) => {
                let seen = self.seen(&found);
                if now.tick > seen.load(Relaxed) {
                    seen.store(now.tick, Relaxed);
                }
                Learned::Known
            }
            Some(found) => self.relocate(&found, port, limit, now),
            None => self.insert(&places, port, limit, now),
        }
    }

    /// An address of another port shows up at `port`.
    #[cold]
    fn relocate(&self, found: &Found, port: PortId, limit: u32, now: Moment) -> Learned {
        if found.word & STATIC != 0 || !self.reserve(port, limit, now) {
            return self.refuse(port);
        }
        let word = found.word & !PORT | u64::from(port.0);
        if self.entry(found).compare_exchange(found.word, word, SeqCst, Relaxed).is_err() {
            // Another worker was quicker with this entry; the next frame finds out what became of it.
            self.release(port);
            return Learned::Known;
        }
        self.seen(found).store(now.tick, Relaxed);
        self.release(port_of(found.word));
        self.tally(port).moved.fetch_add(1, Relaxed);
        Learned::Moved
    }

    #[cold]
    fn insert(&self, places: &Places, port: PortId, limit: u32, now: Moment) -> Learned {
        if !self.reserve(port, limit, now) {
            return self.refuse(port);
        }
        for _ in 0..ATTEMPTS {
            if self.find(places).is_some() {
                self.release(port);
                return Learned::Known;
            }
            let Some(free) = self.free_slot(places, now) else { break };
            if self.take(places, &free, u64::from(port.0), now) {
                return Learned::New;
            }
        }
        self.release(port);
        self.refuse(port)
    }

    fn refuse(&self, port: PortId) -> Learned {
        self.tally(port).refused.fetch_add(1, Relaxed);
        Learned::Refused
    }

    /// A slot without an entry, or with one that is too old: in the first bucket while it has room enough, else in the emptier
    /// one, so that few keys meet two full ones.
    fn free_slot(&self, places: &Places, now: Moment) -> Option<Found> {
        let [first, second] = places.buckets.map(|bucket| {
            let mut free = (0..SLOTS).filter_map(|slot| self.free(bucket, slot, now));
            (free.next(), free.count())
        });
        if first.1 > 0 || first.1 >= second.1 && first.0.is_some() { first.0 } else { second.0.or(first.0) }
    }

    /// The slot, if it has no entry, or one that is too old.
    fn free(&self, bucket: usize, slot: usize, now: Moment) -> Option<Found> {
        let found = Found { bucket, slot, word: self.buckets[bucket].entries[slot].load(Relaxed) };
        let old = || found.word & STATIC == 0 && now.is_old(self.seen(&found).load(Relaxed));
        (found.word == 0 || old()).then_some(found)
    }

    /// Puts the entry of `places` with these flags and port in place of `free`; false: somebody else changed the slot.
    fn take(&self, places: &Places, free: &Found, rest: u64, now: Moment) -> bool {
        let word = places.words[usize::from(free.bucket != places.buckets[0])] | rest;
        if self.entry(free).compare_exchange(free.word, word, SeqCst, Relaxed).is_err() {
            return false;
        }
        self.released(free.word);
        // Until here a learned entry may look too old: then it is not found, or replaced, and learned by the next frame.
        self.seen(free).store(now.tick, Relaxed);
        self.deduplicate(places);
        true
    }

    /// Two workers may insert the same key at the same time in different slots. Each looks again after its own insertion, and as
    /// all of this is sequentially consistent, the later one sees both: one entry stays, a static one if there is any.
    fn deduplicate(&self, places: &Places) {
        // Another look is only needed when somebody else changed one of the entries meanwhile.
        while !self.drop_surplus(places) {}
    }

    fn drop_surplus(&self, places: &Places) -> bool {
        let mut same = places.buckets.iter().zip(places.words).flat_map(|(&bucket, wanted)| {
            (0..SLOTS).filter_map(move |slot| {
                let word = self.buckets[bucket].entries[slot].load(SeqCst);
                (word & KEY == wanted).then_some(Found { bucket, slot, word })
            })
        });
        let Some(mut keep) = same.next() else { return true };
        for other in same {
            let better = other.word & !keep.word & STATIC != 0;
            let surplus = if better { std::mem::replace(&mut keep, other) } else { other };
            if !self.clear(&surplus) {
                return false;
            }
        }
        true
    }

    /// Makes the slot empty if it still has this entry.
    fn clear(&self, found: &Found) -> bool {
        let done = self.entry(found).compare_exchange(found.word, 0, SeqCst, Relaxed).is_ok();
        if done {
            self.released(found.word);
        }
        done
    }

    fn reserve(&self, port: PortId, limit: u32, now: Moment) -> bool {
        let learned = &self.tally(port).learned;
        let one_more = |n: u32| (n < limit).then_some(n + 1);
        if learned.load(Relaxed) < limit && learned.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
            return true;
        }
        self.sweep_some(now);
        false
    }

    fn release(&self, port: PortId) {
        self.tally(port).learned.fetch_sub(1, Relaxed);
    }

    fn released(&self, word: u64) {
        if word != 0 && word & STATIC == 0 {
            self.release(port_of(word));
        }
    }

    /// A port at its limit may have entries that are only waiting to be swept: a sixteenth of the table once a tick, by
    /// whichever worker is first.
    fn sweep_some(&self, now: Moment) {
        let (cursor, last) = &*self.sweep;
        let before = last.load(Relaxed);
        if before == now.tick || last.compare_exchange(before, now.tick, Relaxed, Relaxed).is_err() {
            return;
        }
        let part = self.buckets.len() / 16;
        let from = cursor.fetch_add(part as u32, Relaxed) as usize & (self.buckets.len() - 1);
        self.sweep(from..from + part, |found| now.is_old(self.seen(found).load(Relaxed)));
    }

    /// Clears the learned entries of some buckets that are `unwanted`.
    fn sweep(&self, buckets: std::ops::Range<usize>, unwanted: impl Fn(&Found) -> bool) -> usize {
        let learned = self.all(buckets).filter(|found| found.word & STATIC == 0);
        learned.filter(|found| unwanted(found) && self.clear(found)).count()
    }

    fn all(&self, buckets: std::ops::Range<usize>) -> impl Iterator<Item = Found> + '_ {
        buckets.flat_map(move |bucket| {
            (0..SLOTS).filter_map(move |slot| {
                let word = self.buckets[bucket].entries[slot].load(Relaxed);
                (word != 0).then_some(Found { bucket, slot, word })
            })
        })
    }

    fn everything(&self) -> std::ops::Range<usize> {
        0..self.buckets.len()
    }

    /// Clears what is too old; returns how many that were.
    pub(super) fn age(&self, now: Moment) -> usize {
        self.sweep(self.everything(), |found| now.is_old(self.seen(found).load(Relaxed)))
    }

    /// Clears learned entries, of one port or of all; returns how many.
    pub(super) fn flush(&self, port: Option<PortId>) -> usize {
        self.sweep(self.everything(), |found| port.is_none_or(|port| port_of(found.word) == port))
    }

    /// Adds a static entry in place of a learned one, and of any learned entry if there is no room otherwise.
    pub(super) fn add_static(
        &self,
        vlan: u16,
        mac: MacAddr,
        port: PortId,
        now: Moment,
    ) -> Result<(), TableError> {
        if mac.is_multicast() || mac.is_zero() {
            return Err(TableError::NotUnicast(mac));
        }
        if vlan > MAX_VLAN {
            return Err(TableError::Vlan(vlan));
        }
        if port.index() >= MAX_PORTS {
            return Err(TableError::Port(port));
        }
        let places = self.places(vlan, mac);
        let rest = STATIC | u64::from(port.0);
        // Workers only ever replace learned entries, so this ends as soon as they leave one slot alone for a moment.
        loop {
            let slot = match self.find(&places) {
                Some(found) if found.word & STATIC != 0 && port_of(found.word) == port => return Ok(()),
                Some(found) if found.word & STATIC != 0 => {
                    return Err(TableError::Taken { vlan, mac, port: port_of(found.word) });
                }
                Some(found) => Some(found),
                None => self.free_slot(&places, now).or_else(|| self.oldest(&places, now)),
            };
            let slot = slot.ok_or(TableError::Full { vlan, mac })?;
            if self.take(&places, &slot, rest, now) {
                return Ok(());
            }
        }
    }

    fn oldest(&self, places: &Places, now: Moment) -> Option<Found> {
        let both = places.buckets.iter().flat_map(|&bucket| self.all(bucket..bucket + 1));
        both.filter(|found| found.word & STATIC == 0)
            .max_by_key(|found| now.age(self.seen(found).load(Relaxed)))
    }

    /// Removes an address, static or learned; false: it is not there.
    pub(super) fn remove(&self, vlan: u16, mac: MacAddr) -> bool {
        let places = self.places(vlan, mac);
        let mut removed = false;
        while let Some(found) = self.find(&places) {
            removed |= self.clear(&found);
        }
        removed
    }

    /// Removes all entries of a port and starts its counters anew.
    pub(super) fn forget(&self, port: PortId) {
        for found in self.all(self.everything()).filter(|found| port_of(found.word) == port) {
            self.clear(&found);
        }
        let tally = self.tally(port);
        tally.moved.store(0, Relaxed);
        tally.refused.store(0, Relaxed);
    }

    /// Whose static address it is.
    pub(super) fn static_port(&self, vlan: u16, mac: MacAddr) -> Option<PortId> {
        let found = self.find(&self.places(vlan, mac))?;
        (found.word & STATIC != 0).then(|| port_of(found.word))
    }

    /// All entries that are not too old, by VLAN and address.
    pub(super) fn entries(&self, now: Moment) -> Vec<Entry> {
        let entry = |found: Found| {
            let fixed = found.word & STATIC != 0;
            let seen = self.seen(&found).load(Relaxed);
            let (vlan, mac) = self.key_of(found.bucket, found.word);
            let age =
                if fixed { 0 } else { ((u64::from(now.age(seen)) << TICK_SHIFT) / 1_000_000_000) as u32 };
            (fixed || !now.is_old(seen)).then_some(Entry { vlan, mac, port: port_of(found.word), fixed, age })
        };
        let mut entries: Vec<_> = self.all(self.everything()).filter_map(entry).collect();
        entries.sort_unstable_by_key(|entry| (entry.vlan, entry.mac));
        entries.dedup_by_key(|entry| (entry.vlan, entry.mac));
        entries
    }

    /// How much a port has learned.
    pub(super) fn census(&self, port: PortId) -> Census {
        let tally = self.tally(port);
        Census {
            learned: tally.learned.load(Relaxed),
            moved: tally.moved.load(Relaxed),
            refused: tally.refused.load(Relaxed),
        }
    }
}
