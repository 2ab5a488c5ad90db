//! Device side of the split ring (virtio 1.3 §2.7).

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use memory::{DirtyLog, GuestAddr, MemoryTable, MemoryView};

use crate::broken::{Broken, SetupError};
use crate::chain::{Chain, Token};
use crate::device::DeviceRing;
use crate::event::need_event;
use crate::heads::Heads;
use crate::inflight::{QueueRegion, SplitTracker};
use crate::layout::{
    AVAIL_NO_INTERRUPT, DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, ENTRIES_OFFSET, INDEX_OFFSET,
    SplitDescriptor, USED_BYTES, USED_NO_NOTIFY, UsedElement, avail_event_offset, used_event_offset,
};
use crate::log::RingLog;
use crate::order::Order;
use crate::setup::{Areas, Format, QueueSize, RingAddresses, RingFeatures, RingSetup};
use crate::shared::Shared;
use crate::walk::Walk;

/// What a prefetch brings.
const CACHE_LINE: usize = 64;

/// Device side of one split ring.
pub struct Device {
    desc: Shared,
    avail: Shared,
    used: Shared,
    size: QueueSize,
    mask: u16,
    features: RingFeatures,
    /// Nobody knows what the driver negotiated, see [`Device::assume_any_driver`].
    any_driver: bool,
    addresses: RingAddresses,
    fetch: Fetch,
    completion: Completion,
    /// Heads taken and not handed back: the driver must not offer them again.
    busy: Heads,
    inflight: Option<SplitTracker>,
    log: Option<RingLog>,
    broken: Option<Broken>,
}

/// The avail half: indices are the device's own, the shared ones are only looked at in `fetch` and `arm`.
struct Fetch {
    /// Next avail entry to take. A 16-bit number in 32 bits: beside another short field the compiler would load both at
    /// once, wider than the store just before, and the store could not be forwarded.
    next: u32,
    /// Chains that `next` may still hand out.
    granted: u32,
    /// Heads a predecessor left in flight, the oldest last.
    resubmit: Vec<u16>,
    /// Counts the chains taken.
    serial: u32,
    /// Whether the driver was last asked for kicks.
    armed: bool,
}

/// The used half.
struct Completion {
    /// Next used element to write.
    next: u16,
    /// `used.idx` as last published.
    published: u16,
    /// `used.idx` at the last notification decision. None before the first, which is always yes: nobody knows what a
    /// predecessor had signalled.
    signalled: Option<u16>,
    in_flight: u16,
    order: Option<Order>,
}

impl Device {
    /// Maps and checks a split ring, and recovers its inflight region.
    pub fn new(setup: RingSetup<'_>) -> Result<Self, SetupError> {
        let size = QueueSize::new(Format::Split, setup.size)?;
        let areas = Areas::map(setup.table, &setup.addresses, Format::Split, size)?;
        let used_idx = areas.device.load_u16(INDEX_OFFSET, Relaxed);
        let fresh = setup.inflight.as_ref().is_none_or(QueueRegion::is_fresh);
        let mut next = match u16::try_from(setup.base) {
            Err(_) if !fresh => 0,
            next => next.map_err(|_| SetupError::BadBase { base: setup.base, size: setup.size })?,
        };
        let mut resubmit = Vec::new();
        let mut inflight = None;
        if let Some(region) = setup.inflight {
            let (tracker, left, predecessor) = SplitTracker::open(region, setup.size, used_idx)?;
            if predecessor {
                // Everything before was taken: it is used or in flight.
                next = used_idx.wrapping_add(left.len() as u16);
            }
            resubmit = left;
            resubmit.reverse();
            inflight = Some(tracker);
        }
        let mut ring = Self {
            desc: Shared::new(areas.desc),
            avail: Shared::new(areas.driver),
            used: Shared::new(areas.device),
            mask: setup.size - 1,
            size,
            features: setup.features,
            any_driver: false,
            addresses: setup.addresses,
            fetch: Fetch { next: next.into(), granted: 0, resubmit, serial: 0, armed: true },
            completion: Completion {
                next: used_idx,
                published: used_idx,
                signalled: None,
                in_flight: 0,
                order: setup.features.in_order.then(|| Order::new(setup.size)),
            },
            busy: Heads::new(usize::from(setup.size)),
            inflight,
            log: None,
            broken: None,
        };
        ring.set_log(setup.log, setup.used_log_addr);
        Ok(ring)
    }

    /// The driver's features are unknown: the frontend did not pass on what was negotiated. From now on the ring serves a
    /// driver with INDIRECT_DESC and one without, one with EVENT_IDX and one without.
    ///
    /// **Kicks** are asked for, and declined, by `avail_event` *and* by the flags of the used ring. Each driver ignores one
    /// of the two (virtio 1.3 §2.7.10.1), and both always say the same.
    ///
    /// **Interrupts** are decided by the flags of the avail ring alone. Without EVENT_IDX that is the rule. With it the driver
    /// leaves the flags 0 (§2.7.7.1) and is interrupted once for each batch, wanted or not, which it must bear (ibid.).
    /// `used_event` cannot help: a driver without EVENT_IDX may leave anything there, which taken for an index would keep
    /// it waiting for ever. And NO_INTERRUPT, if it is set, is meant by whoever set it: drivers that negotiated EVENT_IDX
    /// and use the flag all the same (Linux before 4.8) clear it and look again before they sleep.
    pub fn assume_any_driver(&mut self) {
        self.any_driver = true;
        self.features.event_idx = false;
        self.features.indirect = true;
    }

    /// Next avail index, for GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        self.fetch.next
    }

    /// The same for a stop. Once nothing is in flight the inflight region is marked as unused: the next start is then from
    /// SET_VRING_BASE, which may be that of a reset ring, and not from the region.
    pub fn finish(&mut self) -> u32 {
        if self.completion.in_flight == 0
            && self.unpublished() == 0
            && self.fetch.resubmit.is_empty()
            && let Some(mut inflight) = self.inflight.take()
        {
            inflight.retire();
        }
        self.base()
    }

    /// Maps the areas again after the memory table changed.
    pub fn remap(&mut self, table: &MemoryTable) -> Result<(), SetupError> {
        let areas = Areas::map(table, &self.addresses, Format::Split, self.size)?;
        self.desc = Shared::new(areas.desc);
        self.avail = Shared::new(areas.driver);
        self.used = Shared::new(areas.device);
        Ok(())
    }

    /// Switches the dirty log on, off or over.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log_addr: Option<GuestAddr>) {
        let used = used_log_addr.unwrap_or(self.addresses.device);
        self.log = log.map(|log| RingLog::new(log, used, used));
    }

    fn size(&self) -> u16 {
        self.size.get()
    }

    #[inline(always)]
    fn next_avail(&self) -> u16 {
        self.fetch.next as u16
    }

    /// Counts the entries up to `avail.idx`, which are visible then (pairs with the driver's release of `avail.idx`).
    #[inline]
    fn look(&self) -> Result<u16, Broken> {
        let available = self.avail.load_u16(INDEX_OFFSET, Acquire).wrapping_sub(self.next_avail());
        if available > self.size() {
            return Err(Broken::TooManyAvailable { available: available.into(), size: self.size() });
        }
        Ok(available)
    }

    #[inline(always)]
    fn take(&mut self, mem: &MemoryView, chain: &mut Chain) -> Result<(), Broken> {
        let Some(left) = self.fetch.granted.checked_sub(1) else {
            return Err(self.broken.unwrap_or(Broken::NothingFetched));
        };
        self.fetch.granted = left;
        if !self.fetch.resubmit.is_empty() {
            return self.take_again(mem, chain);
        }
        let next = self.next_avail();
        let head = self.head_at(next);
        if left > 0 {
            self.look_ahead(mem, next, left);
        }
        self.open(mem, chain, head, false)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.taken(head);
        }
        self.fetch.next = next.wrapping_add(1).into();
        Ok(())
    }

    /// Takes chains that are one buffer in one region each, in a ring without a predecessor, up to the first that is not: what
    /// nearly every chain of a network device is. Returns how many. `take` is for that one, and finds out what is wrong with it.
    #[inline(always)]
    fn take_singles(&mut self, mem: &MemoryView, chains: &mut [Chain]) -> usize {
        let (first, mut serial, mut taken) = (self.next_avail(), self.fetch.serial, 0u16);
        for chain in chains.iter_mut().take(self.fetch.granted as usize) {
            let head = self.head_at(first.wrapping_add(taken));
            if head >= self.size() {
                break;
            }
            let descriptor: SplitDescriptor = self.desc.read(usize::from(head) * DESC_BYTES);
            let (flags, len) = (descriptor.flags.get(), descriptor.len.get());
            if flags & (DESC_INDIRECT | DESC_NEXT) != 0 || len == 0 {
                break;
            }
            let Ok(slice) = mem.slice(GuestAddr(descriptor.addr.get()), len as usize) else { break };
            if !self.busy.insert(head) {
                break;
            }
            let token = Token { id: head, slots: 1, entry: 0, serial, again: false };
            chain.set_single(slice.range(), flags & DESC_WRITE != 0, token);
            serial = serial.wrapping_add(1);
            taken += 1;
        }
        self.fetch.next = first.wrapping_add(taken).into();
        self.fetch.serial = serial;
        self.fetch.granted -= u32::from(taken);
        self.completion.in_flight += taken;
        taken.into()
    }

    /// Asks for what the chains after the one at `next` will be read from, of which `left` are there: the descriptor of the
    /// second, and the indirect table of the first, whose descriptor was asked for before. What is read here is a hint, and
    /// read again when it counts.
    #[inline(always)]
    fn look_ahead(&self, mem: &MemoryView, next: u16, left: u32) {
        // A masked index is one of the table, whatever the driver wrote.
        let place = |ahead| usize::from(self.head_at(next.wrapping_add(ahead)) & self.mask) * DESC_BYTES;
        let first = place(1);
        self.desc.prefetch(if left > 1 { place(2) } else { first });
        let descriptor: SplitDescriptor = self.desc.read(first);
        if descriptor.flags.get() & DESC_INDIRECT != 0
            && let Ok(table) = mem.slice(GuestAddr(descriptor.addr.get()), DESC_BYTES)
        {
            table.range().prefetch(0);
            table.range().prefetch(CACHE_LINE);
        }
    }

    /// Asks for the descriptors of the chains to come, up to `count`.
    #[inline]
    fn prefetch_descriptors(&self, count: usize) {
        let count = count.min(self.fetch.granted as usize) as u16;
        for ahead in 0..count {
            let head = self.head_at(self.next_avail().wrapping_add(ahead)) & self.mask;
            self.desc.prefetch(usize::from(head) * DESC_BYTES);
        }
    }

    /// Takes a chain that was in flight when the predecessor ended; it already counts as taken.
    #[cold]
    fn take_again(&mut self, mem: &MemoryView, chain: &mut Chain) -> Result<(), Broken> {
        let head = *self.fetch.resubmit.last().ok_or(Broken::NothingFetched)?;
        self.open(mem, chain, head, true)?;
        self.fetch.resubmit.pop();
        Ok(())
    }

    /// Checks and translates the chain at `head`, which then is in flight.
    #[inline(always)]
    fn open(&mut self, mem: &MemoryView, chain: &mut Chain, head: u16, again: bool) -> Result<(), Broken> {
        if head >= self.size() {
            return Err(Broken::IndexOutOfRange { index: head, limit: self.size() });
        }
        if !self.busy.insert(head) {
            return Err(Broken::StillInFlight { id: head });
        }
        self.walk(Walk::new(mem, chain, self.features.indirect), head)?;
        self.completion.in_flight += 1;
        chain.set_token(Token { id: head, slots: 1, entry: 0, serial: self.fetch.serial, again });
        self.fetch.serial = self.fetch.serial.wrapping_add(1);
        Ok(())
    }

    /// Follows a chain. Each descriptor is copied once, and only the copy is looked at.
    #[inline(always)]
    fn walk(&self, mut walk: Walk<'_>, head: u16) -> Result<(), Broken> {
        let mut index = head;
        for _ in 0..self.size() {
            let descriptor: SplitDescriptor = self.desc.read(usize::from(index) * DESC_BYTES);
            let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
            let flags = descriptor.flags.get();
            if flags & DESC_INDIRECT != 0 {
                return walk.split_table(addr, len, flags);
            }
            walk.buffer(addr, len, flags)?;
            if flags & DESC_NEXT == 0 {
                return walk.finish();
            }
            index = descriptor.next.get();
            if index >= self.size() {
                return Err(Broken::IndexOutOfRange { index, limit: self.size() });
            }
        }
        Err(Broken::DescriptorLoop)
    }

    #[inline]
    fn head_at(&self, index: u16) -> u16 {
        self.avail.load_u16(ENTRIES_OFFSET + 2 * usize::from(index & self.mask), Relaxed)
    }

    /// Writes a used element.
    #[inline(always)]
    fn put(&mut self, head: u16, written: u32) {
        self.write_used(self.completion.next, head, written);
        self.completion.next = self.completion.next.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.completed(head);
        }
    }

    /// Completes chains that need not wait for others, in a ring without inflight region and dirty log, up to the first that
    /// has to. Returns how many.
    #[inline(always)]
    fn put_in_turn(&mut self, chains: &[Chain], written: &[u32]) -> usize {
        let (first, mut put) = (self.completion.next, 0u16);
        for (chain, written) in chains.iter().zip(written) {
            let token = chain.token();
            let order = &mut self.completion.order;
            if order.as_mut().is_some_and(|order| !order.pass(token)) || !self.busy.remove(token.id) {
                break;
            }
            self.write_used(first.wrapping_add(put), token.id, *written);
            put += 1;
        }
        self.completion.next = first.wrapping_add(put);
        self.completion.in_flight -= put;
        put.into()
    }

    #[inline(always)]
    fn write_used(&self, at: u16, head: u16, written: u32) {
        let element = UsedElement { id: u32::from(head).into(), len: written.into() };
        self.used.write(ENTRIES_OFFSET + USED_BYTES * usize::from(at & self.mask), element);
    }

    #[inline]
    fn log_batch(&self) {
        if let Some(log) = &self.log {
            let (from, count) = (self.completion.published, self.unpublished());
            let from = usize::from(from & self.mask);
            log.entries(ENTRIES_OFFSET, USED_BYTES, self.size().into(), from, count.into());
            log.used(0, ENTRIES_OFFSET);
        }
    }

    /// The notification decision (virtio 1.3 §2.7.7.2), once for every value of `used.idx` that was published.
    #[inline]
    fn wants_interrupt(&mut self, new: u16) -> bool {
        let old = self.completion.signalled.replace(new);
        if !self.features.event_idx {
            return self.avail.load_u16(0, Relaxed) & AVAIL_NO_INTERRUPT == 0 || old.is_none();
        }
        let event = self.avail.load_u16(used_event_offset(self.size()), Relaxed);
        old.is_none_or(|old| need_event(event, new, old))
    }

    /// Writes the field by which the driver decides about kicks; both, when nobody knows which one that is.
    fn ask_for_kicks(&mut self, on: bool) {
        self.fetch.armed = on;
        if self.features.event_idx || self.any_driver {
            // Off: an index that the driver passed already; it comes there again after 2^16 entries.
            let event = if on { self.next_avail() } else { self.next_avail().wrapping_sub(1) };
            self.ask_by(avail_event_offset(self.size()), event);
        }
        if !self.features.event_idx {
            self.ask_by(0, if on { 0 } else { USED_NO_NOTIFY });
        }
    }

    /// Writes a field of the used ring.
    fn ask_by(&self, offset: usize, value: u16) {
        self.used.store_u16(offset, value, Relaxed);
        if let Some(log) = &self.log {
            log.device(offset, size_of::<u16>());
        }
    }
}

impl DeviceRing for Device {
    #[inline]
    fn fetch(&mut self, max: u16) -> u16 {
        if self.broken.is_some() {
            return 0;
        }
        match self.look() {
            Ok(fresh) => {
                let waiting = usize::from(fresh) + self.fetch.resubmit.len();
                let granted = waiting.min(usize::from(max)) as u16;
                self.fetch.granted = granted.into();
                granted
            }
            Err(why) => {
                self.break_with(why);
                0
            }
        }
    }

    #[inline]
    fn next(&mut self, mem: &MemoryView, chain: &mut Chain) -> Result<(), Broken> {
        let taken = self.take(mem, chain);
        if let Err(why) = taken {
            self.break_with(why);
        }
        taken
    }

    fn next_batch(&mut self, mem: &MemoryView, chains: &mut [Chain]) -> usize {
        let plain = self.inflight.is_none() && self.fetch.resubmit.is_empty();
        self.prefetch_descriptors(chains.len());
        let mut taken = 0;
        loop {
            if plain {
                taken += self.take_singles(mem, &mut chains[taken..]);
            }
            if taken == chains.len() || self.fetch.granted == 0 || self.next(mem, &mut chains[taken]).is_err()
            {
                return taken;
            }
            taken += 1;
        }
    }

    fn complete_batch(&mut self, mem: &MemoryView, chains: &[Chain], written: &[u32]) {
        let plain = self.inflight.is_none() && self.log.is_none();
        let mut done = 0;
        loop {
            if plain {
                done += self.put_in_turn(&chains[done..], &written[done..chains.len()]);
            }
            if done == chains.len() {
                return;
            }
            self.complete(mem, &chains[done], written[done]);
            done += 1;
        }
    }

    fn unfetch(&mut self, chain: &Chain) -> bool {
        let token = chain.token();
        if token.serial.wrapping_add(1) != self.fetch.serial || !self.busy.remove(token.id) {
            return false;
        }
        self.fetch.serial = token.serial;
        self.fetch.granted = 0;
        self.completion.in_flight -= 1;
        if token.again {
            self.fetch.resubmit.push(token.id);
            return true;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.untaken(token.id);
        }
        self.fetch.next = self.next_avail().wrapping_sub(1).into();
        true
    }

    #[inline]
    fn complete(&mut self, mem: &MemoryView, chain: &Chain, written: u32) {
        let token = chain.token();
        // With IN_ORDER a head stays busy until the driver may know that it is used: it cannot be offered before.
        let first = match &mut self.completion.order {
            Some(order) => order.hold(token, written),
            None => self.busy.remove(token.id),
        };
        if !first {
            debug_assert!(false, "chain {} completed twice", token.id);
            return;
        }
        self.completion.in_flight -= 1;
        if let Some(log) = &self.log {
            log.chain(mem, chain, written);
        }
        if self.completion.order.is_none() {
            self.put(token.id, written);
        }
        while let Some((token, written)) = self.completion.order.as_mut().and_then(Order::release) {
            self.busy.remove(token.id);
            self.put(token.id, written);
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let new = self.completion.next;
        if new == self.completion.published {
            return false;
        }
        // Pairs with the driver's acquire load of used.idx: it sees the elements and the buffers.
        self.used.store_u16(INDEX_OFFSET, new, Release);
        if let Some(inflight) = &mut self.inflight {
            inflight.published(new);
        }
        self.log_batch();
        self.completion.published = new;
        // Pairs with the driver's fence between writing used_event or its flags and reading used.idx: either it sees the
        // new index or we see that it wants an interrupt (virtio 1.3 §2.7.7.2).
        fence(SeqCst);
        self.wants_interrupt(new)
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        self.completion.next.wrapping_sub(self.completion.published)
    }

    fn arm(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        self.ask_for_kicks(true);
        // Pairs with the driver's fence between writing avail.idx and reading avail_event or the flags: either it sees
        // that we want a kick or we see its entry (virtio 1.3 §2.7.10).
        fence(SeqCst);
        self.has_work()
    }

    #[inline]
    fn suppress(&mut self) {
        if self.fetch.armed && self.broken.is_none() {
            self.ask_for_kicks(false);
        }
    }

    #[inline]
    fn has_work(&self) -> bool {
        self.broken.is_none()
            && (self.avail.load_u16(INDEX_OFFSET, Relaxed) != self.next_avail()
                || !self.fetch.resubmit.is_empty())
    }

    fn resubmissions(&self) -> u16 {
        self.fetch.resubmit.len() as u16
    }

    fn in_flight(&self) -> u16 {
        self.completion.in_flight
    }

    fn broken(&self) -> Option<Broken> {
        self.broken
    }

    #[cold]
    fn break_with(&mut self, why: Broken) {
        self.fetch.granted = 0;
        self.broken.get_or_insert(why);
    }
}
