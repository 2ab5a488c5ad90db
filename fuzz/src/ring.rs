//! A device's side of a ring under a hostile driver, with everything that must hold checked after every step.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use memory::{Area, DirtyLog, GuestAddr};
use virtqueue::inflight::{QueueRegion, region_size};
use virtqueue::layout::{
    DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, ENTRIES_OFFSET, INDEX_OFFSET, WRAP_BIT,
};
use virtqueue::{
    Broken, Chain, DeviceRing, Format, Ring, RingAddresses, RingFeatures, RingSetup, ring_sizes,
};

use crate::guest::Guest;
use crate::input::Input;

/// What a target wants to look at.
#[derive(Clone, Copy)]
pub struct Plan {
    /// The ring format; `None` leaves it to the input.
    pub format: Option<Format>,
    /// Negotiates INDIRECT_DESC and offers mostly tables.
    pub tables: bool,
}

/// Runs one input to its end.
pub fn run(plan: Plan, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let guest = Guest::new(&mut input);
    if let Some(mut world) = World::new(plan, guest, &mut input) {
        while !input.is_empty() {
            world.step(&mut input);
        }
        world.finish();
    }
}

/// The driver's own idea of where it is in the ring.
struct Driver {
    /// Split: `avail.idx`; packed: the next slot.
    next: u16,
    /// Packed: its wrap counter.
    wrap: bool,
}

struct World {
    plan: Plan,
    guest: Guest,
    ring: Ring,
    format: Format,
    features: RingFeatures,
    size: u16,
    addresses: RingAddresses,
    driver: Driver,
    /// Chains taken and not handed back.
    held: Vec<Chain>,
    /// Chains `fetch` said may be taken.
    granted: u16,
    /// Chains handed back and not yet published, as far as the driver can tell.
    unseen: u64,
    /// Split: `used.idx` as published last.
    used: u16,
    broken: Option<Broken>,
}

impl World {
    /// `None` when the ring refuses to start, as it may.
    fn new(plan: Plan, guest: Guest, input: &mut Input<'_>) -> Option<Self> {
        let bits = input.u8();
        let format = plan.format.unwrap_or(if bits & 8 == 0 { Format::Split } else { Format::Packed });
        let features = RingFeatures {
            event_idx: bits & 1 != 0,
            in_order: bits & 2 != 0,
            indirect: plan.tables || bits & 4 != 0,
            packed: format == Format::Packed,
        };
        let size = match input.below(16) {
            0 => input.u16(),
            choice if format == Format::Packed && choice & 1 != 0 => choice as u16,
            choice => 1 << (choice % 7),
        };
        let addresses = addresses(&guest, format, size, input);
        let base = if input.below(4) == 0 { input.u32() } else { fresh_base(format) };
        let inflight = inflight(format, size, input);
        let log = (bits & 16 != 0).then(|| DirtyLog::anonymous(8).expect("memory"));
        let setup = RingSetup {
            size,
            features,
            table: guest.table(),
            addresses,
            base,
            inflight,
            log,
            used_log_addr: (bits & 32 != 0).then(|| GuestAddr(guest.address(input))),
        };
        let ring = Ring::new(setup).ok()?;
        let driver = Driver { next: base as u16 & !WRAP_BIT, wrap: base & u32::from(WRAP_BIT) != 0 };
        let used = guest.peek_u16(addresses.device.0 + INDEX_OFFSET as u64);
        let (held, granted, unseen, broken) = (Vec::new(), 0, 0, None);
        Some(Self {
            plan,
            guest,
            ring,
            format,
            features,
            size,
            addresses,
            driver,
            held,
            granted,
            unseen,
            used,
            broken,
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0 => self.scribble(input),
            1..4 => self.offer(input),
            4 => self.jump(input),
            5..9 => self.take_burst(input),
            9..12 => self.complete(input),
            12 => self.publish(),
            13 => self.arm_or_suppress(input),
            14 => self.unfetch(input),
            _ => self.control(input),
        }
        self.check_latch();
    }

    // --- The driver ---

    /// Any bytes anywhere.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let areas = [self.addresses.desc, self.addresses.driver, self.addresses.device];
        let addr = match input.below(8) {
            choice @ 0..3 => areas[choice].0.wrapping_add(u64::from(input.u8())),
            _ => self.guest.address(input),
        };
        let len = input.below(32);
        self.guest.poke(addr, input.take(len));
    }

    /// A chain that is mostly as it should be.
    fn offer(&mut self, input: &mut Input<'_>) {
        let tabled = input.below(4) < if self.plan.tables { 3 } else { 1 };
        let count = 1 + input.below(4) as u16;
        if tabled {
            let table = self.table(count, input);
            self.make_available(&[table], input);
        } else {
            let chain: Vec<_> = (0..count).map(|_| self.buffer(input)).collect();
            self.make_available(&chain, input);
        }
    }

    /// Address, length and flags of a buffer.
    fn buffer(&self, input: &mut Input<'_>) -> (u64, u32, u16) {
        let len = if input.below(16) == 0 { input.u32() } else { u32::from(input.u8()) * 4 };
        let flags = match input.below(16) {
            0 => input.u16(),
            choice if choice & 1 == 0 => DESC_WRITE,
            _ => 0,
        };
        (self.guest.address(input), len, flags)
    }

    /// Writes an indirect table and gives the descriptor that holds it.
    fn table(&self, count: u16, input: &mut Input<'_>) -> (u64, u32, u16) {
        let at = self.guest.address(input) & !if input.below(8) == 0 { 0 } else { 15 };
        for index in 0..count {
            let (addr, len, flags) = self.buffer(input);
            let more = if self.format == Format::Split && index + 1 < count { DESC_NEXT } else { 0 };
            let next = if input.below(16) == 0 { input.u16() } else { index + 1 };
            let bytes = descriptor(addr, len, flags | more, next, self.format);
            self.guest.poke(at.wrapping_add(16 * u64::from(index)), &bytes);
        }
        let len = if input.below(16) == 0 { input.u32() } else { 16 * u32::from(count) };
        (at, len, DESC_INDIRECT | if input.below(16) == 0 { input.u16() } else { 0 })
    }

    fn make_available(&mut self, chain: &[(u64, u32, u16)], input: &mut Input<'_>) {
        match self.format {
            Format::Split => self.make_available_split(chain, input),
            Format::Packed => self.make_available_packed(chain, input),
        }
    }

    fn make_available_split(&mut self, chain: &[(u64, u32, u16)], input: &mut Input<'_>) {
        let head = u16::from(input.u8());
        for (index, &(addr, len, flags)) in chain.iter().enumerate() {
            let slot = (head + index as u16) % self.size;
            let last = index + 1 == chain.len();
            let next = if input.below(16) == 0 { input.u16() } else { (slot + 1) % self.size };
            let flags = flags | if last { 0 } else { DESC_NEXT };
            let bytes = descriptor(addr, len, flags, next, self.format);
            self.guest.poke(self.addresses.desc.0.wrapping_add(16 * u64::from(slot)), &bytes);
        }
        let entry = ENTRIES_OFFSET as u64 + 2 * u64::from(self.driver.next % self.size);
        self.guest.poke(self.addresses.driver.0.wrapping_add(entry), &(head % self.size).to_le_bytes());
        self.driver.next = self.driver.next.wrapping_add(1);
        self.poke_index(self.driver.next);
    }

    fn make_available_packed(&mut self, chain: &[(u64, u32, u16)], input: &mut Input<'_>) {
        let id = u16::from(input.u8());
        for (index, &(addr, len, flags)) in chain.iter().enumerate() {
            let more = if index + 1 == chain.len() { 0 } else { DESC_NEXT };
            let state = if self.driver.wrap { DESC_AVAIL } else { DESC_USED };
            let flags = flags & !(DESC_AVAIL | DESC_USED) | state | more;
            let slot = u64::from(self.driver.next % self.size);
            let bytes = descriptor(addr, len, flags, id % self.size, self.format);
            self.guest.poke(self.addresses.desc.0.wrapping_add(16 * slot), &bytes);
            self.driver.next += 1;
            if self.driver.next >= self.size {
                (self.driver.next, self.driver.wrap) = (0, !self.driver.wrap);
            }
        }
    }

    /// Indices move without anything behind them.
    fn jump(&mut self, input: &mut Input<'_>) {
        self.driver.next = match self.format {
            Format::Split => self.driver.next.wrapping_add(input.u8().into()),
            Format::Packed => input.u16() % self.size,
        };
        self.driver.wrap ^= input.flag();
        if self.format == Format::Split {
            self.poke_index(self.driver.next);
        }
    }

    fn poke_index(&self, index: u16) {
        self.guest.poke(self.addresses.driver.0.wrapping_add(INDEX_OFFSET as u64), &index.to_le_bytes());
    }

    // --- The device ---

    fn take_burst(&mut self, input: &mut Input<'_>) {
        self.guest.remember();
        let max = if input.below(8) == 0 { input.u16() } else { 1 + input.below(16) as u16 };
        self.granted = self.ring.fetch(max);
        assert!(self.granted <= max);
        assert!(self.broken.is_none() || self.granted == 0, "a broken ring yields nothing");
        let takes = self.granted.min(input.u8().into());
        for _ in 0..takes {
            if !self.take_one() {
                break;
            }
        }
        self.guest.assert_only(&[], "taking chains");
    }

    fn take_one(&mut self) -> bool {
        let mut chain = Chain::new();
        let taken = self.ring.next(self.guest.view(), &mut chain);
        match taken {
            Ok(()) => {
                assert!(self.broken.is_none() && self.granted > 0);
                self.granted -= 1;
                self.check_chain(&chain);
                self.held.push(chain);
                assert!(self.held.len() <= usize::from(self.size), "more in flight than the ring holds");
            }
            Err(why) => assert_eq!(self.ring.broken(), Some(self.broken.unwrap_or(why))),
        }
        assert_eq!(usize::from(self.ring.in_flight()), self.held.len());
        taken.is_ok()
    }

    fn check_chain(&self, chain: &Chain) {
        let id = chain.token().id();
        // A packed buffer id is the driver's own business, whatever its value.
        assert!(self.format == Format::Packed || id < self.size, "a head that the ring does not have");
        assert!(self.held.iter().all(|other| other.token().id() != id), "an id that is in flight twice");
        let total = |ranges: &[memory::HostRange]| ranges.iter().map(|range| range.len as u64).sum::<u64>();
        assert_eq!(total(chain.readable()), chain.readable_len());
        assert_eq!(total(chain.writable()), chain.writable_len());
        assert!(chain.readable_len() + chain.writable_len() <= u32::MAX.into());
        for range in chain.readable().iter().chain(chain.writable()) {
            let slice = self.guest.view().reenter(*range).expect("segments lie inside the regions");
            let mut bytes = vec![0; slice.len()];
            slice.read(0, &mut bytes);
        }
    }

    fn complete(&mut self, input: &mut Input<'_>) {
        if self.held.is_empty() {
            return;
        }
        let chain = self.held.swap_remove(input.below(self.held.len()));
        self.serve(&chain, input);
        self.guest.remember();
        let written = if input.below(4) == 0 { input.u32() } else { chain.writable_len() as u32 };
        self.hand_back(&chain, written);
    }

    /// What a device does with a chain: reads a header, writes data and a status.
    fn serve(&mut self, chain: &Chain, input: &mut Input<'_>) {
        self.guest.remember();
        let writable: Vec<_> = chain
            .writable()
            .iter()
            .filter_map(|range| {
                let start = self.guest.table().guest_of(*range)?.0;
                Some(start..start + range.len as u64)
            })
            .collect();
        let mut chain = chain.clone();
        let mut header = [0; 16];
        let has_header = chain.readable_len() >= 16;
        assert_eq!(chain.read_prefix(self.guest.view(), &mut header).is_ok(), has_header);
        let has_status = chain.writable_len() > 0;
        let offset = input.below(64);
        let fits = chain.writable_len() >= offset as u64 + 8;
        assert_eq!(chain.write_at(self.guest.view(), offset, &[0x5a; 8]).is_ok(), fits);
        let zero_tail = chain.writable().last().is_some_and(|range| range.len == 0);
        if !zero_tail {
            assert_eq!(chain.detach_status().is_ok(), has_status);
            assert_eq!(chain.write_status(self.guest.view(), 0xa5).is_ok(), has_status);
        }
        self.guest.assert_only(&writable, "serving a chain");
    }

    fn hand_back(&mut self, chain: &Chain, written: u32) {
        self.ring.complete(self.guest.view(), chain, written);
        self.unseen += 1;
        assert_eq!(usize::from(self.ring.in_flight()), self.held.len());
        self.check_used_writes("complete");
    }

    fn publish(&mut self) {
        self.guest.remember();
        let shown = self.ring.unpublished();
        assert!(u64::from(shown) <= self.unseen, "more is shown than was handed back");
        let signal = self.ring.publish();
        assert!(shown > 0 || !signal, "nothing was shown, so nobody waits for it");
        assert_eq!(self.ring.unpublished(), 0);
        self.check_used_writes("publish");
        if shown == 0 {
            assert!(self.guest.changed().is_empty());
        } else if self.format == Format::Split && self.device_area_is_apart() {
            self.used = self.used.wrapping_add(shown);
            let index = self.guest.peek_u16(self.addresses.device.0 + INDEX_OFFSET as u64);
            assert_eq!(index, self.used, "used.idx went where it should not");
        }
        self.unseen -= u64::from(shown);
    }

    /// Only the used ring may change, and of a packed ring no more slots than chains that are due.
    fn check_used_writes(&self, what: &str) {
        let changed = self.guest.assert_only(&[self.used_area()], what);
        if self.format == Format::Packed {
            let slots: HashSet<u64> =
                changed.iter().map(|addr| (addr - self.addresses.desc.0) / 16).collect();
            assert!(
                slots.len() as u64 <= self.unseen,
                "{what} wrote more used slots than chains were handed back"
            );
        }
    }

    fn used_area(&self) -> Range<u64> {
        let (desc, _, device) = ring_sizes(self.format, self.size);
        match self.format {
            Format::Split => self.addresses.device.0..self.addresses.device.0 + device as u64,
            Format::Packed => self.addresses.desc.0..self.addresses.desc.0 + desc as u64,
        }
    }

    /// The driver may put the used ring on top of another area; then its index says nothing.
    fn device_area_is_apart(&self) -> bool {
        let (desc, driver, device) = ring_sizes(self.format, self.size);
        let range = |addr: GuestAddr, len: usize| addr.0..addr.0 + len as u64;
        let used = range(self.addresses.device, device);
        let apart = |other: &Range<u64>| other.end <= used.start || used.end <= other.start;
        apart(&range(self.addresses.desc, desc)) && apart(&range(self.addresses.driver, driver))
    }

    fn arm_or_suppress(&mut self, input: &mut Input<'_>) {
        self.guest.remember();
        if input.flag() {
            let work = self.ring.arm();
            assert!(self.broken.is_none() || !work, "a broken ring has no work to stay awake for");
        } else {
            self.ring.suppress();
        }
        let (_, _, device) = ring_sizes(self.format, self.size);
        let area = self.addresses.device.0..self.addresses.device.0 + device as u64;
        self.guest.assert_only(&[area], "arm or suppress");
    }

    fn unfetch(&mut self, input: &mut Input<'_>) {
        if self.held.is_empty() {
            return;
        }
        self.guest.remember();
        let index = input.below(self.held.len());
        if self.ring.unfetch(&self.held[index]) {
            self.held.swap_remove(index);
        }
        self.granted = 0;
        assert_eq!(usize::from(self.ring.in_flight()), self.held.len());
        self.guest.assert_only(&[], "unfetch");
    }

    fn control(&mut self, input: &mut Input<'_>) {
        self.guest.remember();
        match input.below(4) {
            0 => self.ring.remap(self.guest.table()).expect("the areas are where they were"),
            1 => {
                let log: Option<Arc<DirtyLog>> =
                    input.flag().then(|| DirtyLog::anonymous(8).expect("memory"));
                let moved = input.flag().then(|| GuestAddr(self.guest.address(input)));
                self.ring.set_log(log, moved);
            }
            2 => {
                self.ring.has_work();
            }
            _ => {
                self.ring.base();
            }
        }
        self.guest.assert_only(&[], "control");
    }

    /// The first violation stays.
    fn check_latch(&mut self) {
        let now = self.ring.broken();
        assert!(self.broken.is_none() || self.broken == now, "the reason changed");
        if now.is_some() && self.broken.is_none() {
            self.broken = now;
            assert_eq!(self.ring.fetch(16), 0, "a broken ring yields nothing");
        }
    }

    /// A stop: everything is handed back, and a sound ring could go on from where it is.
    fn finish(mut self) {
        while let Some(chain) = self.held.pop() {
            self.guest.remember();
            self.hand_back(&chain, 0);
        }
        self.publish();
        assert_eq!(self.ring.in_flight(), 0);
        assert_eq!(self.unseen, 0, "everything handed back has been shown");
        if self.broken.is_none() {
            self.go_on();
        }
    }

    fn go_on(&self) {
        let setup = RingSetup {
            size: self.size,
            features: self.features,
            table: self.guest.table(),
            addresses: self.addresses,
            base: self.ring.base(),
            inflight: None,
            log: None,
            used_log_addr: None,
        };
        let again = Ring::new(setup).expect("a ring can be started again from its own base");
        // A used half of zero means that it is where the avail half is: DPDK's virtio-user leaves it out.
        let unsaid = self.format == Format::Packed && self.ring.base() >> 16 == 0;
        // The initial base may be that of a frontend that does not know: the slots are asked, and this driver's lie.
        let asked = self.format == Format::Packed
            && self.features.indirect
            && self.ring.base() as u16 == fresh_base(Format::Packed) as u16;
        assert!(unsaid || asked || again.base() == self.ring.base());
    }
}

/// The areas one after the other at the start of the first region, or anywhere.
fn addresses(guest: &Guest, format: Format, size: u16, input: &mut Input<'_>) -> RingAddresses {
    let (desc, driver, _) = ring_sizes(format, size);
    let start = guest.start();
    let driver_at = start.wrapping_add(desc as u64);
    let device_at = driver_at.wrapping_add(driver as u64 + 3) & !3;
    let mut addresses =
        RingAddresses { desc: GuestAddr(start), driver: GuestAddr(driver_at), device: GuestAddr(device_at) };
    match input.below(16) {
        0 => addresses.desc = GuestAddr(guest.address(input) & !15),
        1 => addresses.driver = GuestAddr(guest.address(input) & !3),
        2 => addresses.device = GuestAddr(guest.address(input) & !3),
        3 => addresses.device = GuestAddr(guest.address(input)),
        _ => {}
    }
    addresses
}

/// What a frontend sends for a ring that has never run.
fn fresh_base(format: Format) -> u32 {
    match format {
        Format::Split => 0,
        Format::Packed => u32::from(WRAP_BIT) << 16 | u32::from(WRAP_BIT),
    }
}

/// Mostly none; else a fresh one, or one that the frontend has made up.
fn inflight(format: Format, size: u16, input: &mut Input<'_>) -> Option<QueueRegion> {
    let choice = input.below(4);
    if choice < 2 || size > 256 {
        return None;
    }
    let area = Area::anonymous(region_size(format, size));
    if choice == 3 {
        let len = input.below(128).min(area.len());
        let bytes = input.take(len);
        area.write_bytes(0, bytes);
        // Version and size are checked first; let the rest be looked at too.
        area.write(8, 1_u16);
        area.write(10, size);
    }
    QueueRegion::nth(&area, format, size, 0).ok()
}

/// A descriptor of either format: the split one ends in flags and next, the packed one in id and flags.
fn descriptor(addr: u64, len: u32, flags: u16, other: u16, format: Format) -> [u8; 16] {
    let tail = match format {
        Format::Split => [flags, other],
        Format::Packed => [other, flags],
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&tail[0].to_le_bytes());
    bytes[14..].copy_from_slice(&tail[1].to_le_bytes());
    bytes
}
