//! Driver side of the split ring.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use memory::{Area, GuestAddr};

use super::{Full, IndirectTables, Request, RingAreas, Segment, Used, total};
use crate::event::need_event;
use crate::layout::{
    AVAIL_NO_INTERRUPT, DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, ENTRIES_OFFSET, INDEX_OFFSET,
    SplitDescriptor, USED_BYTES, USED_NO_NOTIFY, UsedElement, avail_event_offset, used_event_offset,
};
use crate::setup::RingFeatures;

/// Driver side of one split ring.
pub struct Driver {
    areas: RingAreas,
    size: u16,
    mask: u16,
    features: RingFeatures,
    /// The descriptor that follows each one, in the free list and in chains. With IN_ORDER always the next in the table
    /// (virtio 1.3 §2.7.9).
    links: Box<[u16]>,
    free_head: u16,
    free: u16,
    requests: Box<[Request]>,
    /// Next avail entry, and `avail.idx` as published.
    avail: u16,
    published: u16,
    /// Next used element, and `used.idx` as last seen.
    used: u16,
    limit: u16,
    /// IN_ORDER: the oldest head in flight.
    oldest: u16,
    /// IN_ORDER: a used element that stands for all requests up to its own.
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
            mask: size - 1,
            features,
            links: (0..size).map(|index| (index + 1) & (size - 1)).collect(),
            free_head: 0,
            free: size,
            requests: vec![Request::default(); usize::from(size)].into(),
            avail: 0,
            published: 0,
            used: 0,
            limit: 0,
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
        let head = self.free_head;
        let (mut index, mut tail, mut left) = (head, head, count);
        for (segments, flags) in [(readable, 0), (writable, DESC_WRITE)] {
            for segment in segments {
                left -= 1;
                let next = self.links[usize::from(index)];
                let flags = flags | if left > 0 { DESC_NEXT } else { 0 };
                write(&self.areas.desc, usize::from(index) * DESC_BYTES, segment, flags, next);
                tail = index;
                index = next;
            }
        }
        self.free_head = index;
        self.enqueue(head, Request::new(cookie, writable, count as u16, tail));
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
        let head = self.free_head;
        let base = tables.offset(head);
        for (index, segment) in readable.iter().chain(writable).enumerate() {
            let write_flag = if index < readable.len() { 0 } else { DESC_WRITE };
            let next_flag = if index + 1 < count { DESC_NEXT } else { 0 };
            write(&tables.area, base + index * DESC_BYTES, segment, write_flag | next_flag, index as u16 + 1);
        }
        let table = GuestAddr(tables.addr(head));
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
        let head = self.free_head;
        let segment = Segment { addr: table, len: u32::from(descriptors) * DESC_BYTES as u32 };
        write(&self.areas.desc, usize::from(head) * DESC_BYTES, &segment, DESC_INDIRECT, 0);
        self.free_head = self.links[usize::from(head)];
        self.enqueue(head, Request { cookie, writable, count: 1, tail: head });
        Ok(())
    }

    /// Puts a chain into the avail ring.
    #[inline]
    fn enqueue(&mut self, head: u16, request: Request) {
        self.free -= request.count;
        self.requests[usize::from(head)] = request;
        let entry = ENTRIES_OFFSET + 2 * usize::from(self.avail & self.mask);
        self.areas.driver.store_u16(entry, head, Relaxed);
        self.avail = self.avail.wrapping_add(1);
    }

    /// See [`DriverRing::publish`](super::DriverRing::publish).
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.avail);
        if old == new {
            return false;
        }
        self.published = new;
        // Pairs with the device's acquire load of avail.idx: it sees entries, descriptors and buffers.
        self.areas.driver.store_u16(INDEX_OFFSET, new, Release);
        // Pairs with the device's fence between asking for kicks and looking at avail.idx (virtio 1.3 §2.7.13.4.1).
        fence(SeqCst);
        if self.features.event_idx {
            let event = self.areas.device.load_u16(avail_event_offset(self.size), Relaxed);
            need_event(event, new, old)
        } else {
            self.areas.device.load_u16(0, Relaxed) & USED_NO_NOTIFY == 0
        }
    }

    /// See [`DriverRing::pop`](super::DriverRing::pop).
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        if self.used == self.limit && !self.look() {
            return None;
        }
        if self.features.in_order {
            return self.pop_in_order();
        }
        let (head, len) = self.element();
        let Some(request) = self.finish(head) else { return self.fail() };
        self.links[usize::from(request.tail)] = self.free_head;
        self.free_head = head;
        Some(Used { cookie: request.cookie, len })
    }

    #[inline]
    fn look(&mut self) -> bool {
        if self.broken {
            return false;
        }
        // Pairs with the device's release of used.idx: elements and buffers are visible.
        self.limit = self.areas.device.load_u16(INDEX_OFFSET, Acquire);
        self.used != self.limit
    }

    /// With IN_ORDER an element may stand for all requests up to its own; those before it were used in full (virtio 1.3
    /// §2.7.9).
    fn pop_in_order(&mut self) -> Option<Used> {
        let (last, len) = match self.batch {
            Some(batch) => batch,
            None => self.element(),
        };
        let head = self.oldest;
        let Some(request) = self.finish(head) else { return self.fail() };
        self.oldest = (head + request.count) & self.mask;
        if head == last {
            self.batch = None;
            return Some(Used { cookie: request.cookie, len });
        }
        self.batch = Some((last, len));
        Some(Used { cookie: request.cookie, len: request.writable })
    }

    #[inline]
    fn element(&self) -> (u16, u32) {
        let offset = ENTRIES_OFFSET + USED_BYTES * usize::from(self.used & self.mask);
        let element: UsedElement = self.areas.device.read(offset);
        (u16::try_from(element.id.get()).unwrap_or(u16::MAX), element.len.get())
    }

    /// Takes a request out, if it is in flight.
    #[inline]
    fn finish(&mut self, head: u16) -> Option<Request> {
        let slot = self.requests.get_mut(usize::from(head))?;
        let request = *slot;
        if request.count == 0 {
            return None;
        }
        slot.count = 0;
        self.free += request.count;
        self.used = self.used.wrapping_add(1);
        Some(request)
    }

    #[cold]
    fn fail(&mut self) -> Option<Used> {
        self.broken = true;
        self.limit = self.used;
        None
    }

    /// See [`DriverRing::arm`](super::DriverRing::arm).
    pub fn arm(&mut self) -> bool {
        self.armed = true;
        if self.features.event_idx {
            self.areas.driver.store_u16(used_event_offset(self.size), self.used, Relaxed);
        } else {
            self.areas.driver.store_u16(0, 0, Relaxed);
        }
        // Pairs with the device's fence between publishing used.idx and reading used_event or our flags.
        fence(SeqCst);
        self.areas.device.load_u16(INDEX_OFFSET, Relaxed) != self.used
    }

    /// See [`DriverRing::suppress`](super::DriverRing::suppress).
    #[inline]
    pub fn suppress(&mut self) {
        if !core::mem::take(&mut self.armed) {
            return;
        }
        if self.features.event_idx {
            let passed = self.used.wrapping_sub(1);
            self.areas.driver.store_u16(used_event_offset(self.size), passed, Relaxed);
        } else {
            self.areas.driver.store_u16(0, AVAIL_NO_INTERRUPT, Relaxed);
        }
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

    pub(super) fn base_for_restart(&self) -> u32 {
        self.areas.device.load_u16(INDEX_OFFSET, Acquire).into()
    }

    pub(super) fn start_at(&mut self, base: u32) -> Option<()> {
        let index = u16::try_from(base).ok()?;
        (self.avail, self.published, self.used, self.limit) = (index, index, index, index);
        self.areas.driver.store_u16(INDEX_OFFSET, index, Relaxed);
        self.areas.device.store_u16(INDEX_OFFSET, index, Relaxed);
        Some(())
    }
}

#[inline]
fn write(area: &Area, offset: usize, segment: &Segment, flags: u16, next: u16) {
    let descriptor = SplitDescriptor {
        addr: segment.addr.0.into(),
        len: segment.len.into(),
        flags: flags.into(),
        next: next.into(),
    };
    area.write(offset, descriptor);
}
