//! Device side of the packed ring (virtio 1.3 §2.8).

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use memory::{DirtyLog, GuestAddr, MemoryTable, MemoryView};

use crate::broken::{Broken, SetupError};
use crate::chain::{Chain, Token};
use crate::device::DeviceRing;
use crate::event::need_event;
use crate::heads::Heads;
use crate::inflight::{PackedTracker, QueueRegion};
use crate::layout::{
    DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, EVENT_BYTES, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE,
    PackedDescriptor, SLOT_WORD, WRAP_BIT, slot_flags, slot_offset, slot_word,
};
use crate::log::RingLog;
use crate::order::Order;
use crate::position::Position;
use crate::setup::{Areas, Format, QueueSize, RingAddresses, RingFeatures, RingSetup};
use crate::shared::Shared;
use crate::walk::Walk;

/// Buffer ids are any 16-bit numbers.
const IDS: usize = 1 << 16;

/// Device side of one packed ring.
pub struct Device {
    desc: Shared,
    /// The driver's event suppression area: its wish for interrupts.
    driver: Shared,
    /// The device's event suppression area: our wish for kicks.
    device: Shared,
    size: QueueSize,
    features: RingFeatures,
    addresses: RingAddresses,
    fetch: Fetch,
    completion: Completion,
    /// Buffer ids taken and not handed back: the driver must not offer them again.
    busy: Heads,
    /// Slots between the used and the avail position.
    slots: u16,
    inflight: Option<PackedTracker>,
    log: Option<RingLog>,
    broken: Option<Broken>,
}

/// The avail half.
struct Fetch {
    /// Next slot to take.
    next: Position,
    /// Chains that `next` may still hand out.
    granted: u16,
    /// Entries of chains a predecessor left in flight, the oldest last.
    resubmit: Vec<u16>,
    /// The ring descriptors of the chain being taken, for the inflight region.
    copies: Vec<PackedDescriptor>,
    /// Counts the chains taken.
    serial: u32,
    /// Whether the driver was last asked for kicks.
    armed: bool,
}

/// The used half.
struct Completion {
    /// Next slot to use.
    next: Position,
    /// First slot of the batch, where the driver is waiting.
    published: Position,
    /// What to write to the slots of the batch, and where. With an inflight region only the first one is kept back, which
    /// shows the batch at once. Without one, all are, and are shown in order: a process killed in between leaves a ring
    /// whose used slots are the first ones, as its successor and the driver expect.
    shown: Vec<(u16, u64)>,
    /// Slots of the batch.
    slots: u16,
    /// Chains of the batch.
    chains: u16,
    /// Whether a notification decision was made. The first is always yes: nobody knows what a predecessor had signalled.
    signalled: bool,
    in_flight: u16,
    order: Option<Order>,
}

impl Device {
    /// Maps and checks a packed ring, and recovers its inflight region.
    pub fn new(setup: RingSetup<'_>) -> Result<Self, SetupError> {
        let size = QueueSize::new(Format::Packed, setup.size)?;
        let areas = Areas::map(setup.table, &setup.addresses, Format::Packed, size)?;
        let desc = Shared::new(areas.desc);
        let fresh = setup.inflight.as_ref().is_none_or(QueueRegion::is_fresh);
        let (mut avail, mut used) = match base_positions(setup.base, setup.size) {
            Err(_) if !fresh => (Position::START, Position::START),
            Ok((Position::START, _)) if setup.inflight.is_none() && setup.features.indirect => {
                let at = oldest_unused(&desc, setup.size);
                (at, at)
            }
            positions => positions?,
        };
        let mut resubmit = Vec::new();
        let mut inflight = None;
        if let Some(region) = setup.inflight {
            let (tracker, restored) = PackedTracker::open(region, setup.size, &desc, used)?;
            if let Some(restored) = restored {
                (avail, used, resubmit) = (restored.avail, restored.used, restored.resubmit);
                resubmit.reverse();
            }
            inflight = Some(tracker);
        }
        let mut ring = Self {
            desc,
            driver: Shared::new(areas.driver),
            device: Shared::new(areas.device),
            size,
            features: setup.features,
            addresses: setup.addresses,
            fetch: Fetch {
                next: avail,
                granted: 0,
                resubmit,
                copies: Vec::with_capacity(usize::from(if inflight.is_some() { setup.size } else { 0 })),
                serial: 0,
                armed: true,
            },
            completion: Completion {
                next: used,
                published: used,
                shown: Vec::with_capacity(usize::from(setup.size)),
                slots: 0,
                chains: 0,
                signalled: false,
                in_flight: 0,
                order: setup.features.in_order.then(|| Order::new(setup.size)),
            },
            busy: Heads::new(IDS),
            slots: used.distance(avail, setup.size),
            inflight,
            log: None,
            broken: None,
        };
        ring.set_log(setup.log, setup.used_log_addr);
        Ok(ring)
    }

    /// Both positions, for GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        u32::from(self.fetch.next.bits()) | u32::from(self.completion.next.bits()) << 16
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
        let areas = Areas::map(table, &self.addresses, Format::Packed, self.size)?;
        self.desc = Shared::new(areas.desc);
        self.driver = Shared::new(areas.driver);
        self.device = Shared::new(areas.device);
        Ok(())
    }

    /// Switches the dirty log on, off or over.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log_addr: Option<GuestAddr>) {
        let device = used_log_addr.unwrap_or(self.addresses.device);
        self.log = log.map(|log| RingLog::new(log, self.addresses.desc, device));
    }

    fn size(&self) -> u16 {
        self.size.get()
    }

    #[inline]
    fn flags_at(&self, at: Position) -> u16 {
        slot_flags(self.desc.load_u64(slot_offset(at.index()) + SLOT_WORD, Relaxed))
    }

    /// Counts available chains from the avail position on, up to `max`.
    #[inline]
    fn count_available(&self, max: u16) -> u16 {
        let (mut at, mut room) = (self.fetch.next, self.size() - self.slots);
        let mut chains = 0;
        while chains < max && room > 0 {
            let mut flags = self.flags_at(at);
            if !at.is_available(flags) {
                break;
            }
            chains += 1;
            loop {
                at.advance(1, self.size());
                room -= 1;
                if flags & DESC_NEXT == 0 || room == 0 {
                    break;
                }
                flags = self.flags_at(at);
            }
        }
        // Pairs with the driver's release of each head's flags: the rest of those chains is visible.
        fence(Acquire);
        chains
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
        let (id, slots) = self.walk(Walk::new(mem, chain, self.features.indirect))?;
        self.hold(id)?;
        let entry = self.inflight.as_mut().map_or(0, |inflight| inflight.taken(&self.fetch.copies));
        self.slots += slots;
        self.fetch.next.advance(slots, self.size.get());
        self.mark_taken(chain, Token { id, slots, entry, serial: self.fetch.serial, again: false });
        Ok(())
    }

    /// Takes chains that are one buffer in one region each, in a ring without a predecessor, up to the first that is not.
    /// Returns how many. `take` is for that one, and finds out what is wrong with it.
    #[inline(always)]
    fn take_singles(&mut self, mem: &MemoryView, chains: &mut [Chain]) -> usize {
        let size = self.size.get();
        let room = self.fetch.granted.min(size - self.slots);
        let (mut at, mut serial, mut taken) = (self.fetch.next, self.fetch.serial, 0);
        for chain in chains.iter_mut().take(room.into()) {
            let descriptor: PackedDescriptor = self.desc.read(slot_offset(at.index()));
            let (flags, len, id) = (descriptor.flags.get(), descriptor.len.get(), descriptor.id.get());
            if flags & (DESC_INDIRECT | DESC_NEXT) != 0 || len == 0 {
                break;
            }
            let Ok(slice) = mem.slice(GuestAddr(descriptor.addr.get()), len as usize) else { break };
            if !self.busy.insert(id) {
                break;
            }
            let token = Token { id, slots: 1, entry: 0, serial, again: false };
            chain.set_single(slice.range(), flags & DESC_WRITE != 0, token);
            serial = serial.wrapping_add(1);
            at.advance(1, size);
            taken += 1;
        }
        (self.fetch.next, self.fetch.serial) = (at, serial);
        self.fetch.granted -= taken;
        self.slots += taken;
        self.completion.in_flight += taken;
        taken.into()
    }

    /// Takes a chain that was in flight when the predecessor ended, from its copy; it already counts as taken.
    #[cold]
    fn take_again(&mut self, mem: &MemoryView, chain: &mut Chain) -> Result<(), Broken> {
        let entry = *self.fetch.resubmit.last().ok_or(Broken::NothingFetched)?;
        let inflight = self.inflight.as_ref().ok_or(Broken::NothingFetched)?;
        let walk = Walk::new(mem, chain, self.features.indirect);
        let (id, slots) = follow(walk, inflight.restored(entry))?.ok_or(Broken::DescriptorLoop)?;
        self.hold(id)?;
        self.fetch.resubmit.pop();
        self.mark_taken(chain, Token { id, slots, entry, serial: self.fetch.serial, again: true });
        Ok(())
    }

    #[inline]
    fn hold(&mut self, id: u16) -> Result<(), Broken> {
        if self.busy.insert(id) { Ok(()) } else { Err(Broken::StillInFlight { id }) }
    }

    #[inline]
    fn mark_taken(&mut self, chain: &mut Chain, token: Token) {
        self.completion.in_flight += 1;
        chain.set_token(token);
        self.fetch.serial = self.fetch.serial.wrapping_add(1);
    }

    /// Follows the chain at the avail position; returns its buffer id and its slots.
    #[inline(always)]
    fn walk(&mut self, walk: Walk<'_>) -> Result<(u16, u16), Broken> {
        let (size, mut at) = (self.size(), self.fetch.next);
        let (desc, copies, tracked) = (&self.desc, &mut self.fetch.copies, self.inflight.is_some());
        copies.clear();
        let descriptors = (0..size - self.slots).map(|_| {
            let descriptor: PackedDescriptor = desc.read(slot_offset(at.index()));
            at.advance(1, size);
            if tracked {
                copies.push(descriptor);
            }
            descriptor
        });
        match follow(walk, descriptors)? {
            Some(chain) => Ok(chain),
            None if self.slots == 0 => Err(Broken::DescriptorLoop),
            None => Err(Broken::TooManyAvailable { available: u32::from(size) + 1, size }),
        }
    }

    /// Marks the slot at the used position as used; the first of a batch only in `publish`.
    #[inline(always)]
    fn put(&mut self, token: Token, written: u32) {
        let at = self.completion.next;
        let flags = at.used_flags() | if written > 0 { DESC_WRITE } else { 0 };
        let word = slot_word(written, token.id, flags);
        if self.inflight.is_none() || self.completion.slots == 0 {
            self.completion.shown.push((at.index(), word));
        } else {
            self.desc.store_u64(slot_offset(at.index()) + SLOT_WORD, word, Relaxed);
        }
        self.completion.slots += token.slots;
        self.completion.chains += 1;
        self.completion.next.advance(token.slots, self.size.get());
        if let Some(inflight) = &mut self.inflight {
            inflight.completed(token.entry);
        }
    }

    /// Completes chains that need not wait for others, in a ring without inflight region and dirty log, up to the first that
    /// has to. Returns how many.
    #[inline(always)]
    fn put_in_turn(&mut self, chains: &[Chain], written: &[u32]) -> usize {
        let size = self.size.get();
        let Completion { next, shown, order, slots, .. } = &mut self.completion;
        let (mut at, mut used, before) = (*next, 0, shown.len());
        for (chain, written) in chains.iter().zip(written) {
            let token = chain.token();
            if order.as_mut().is_some_and(|order| !order.pass(token)) || !self.busy.remove(token.id) {
                break;
            }
            let flags = at.used_flags() | if *written > 0 { DESC_WRITE } else { 0 };
            shown.push((at.index(), slot_word(*written, token.id, flags)));
            at.advance(token.slots, size);
            used += token.slots;
        }
        let put = shown.len() - before;
        *next = at;
        *slots += used;
        self.completion.chains += put as u16;
        self.completion.in_flight -= put as u16;
        put
    }

    #[inline]
    fn log_batch(&self) {
        if let Some(log) = &self.log {
            let from = usize::from(self.completion.published.index());
            log.entries(0, DESC_BYTES, self.size().into(), from, self.completion.slots.into());
        }
    }

    /// The notification decision (virtio 1.3 §2.8.10), once for every batch that was published.
    #[inline]
    fn wants_interrupt(&mut self, batch: u16) -> bool {
        let first = !std::mem::replace(&mut self.completion.signalled, true);
        let event = self.driver.load_u32(0, Relaxed);
        let (off_wrap, flags) = (event as u16, (event >> 16) as u16 & 3);
        match flags {
            _ if first => true,
            EVENT_DISABLE => false,
            EVENT_DESC if self.features.event_idx => {
                let new = self.completion.next;
                let mut event = off_wrap & !WRAP_BIT;
                if (off_wrap & WRAP_BIT != 0) != new.wrap() {
                    event = event.wrapping_sub(self.size());
                }
                need_event(event, new.index(), new.index().wrapping_sub(batch))
            }
            _ => true,
        }
    }

    /// Writes the device's event suppression area, offset and flags as one.
    fn ask_for_kicks(&mut self, on: bool) {
        self.fetch.armed = on;
        let flags = match (on, self.features.event_idx) {
            (false, _) => EVENT_DISABLE,
            (true, true) => EVENT_DESC,
            (true, false) => EVENT_ENABLE,
        };
        let word = u32::from(self.fetch.next.bits()) | u32::from(flags) << 16;
        self.device.store_u32(0, word, Relaxed);
        if let Some(log) = &self.log {
            log.device(0, EVENT_BYTES);
        }
    }
}

/// Follows a chain; returns its buffer id and its slots, or None when it does not end. Each descriptor is copied once, and
/// only the copy is looked at.
#[inline(always)]
fn follow(
    mut walk: Walk<'_>,
    descriptors: impl Iterator<Item = PackedDescriptor>,
) -> Result<Option<(u16, u16)>, Broken> {
    let mut slots = 0;
    for descriptor in descriptors {
        slots += 1;
        let (addr, len, flags) = (descriptor.addr.get(), descriptor.len.get(), descriptor.flags.get());
        if flags & DESC_INDIRECT != 0 {
            walk.packed_table(addr, len, flags)?;
            return Ok(Some((descriptor.id.get(), slots)));
        }
        walk.buffer(addr, len, flags)?;
        if flags & DESC_NEXT == 0 {
            walk.finish()?;
            return Ok(Some((descriptor.id.get(), slots)));
        }
    }
    Ok(None)
}

/// Where a ring goes on whose device was killed, by the flags of its slots; the start for a new one, which is all zeroes
/// behind what the driver has made available, and for one whose slots do not tell.
///
/// For frontends that do not know: QEMU (7.2 to 10) has nothing to restore a packed ring from and sends the initial base
/// again. Needs chains of one slot each, which with INDIRECT_DESC they are: slots behind the first of a used chain keep
/// their old flags.
fn oldest_unused(desc: &Shared, size: u16) -> Position {
    let flags = |index: u16| slot_flags(desc.load_u64(slot_offset(index) + SLOT_WORD, Acquire));
    let used = |index: u16, wrap| Position::new(index, wrap).is_used(flags(index));
    let available = |index: u16, wrap| Position::new(index, wrap).is_available(flags(index));
    // How far slots from `from` on are alike.
    let run =
        |from: u16, alike: &dyn Fn(u16) -> bool| (from..size).find(|index| !alike(*index)).unwrap_or(size);
    for wrap in [true, false] {
        if used(0, wrap) {
            // This round has begun: used slots, available ones, and those of the round before, used.
            let open = run(0, &|index| used(index, wrap));
            let fresh = run(open, &|index| available(index, wrap));
            let told = run(fresh, &|index| used(index, !wrap)) == size;
            return match told {
                true if open == size => Position::new(0, !wrap),
                true => Position::new(open, wrap),
                false => Position::START,
            };
        }
        if available(0, wrap) {
            // The driver has wrapped around, and perhaps we have not: slots of the round before may be left at the end.
            let fresh = run(0, &|index| available(index, wrap));
            let open = run(fresh, &|index| used(index, !wrap));
            let told = run(open, &|index| available(index, !wrap)) == size;
            return match told {
                true if open < size => Position::new(open, !wrap),
                true => Position::new(0, wrap),
                false => Position::START,
            };
        }
    }
    Position::START
}

/// The positions in a SET_VRING_BASE value. DPDK's virtio-user leaves the used half zero, which no frontend means: it is
/// then the same as the avail half.
fn base_positions(base: u32, size: u16) -> Result<(Position, Position), SetupError> {
    let (avail, used) = (base as u16, (base >> 16) as u16);
    let used = if used == 0 { avail } else { used };
    let bad = SetupError::BadBase { base, size };
    let avail = Position::from_bits(avail, size).ok_or(bad)?;
    let used = Position::from_bits(used, size).ok_or(bad)?;
    // The used position is at most once around behind.
    if used.wrap() == avail.wrap() && used.index() > avail.index()
        || used.wrap() != avail.wrap() && used.index() < avail.index()
    {
        return Err(bad);
    }
    Ok((avail, used))
}

impl DeviceRing for Device {
    #[inline]
    fn fetch(&mut self, max: u16) -> u16 {
        if self.broken.is_some() {
            return 0;
        }
        let left = self.fetch.resubmit.len().min(usize::from(max)) as u16;
        self.fetch.granted = left + self.count_available(max - left);
        self.fetch.granted
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
            self.fetch.resubmit.push(token.entry);
            return true;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.untaken(token.entry);
        }
        self.slots -= token.slots;
        self.fetch.next.retreat(token.slots, self.size.get());
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
            self.put(token, written);
        }
        while let Some((token, written)) = self.completion.order.as_mut().and_then(Order::release) {
            self.busy.remove(token.id);
            self.put(token, written);
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let batch = self.completion.slots;
        if batch == 0 {
            return false;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.prepare(self.completion.next);
        }
        // Pairs with the driver's acquire load of these flags: it sees the buffers, and with an inflight region the other
        // slots of the batch.
        for (index, word) in self.completion.shown.drain(..) {
            self.desc.store_u64(slot_offset(index) + SLOT_WORD, word, Release);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.commit();
        }
        self.log_batch();
        self.completion.published = self.completion.next;
        self.completion.slots = 0;
        self.completion.chains = 0;
        self.slots -= batch;
        // Pairs with the driver's fence between writing its event area and reading the next used slot: either it sees
        // the batch or we see that it wants an interrupt (virtio 1.3 §2.8.10).
        fence(SeqCst);
        self.wants_interrupt(batch)
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        self.completion.chains
    }

    fn arm(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        self.ask_for_kicks(true);
        // Pairs with the driver's fence between making slots available and reading our event area: either it sees that
        // we want a kick or we see its slot (virtio 1.3 §2.8.10).
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
        let at = self.fetch.next;
        self.broken.is_none()
            && (self.slots < self.size() && at.is_available(self.flags_at(at))
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
