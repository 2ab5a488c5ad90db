//! Driver side of the packed ring.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use memory::{Area, GuestAddr};

use super::{Full, IndirectTables, Request, RingAreas, Segment, Used, total};
use crate::event::need_event;
use crate::layout::{
    DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE,
    PackedDescriptor, SLOT_WORD, WRAP_BIT, slot_flags, slot_id, slot_len, slot_offset, slot_word,
};
use crate::position::Position;
use crate::setup::RingFeatures;

/// Driver side of one packed ring.
pub struct Driver {
    areas: RingAreas,
    size: u16,
    features: RingFeatures,
    /// Next slot to make available.
    avail: Position,
    /// The first head of the batch and its word: until it is written the device does not see the batch.
    first: (u16, u64),
    /// Slots of the batch.
    batch_slots: u16,
    free: u16,
    /// Buffer ids that are free: a stack, or with IN_ORDER simply counted up.
    ids: Vec<u16>,
    next_id: u16,
    requests: Box<[Request]>,
    /// Next slot that the device uses.
    used: Position,
    /// IN_ORDER: the oldest id in flight.
    oldest: u16,
    /// IN_ORDER: a used slot that stands for all requests up to its own.
    batch: Option<(u16, u32)>,
    tables: Option<IndirectTables>,
    /// Whether the device was last asked for interrupts; a zeroed ring asks for them.
    armed: bool,
    broken: bool,
}

impl Driver {
    pub(super) fn new(areas: RingAreas, size: u16, features: RingFeatures) -> Self {
        Self {
            areas,
            size,
            features,
            avail: Position::START,
            first: (0, 0),
            batch_slots: 0,
            free: size,
            ids: (0..size).rev().collect(),
            next_id: 0,
            requests: vec![Request::default(); usize::from(size)].into(),
            used: Position::START,
            oldest: 0,
            batch: None,
            tables: None,
            armed: true,
            broken: false,
        }
    }

    pub(super) fn set_indirect(&mut self, tables: IndirectTables) {
        self.tables = Some(tables);
    }

    /// See [`DriverRing::add`](super::DriverRing::add).
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment], cookie: u32) -> Result<(), Full> {
        let count = readable.len() + writable.len();
        if count == 0 || count > usize::from(self.free) {
            return Err(Full);
        }
        let id = self.take_id();
        let mut left = count;
        for (segments, flags) in [(readable, 0), (writable, DESC_WRITE)] {
            for segment in segments {
                let head = left == count;
                left -= 1;
                let flags = flags | if left > 0 { DESC_NEXT } else { 0 };
                self.make_available(segment.addr.0, segment.len, id, flags, head);
            }
        }
        self.enqueue(id, Request::new(cookie, writable, count as u16, 0));
        Ok(())
    }

    /// See [`DriverRing::add_indirect`](super::DriverRing::add_indirect).
    #[inline]
    pub fn add_indirect(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        cookie: u32,
    ) -> Result<(), Full> {
        let count = readable.len() + writable.len();
        let Some(tables) = &self.tables else { return Err(Full) };
        if count == 0 || count > usize::from(tables.entries) || self.free == 0 {
            return Err(Full);
        }
        let id = self.peek_id();
        let base = tables.offset(id);
        for (index, segment) in readable.iter().chain(writable).enumerate() {
            let flags = if index < readable.len() { 0 } else { DESC_WRITE };
            write(&tables.area, base + index * DESC_BYTES, segment.addr.0, segment.len, 0, flags);
        }
        let table = GuestAddr(tables.addr(id));
        self.add_prebuilt(table, count as u16, total(writable), cookie)
    }

    /// See [`DriverRing::add_prebuilt`](super::DriverRing::add_prebuilt).
    #[inline]
    pub fn add_prebuilt(
        &mut self,
        table: GuestAddr,
        descriptors: u16,
        writable: u32,
        cookie: u32,
    ) -> Result<(), Full> {
        if self.free == 0 {
            return Err(Full);
        }
        let id = self.take_id();
        let len = u32::from(descriptors) * DESC_BYTES as u32;
        self.make_available(table.0, len, id, DESC_INDIRECT, true);
        self.enqueue(id, Request { cookie, writable, count: 1, tail: 0 });
        Ok(())
    }

    /// Writes the next slot. The word with the flags of the first head of a batch is kept for `publish`; what is there
    /// until then says "used", or nothing yet.
    #[inline]
    fn make_available(&mut self, addr: u64, len: u32, id: u16, flags: u16, head: bool) {
        let word = slot_word(len, id, flags | self.avail.available_flags());
        let offset = slot_offset(self.avail.index());
        self.areas.desc.store_u64(offset, addr, Relaxed);
        if head && self.batch_slots == 0 {
            self.first = (self.avail.index(), word);
        } else {
            self.areas.desc.store_u64(offset + SLOT_WORD, word, Relaxed);
        }
        self.batch_slots += 1;
        self.avail.advance(1, self.size);
    }

    #[inline]
    fn enqueue(&mut self, id: u16, request: Request) {
        self.free -= request.count;
        self.requests[usize::from(id)] = request;
    }

    /// The id that the next request gets: there is one as long as there is a free slot.
    #[inline]
    fn peek_id(&self) -> u16 {
        if self.features.in_order { self.next_id } else { self.ids.last().copied().unwrap_or_default() }
    }

    #[inline]
    fn take_id(&mut self) -> u16 {
        let id = self.peek_id();
        if self.features.in_order {
            self.next_id = self.following(id);
        } else {
            self.ids.pop();
        }
        id
    }

    #[inline]
    fn following(&self, id: u16) -> u16 {
        if id + 1 == self.size { 0 } else { id + 1 }
    }

    /// See [`DriverRing::publish`](super::DriverRing::publish).
    #[inline]
    pub fn publish(&mut self) -> bool {
        let batch = core::mem::take(&mut self.batch_slots);
        if batch == 0 {
            return false;
        }
        let (slot, word) = self.first;
        // Pairs with the device's acquire of these flags: it sees the rest of the batch and the buffers.
        self.areas.desc.store_u64(slot_offset(slot) + SLOT_WORD, word, Release);
        // Pairs with the device's fence between asking for kicks and looking at the next slot (virtio 1.3 §2.8.21.3.1).
        fence(SeqCst);
        let event = self.areas.device.load_u32(0, Relaxed);
        match (event >> 16) as u16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.features.event_idx => self.passed(event as u16, batch),
            _ => true,
        }
    }

    /// Whether the batch passed the slot the device named.
    #[inline]
    fn passed(&self, off_wrap: u16, batch: u16) -> bool {
        let mut event = off_wrap & !WRAP_BIT;
        if (off_wrap & WRAP_BIT != 0) != self.avail.wrap() {
            event = event.wrapping_sub(self.size);
        }
        need_event(event, self.avail.index(), self.avail.index().wrapping_sub(batch))
    }

    /// See [`DriverRing::pop`](super::DriverRing::pop).
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        if self.features.in_order {
            return self.pop_in_order();
        }
        let (id, len) = self.element()?;
        let Some(request) = self.finish(id) else { return self.fail() };
        self.ids.push(id);
        Some(Used { cookie: request.cookie, len })
    }

    /// With IN_ORDER a used slot may stand for all requests up to its own; those before it were used in full (virtio 1.3
    /// §2.8.12).
    fn pop_in_order(&mut self) -> Option<Used> {
        let (last, len) = match self.batch {
            Some(batch) => batch,
            None => self.element()?,
        };
        let id = self.oldest;
        let Some(request) = self.finish(id) else { return self.fail() };
        self.oldest = self.following(id);
        if id == last {
            self.batch = None;
            return Some(Used { cookie: request.cookie, len });
        }
        self.batch = Some((last, len));
        Some(Used { cookie: request.cookie, len: request.writable })
    }

    /// The used slot at the used position, if there is one.
    #[inline]
    fn element(&self) -> Option<(u16, u32)> {
        self.element_at(self.used)
    }

    #[inline]
    fn element_at(&self, at: Position) -> Option<(u16, u32)> {
        // Pairs with the device's release of this word: id, length and buffers are visible.
        let word = self.areas.desc.load_u64(slot_offset(at.index()) + SLOT_WORD, Acquire);
        if !at.is_used(slot_flags(word)) || self.broken {
            return None;
        }
        // The length is only valid when the device wrote anything (virtio 1.3 §2.8.5).
        let len = if slot_flags(word) & DESC_WRITE != 0 { slot_len(word) } else { 0 };
        Some((slot_id(word), len))
    }

    /// Takes a request out, if it is in flight.
    #[inline]
    fn finish(&mut self, id: u16) -> Option<Request> {
        let slot = self.requests.get_mut(usize::from(id))?;
        let request = *slot;
        if request.count == 0 {
            return None;
        }
        slot.count = 0;
        self.free += request.count;
        self.used.advance(request.count, self.size);
        Some(request)
    }

    #[cold]
    fn fail(&mut self) -> Option<Used> {
        self.broken = true;
        None
    }

    /// See [`DriverRing::arm`](super::DriverRing::arm).
    pub fn arm(&mut self) -> bool {
        self.armed = true;
        let flags = if self.features.event_idx { EVENT_DESC } else { EVENT_ENABLE };
        let word = u32::from(self.used.bits()) | u32::from(flags) << 16;
        self.areas.driver.store_u32(0, word, Relaxed);
        // Pairs with the device's fence between publishing a batch and reading our event area.
        fence(SeqCst);
        self.batch.is_some() || self.element().is_some()
    }

    /// See [`DriverRing::suppress`](super::DriverRing::suppress).
    #[inline]
    pub fn suppress(&mut self) {
        if !core::mem::take(&mut self.armed) {
            return;
        }
        self.areas.driver.store_u32(0, u32::from(EVENT_DISABLE) << 16, Relaxed);
    }

    pub(super) fn free(&self) -> u16 {
        self.free
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    /// The device's used position: behind the used slots that were not popped yet.
    pub(super) fn base_for_restart(&self) -> u32 {
        let (mut at, mut oldest) = (self.used, self.oldest);
        let mut used = self.batch.or_else(|| self.element_at(at));
        let mut in_flight = self.size - self.free;
        while let Some((last, _)) = used {
            let id = if self.features.in_order { oldest } else { last };
            let count = self.requests.get(usize::from(id)).map_or(0, |request| request.count);
            if count == 0 || count > in_flight {
                break;
            }
            in_flight -= count;
            at.advance(count, self.size);
            oldest = self.following(oldest);
            if id == last {
                used = self.element_at(at);
            }
        }
        u32::from(at.bits()) | u32::from(at.bits()) << 16
    }

    pub(super) fn start_at(&mut self, base: u32) -> Option<()> {
        let at = Position::from_bits(base as u16, self.size)?;
        (self.avail, self.used) = (at, at);
        let stale = !at.wrap();
        for index in 0..self.size {
            // A slot behind the start was used in this round, one ahead in the round before.
            let wrap = if index < at.index() { at.wrap() } else { stale };
            let flags = Position::new(index, wrap).used_flags();
            self.areas.desc.store_u64(slot_offset(index) + SLOT_WORD, slot_word(0, 0, flags), Relaxed);
        }
        Some(())
    }
}

#[inline]
fn write(area: &Area, offset: usize, addr: u64, len: u32, id: u16, flags: u16) {
    let descriptor =
        PackedDescriptor { addr: addr.into(), len: len.into(), id: id.into(), flags: flags.into() };
    area.write(offset, descriptor);
}
