//! `QueueRegionPacked`.
//!
//! The driver may overwrite the slots of a chain that is in flight (with later chains, out of order), so the region
//! holds copies of the descriptors, in entries from a free list. `old_*` fields are the last committed state, the others
//! those of a batch in progress.
//!
//! Fields that must change together share an aligned word here and are stored as one: the specification names the order
//! of stores but a kill between `old_used_idx` and `old_used_wrap_counter` would leave a state that it cannot tell from
//! another. The bytes are the same.

use std::sync::atomic::Ordering::{self, Relaxed, Release};

use super::{DESC_NUM, FEATURES, QueueRegion, VERSION, VERSION_OFFSET};
use crate::broken::SetupError;
use crate::heads::Heads;
use crate::layout::{
    DESC_AVAIL, DESC_USED, PackedDescriptor, SLOT_WORD, slot_flags, slot_id, slot_len, slot_offset, slot_word,
};
use crate::position::Position;
use crate::setup::Format;
use crate::shared::Shared;

/// The fields take 29 bytes; the entries are aligned to 8.
pub(super) const HEADER_BYTES: usize = 32;
pub(super) const ENTRY_BYTES: usize = 32;

/// Offset of `free_head`, followed by `old_free_head`: one word.
const FREE_HEAD: usize = 12;
/// Offset of `used_idx`, followed by `old_used_idx`, `used_wrap_counter`, `old_used_wrap_counter` and two bytes of padding:
/// one word.
const USED: usize = 16;
/// Offset in a `DescStatePacked` of `inflight`, a byte of padding, `next`, `last` and `num`: one word.
const STATE: usize = 0;
const COUNTER: usize = 8;
/// `id`, `flags`, `len` as one word.
const ID_FLAGS_LEN: usize = 16;
const ADDR: usize = 24;

/// Tracks the requests of a packed ring.
pub(crate) struct PackedTracker {
    area: Shared,
    counter: u64,
    free_head: u16,
    /// The committed `free_head`.
    old_free_head: u16,
    /// The states of the entries, as words: a free list that the frontend cannot change.
    states: Box<[u64]>,
    /// The committed used position.
    used: Position,
    /// First entries of the chains completed since the last publication.
    batch: Vec<u16>,
}

/// The linking fields of an entry.
#[derive(Clone, Copy, Default)]
struct State {
    inflight: bool,
    next: u16,
    last: u16,
    num: u16,
}

impl State {
    fn word(self) -> u64 {
        u64::from(self.inflight)
            | u64::from(self.next) << 16
            | u64::from(self.last) << 32
            | u64::from(self.num) << 48
    }

    fn from_word(word: u64) -> Self {
        Self {
            inflight: word as u8 != 0,
            next: (word >> 16) as u16,
            last: (word >> 32) as u16,
            num: (word >> 48) as u16,
        }
    }
}

/// What a predecessor left.
pub(crate) struct Restored {
    /// Where the device uses slots.
    pub used: Position,
    /// Where the driver makes slots available.
    pub avail: Position,
    /// First entries of the chains to resubmit, in the order they were taken.
    pub resubmit: Vec<u16>,
}

impl PackedTracker {
    /// Initialises a fresh region for a ring that is at `used`, or recovers one that a predecessor left, with the ring
    /// it belongs to.
    pub fn open(
        region: QueueRegion,
        size: u16,
        ring: &Shared,
        used: Position,
    ) -> Result<(Self, Option<Restored>), SetupError> {
        region.check(Format::Packed, size)?;
        let entries = usize::from(region.queue_size);
        let mut tracker = Self {
            area: Shared::new(region.area),
            counter: 0,
            free_head: 0,
            old_free_head: 0,
            states: vec![0; entries].into(),
            used,
            batch: Vec::with_capacity(usize::from(size)),
        };
        match tracker.area.load_u16(VERSION_OFFSET, Relaxed) {
            0 => {
                tracker.initialise(region.queue_size);
                Ok((tracker, None))
            }
            VERSION => {
                let restored = tracker.recover(size, ring)?;
                Ok((tracker, Some(restored)))
            }
            _ => Err(SetupError::BadInflight("of an unknown version")),
        }
    }

    /// "When receiving available buffers": a chain with these descriptors was taken. Returns its first entry. Must not
    /// fall between `prepare` and `commit`.
    pub fn taken(&mut self, chain: &[PackedDescriptor]) -> u16 {
        let first = self.free_head;
        self.area.store_u64(entry(first) + COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        let (mut free, mut last) = (first, first);
        for descriptor in chain {
            self.copy(free, descriptor);
            last = free;
            free = self.state(free).next;
        }
        let num = chain.len() as u16;
        self.change(first, |state| State { inflight: true, last, num, ..state });
        // Commits the taking: until here a successor still finds the entry in the free list and ignores its flag.
        self.commit_free_head(free);
        first
    }

    /// The chain was given back unused.
    pub fn untaken(&mut self, first: u16) {
        let (last, free_head) = (self.state(first).last, self.free_head);
        self.change(last, |state| State { next: free_head, ..state });
        self.commit_free_head(first);
        self.change(first, |state| State { inflight: false, ..state });
    }

    /// A chain joins the batch that the next `prepare` announces.
    #[inline]
    pub fn completed(&mut self, first: u16) {
        self.batch.push(first);
    }

    /// "When supplying used buffers", steps 1 to 4 and `used_idx`: to be called before the flags of the batch's first slot
    /// are written, with the used position after the batch.
    pub fn prepare(&mut self, used: Position) {
        for place in 0..self.batch.len() {
            let first = self.batch[place];
            let (last, free_head) = (self.state(first).last, self.free_head);
            self.change(last, |state| State { next: free_head, ..state });
            self.free_head = first;
        }
        self.store_free_head(Relaxed);
        self.area.store_u64(USED, used_word(used, self.used), Release);
        self.used = used;
    }

    /// The rest, after those flags were written.
    pub fn commit(&mut self) {
        for place in 0..self.batch.len() {
            self.change(self.batch[place], |state| State { inflight: false, ..state });
        }
        self.batch.clear();
        self.commit_free_head(self.free_head);
        self.area.store_u64(USED, used_word(self.used, self.used), Release);
    }

    /// Copies the descriptors of a restored chain.
    pub fn restored(&self, first: u16) -> impl Iterator<Item = PackedDescriptor> + '_ {
        let last = self.state(first).last;
        let mut at = Some(first);
        std::iter::from_fn(move || {
            let here = at?;
            at = (here != last).then(|| self.state(here).next);
            Some(self.descriptor(here))
        })
    }

    /// Nothing is in flight and the frontend is told where the ring stands: the region is as good as new.
    pub fn retire(&mut self) {
        self.area.store_u16(VERSION_OFFSET, 0, Release);
    }

    fn copy(&self, index: u16, descriptor: &PackedDescriptor) {
        let word = u64::from(descriptor.id.get())
            | u64::from(descriptor.flags.get()) << 16
            | u64::from(descriptor.len.get()) << 32;
        self.area.store_u64(entry(index) + ADDR, descriptor.addr.get(), Relaxed);
        self.area.store_u64(entry(index) + ID_FLAGS_LEN, word, Relaxed);
    }

    fn descriptor(&self, index: u16) -> PackedDescriptor {
        let word = self.area.load_u64(entry(index) + ID_FLAGS_LEN, Relaxed);
        PackedDescriptor {
            addr: self.area.load_u64(entry(index) + ADDR, Relaxed).into(),
            len: ((word >> 32) as u32).into(),
            id: (word as u16).into(),
            flags: ((word >> 16) as u16).into(),
        }
    }

    #[inline]
    fn state(&self, index: u16) -> State {
        State::from_word(self.states[usize::from(index)])
    }

    #[inline]
    fn change(&mut self, index: u16, to: impl FnOnce(State) -> State) {
        let word = to(self.state(index)).word();
        self.states[usize::from(index)] = word;
        self.area.store_u64(entry(index) + STATE, word, Relaxed);
    }

    fn commit_free_head(&mut self, free_head: u16) {
        (self.free_head, self.old_free_head) = (free_head, free_head);
        // Release: everything the list leads to is there before the list does.
        self.store_free_head(Release);
    }

    fn store_free_head(&self, order: Ordering) {
        let word = u32::from(self.free_head) | u32::from(self.old_free_head) << 16;
        self.area.store_u32(FREE_HEAD, word, order);
    }

    fn initialise(&mut self, queue_size: u16) {
        for index in 0..queue_size {
            self.change(index, |_| State { next: index + 1, ..State::default() });
        }
        self.area.store_u64(FEATURES, 0, Relaxed);
        self.area.store_u16(DESC_NUM, queue_size, Relaxed);
        self.commit_free_head(0);
        self.area.store_u64(USED, used_word(self.used, self.used), Relaxed);
        // Commits the initialisation.
        self.area.store_u16(VERSION_OFFSET, VERSION, Release);
    }

    /// "When reconnecting".
    fn recover(&mut self, size: u16, ring: &Shared) -> Result<Restored, SetupError> {
        self.roll(size, ring)?;
        let mut seen = self.restore_free_list()?;
        let resubmit = self.restore_chains(size, &mut seen)?;
        self.adopt_lost(&seen);
        let slots: u32 = resubmit.iter().map(|&(_, _, slots)| u32::from(slots)).sum();
        if slots > u32::from(size) {
            return Err(SetupError::BadInflight("with more slots in flight than the ring has"));
        }
        self.counter = resubmit.last().map_or(0, |&(counter, _, _)| counter.wrapping_add(1));
        let mut avail = self.used;
        avail.advance(slots as u16, size);
        clear_unpublished(ring, self.used, slots as u16, size);
        Ok(Restored {
            used: self.used,
            avail,
            resubmit: resubmit.into_iter().map(|(_, first, _)| first).collect(),
        })
    }

    /// Rolls the batch in progress forward when the driver can see it, else back.
    fn roll(&mut self, size: u16, ring: &Shared) -> Result<(), SetupError> {
        let bad = SetupError::BadInflight("with a used index outside the ring");
        let word = self.area.load_u64(USED, Relaxed);
        let position = |index: u64, wrap: u64| {
            let index = (word >> index) as u16;
            (index < size).then_some(Position::new(index, (word >> wrap) as u8 != 0)).ok_or(bad)
        };
        let (new, old) = (position(0, 32)?, position(16, 40)?);
        let heads = self.area.load_u32(FREE_HEAD, Relaxed);
        let (free_head, old_free_head) = (heads as u16, (heads >> 16) as u16);
        let word = ring.load_u64(slot_offset(old.index()) + SLOT_WORD, Relaxed);
        let published = new != old && !old.is_available(slot_flags(word));
        (self.used, self.free_head) = if published { (new, free_head) } else { (old, old_free_head) };
        // In this order: with the free list not yet committed the used position must still say so.
        if published {
            self.commit_free_head(self.free_head);
            self.area.store_u64(USED, used_word(self.used, self.used), Release);
        } else {
            self.area.store_u64(USED, used_word(self.used, self.used), Release);
            self.commit_free_head(self.free_head);
        }
        Ok(())
    }

    /// Walks the free list and clears the flags of its entries; returns the free ones.
    fn restore_free_list(&mut self) -> Result<Heads, SetupError> {
        for index in 0..self.states.len() {
            self.states[index] = self.area.load_u64(entry(index as u16) + STATE, Relaxed);
        }
        let mut free = Heads::new(self.states.len());
        let mut at = self.free_head;
        while usize::from(at) < self.states.len() {
            if !free.insert(at) {
                return Err(SetupError::BadInflight("with a loop in its free list"));
            }
            self.change(at, |state| State { inflight: false, ..state });
            at = self.state(at).next;
        }
        Ok(free)
    }

    /// Collects (counter, first entry, slots) of the chains in flight, in the order they were taken.
    fn restore_chains(&self, size: u16, seen: &mut Heads) -> Result<Vec<(u64, u16, u16)>, SetupError> {
        let mut chains = Vec::new();
        for first in 0..self.states.len() as u16 {
            let State { inflight, num, .. } = self.state(first);
            if inflight {
                self.check_chain(first, num.min(size), seen)?;
                chains.push((self.area.load_u64(entry(first) + COUNTER, Relaxed), first, num));
            }
        }
        chains.sort_unstable();
        Ok(chains)
    }

    /// Frees entries that are in no list; a predecessor with another order of stores may leave some. With them there are
    /// as many entries as the ring has slots, or more: the free list never runs out.
    fn adopt_lost(&mut self, seen: &Heads) {
        for index in (0..self.states.len() as u16).filter(|&index| !seen.contains(index)) {
            let free_head = self.free_head;
            self.change(index, |state| State { next: free_head, ..state });
            self.commit_free_head(index);
        }
    }

    /// A chain has `slots` entries, ends in its `last` and shares none with another chain or the free list.
    fn check_chain(&self, first: u16, slots: u16, seen: &mut Heads) -> Result<(), SetupError> {
        let bad = SetupError::BadInflight("with a broken chain");
        let (mut at, mut last) = (first, None);
        for _ in 0..slots {
            if usize::from(at) >= self.states.len() || !seen.insert(at) {
                return Err(bad);
            }
            last = Some(at);
            at = self.state(at).next;
        }
        if last == Some(self.state(first).last) { Ok(()) } else { Err(bad) }
    }
}

/// Only the first slot of a batch hides it from the driver until it is published; a predecessor may have left the others
/// of an unpublished batch marked as used. Makes all slots of chains in flight available again.
fn clear_unpublished(ring: &Shared, used: Position, slots: u16, size: u16) {
    let mut at = used;
    for _ in 0..slots {
        let offset = slot_offset(at.index()) + SLOT_WORD;
        let word = ring.load_u64(offset, Relaxed);
        if !at.is_available(slot_flags(word)) {
            let flags = slot_flags(word) & !(DESC_AVAIL | DESC_USED) | at.available_flags();
            ring.store_u64(offset, slot_word(slot_len(word), slot_id(word), flags), Relaxed);
        }
        at.advance(1, size);
    }
}

#[inline]
fn entry(index: u16) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(index)
}

fn used_word(new: Position, old: Position) -> u64 {
    u64::from(new.index())
        | u64::from(old.index()) << 16
        | u64::from(new.wrap()) << 32
        | u64::from(old.wrap()) << 40
}
