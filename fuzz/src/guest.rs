//! A guest's memory in a few small regions, with a memory of what it held.

use std::ops::Range;
use std::sync::Arc;

use memory::{GuestAddr, GuestSlice, MemoryTable, MemoryView, RegionConfig, UserAddr};
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};

use crate::input::Input;

const PAGE: u64 = 4096;

/// Small enough to be compared after every step.
pub const FIRST_REGION: u64 = PAGE;

/// The memory. It is on the heap, so that the sanitizer sees every access past the end of a region.
pub struct Guest {
    view: MemoryView,
    regions: Vec<RegionConfig>,
    before: Vec<Vec<u8>>,
}

impl Guest {
    /// One to four regions, some touching, anywhere in the address space; the first has a whole page.
    pub fn new(input: &mut Input<'_>) -> Self {
        let mut next = input.choose(&[0, PAGE, 1 << 32, (1 << 47) - PAGE, u64::MAX - 8 * PAGE + 1]);
        let mut regions = Vec::new();
        for index in 0..=input.below(4) {
            let len = if index == 0 { FIRST_REGION } else { input.choose(&[PAGE, 1, 100, PAGE - 1]) };
            regions.push(RegionConfig { guest: GuestAddr(next), len, user: UserAddr(0), mmap_offset: 0 });
            next = next.wrapping_add(PAGE * (1 + input.below(2) as u64));
        }
        Self::with(regions)
    }

    /// The given regions, which are usable.
    pub fn with(regions: Vec<RegionConfig>) -> Self {
        let table = MemoryTable::anonymous(&regions).expect("usable regions");
        let before = regions.iter().map(|region| vec![0; region.len as usize]).collect();
        Self { view: MemoryView::new(table), regions, before }
    }

    /// What the device translates with.
    pub fn view(&self) -> &MemoryView {
        &self.view
    }

    /// The table behind it.
    pub fn table(&self) -> &Arc<MemoryTable> {
        self.view.table()
    }

    /// Start of the first region.
    pub fn start(&self) -> u64 {
        self.regions[0].guest.0
    }

    /// An address, mostly inside a region or a little past its end.
    pub fn address(&self, input: &mut Input<'_>) -> u64 {
        match input.below(32) {
            0 => input.u64(),
            choice => {
                let region = &self.regions[choice % self.regions.len()];
                region.guest.0.wrapping_add(u64::from(input.u16()) % (region.len + 16))
            }
        }
    }

    /// The guest writes; what lies outside its memory is lost.
    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            if let Ok(slice) = self.view.table().slice(GuestAddr(addr.wrapping_add(offset as u64)), 1) {
                slice.write(0, &[*byte]);
            }
        }
    }

    /// The guest reads a 16-bit word; 0 outside its memory.
    pub fn peek_u16(&self, addr: u64) -> u16 {
        let slice = self.view.table().slice(GuestAddr(addr), 2);
        slice.ok().and_then(|slice| slice.read_obj(0)).map_or(0, u16::from_le_bytes)
    }

    /// Remembers every byte.
    pub fn remember(&mut self) {
        for (region, before) in self.regions.iter().zip(&mut self.before) {
            let slice = self.view.table().slice(region.guest, before.len()).expect("a whole region");
            slice.read(0, before);
        }
    }

    /// Addresses of the bytes that differ from what was remembered.
    pub fn changed(&self) -> Vec<u64> {
        let mut changed = Vec::new();
        let mut now = Vec::new();
        for (region, before) in self.regions.iter().zip(&self.before) {
            now.resize(before.len(), 0);
            self.view.table().slice(region.guest, now.len()).expect("a whole region").read(0, &mut now);
            if now == *before {
                continue;
            }
            let differs = now.iter().zip(before).enumerate().filter(|(_, (now, before))| now != before);
            changed.extend(differs.map(|(offset, _)| region.guest.0 + offset as u64));
        }
        changed
    }

    /// Panics when a byte outside `allowed` differs from what was remembered; returns those that differ.
    pub fn assert_only(&self, allowed: &[Range<u64>], what: &str) -> Vec<u64> {
        let changed = self.changed();
        let stray = changed.iter().find(|addr| !allowed.iter().any(|range| range.contains(addr)));
        assert_eq!(stray, None, "{what} wrote outside {allowed:x?}");
        changed
    }

    /// A sound ring of `size` entries in `place`, from both sides.
    pub fn ring(&self, place: Range<u64>, size: u16, features: RingFeatures) -> (DriverRing, Box<Queue>) {
        let format = features.format();
        let (desc, driver, device) = ring_sizes(format, size);
        let driver_at = place.start + desc as u64;
        let device_at = (driver_at + driver as u64).next_multiple_of(4);
        assert!(device_at + device as u64 <= place.end, "the ring fits its place");
        let addresses = RingAddresses {
            desc: GuestAddr(place.start),
            driver: GuestAddr(driver_at),
            device: GuestAddr(device_at),
        };
        let table = self.table();
        let driver = DriverRing::in_table(table, &addresses, format, size, features).expect("a good ring");
        let setup = RingSetup {
            size,
            features,
            table,
            addresses,
            base: if features.packed { 0x8000_8000 } else { 0 },
            inflight: None,
            log: None,
            used_log_addr: None,
        };
        (driver, Box::new(Queue::new(setup).expect("a good ring")))
    }

    /// Writes `bytes`, spread over these segments.
    pub fn fill(&self, segments: &[Segment], bytes: &[u8]) {
        let mut at = 0;
        for segment in segments {
            self.poke(segment.addr.0, &bytes[at..at + segment.len as usize]);
            at += segment.len as usize;
        }
    }

    /// What these segments of ours hold.
    pub fn gather(&self, segments: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments {
            let mut copy = |piece: GuestSlice<'_>| {
                let at = bytes.len();
                bytes.resize(at + piece.len(), 0);
                piece.read(0, &mut bytes[at..]);
            };
            let len = segment.len as usize;
            self.view().pieces(segment.addr, len, &mut copy).expect("a buffer of ours");
        }
        bytes
    }
}

/// Cuts `len` bytes, from `next` on, into one to four segments with gaps between them; `None` when they reach past `end`.
pub fn cut(
    next: &mut u64,
    end: u64,
    len: usize,
    longest: usize,
    input: &mut Input<'_>,
) -> Option<Vec<Segment>> {
    let mut left = len;
    let mut segments = Vec::new();
    while left > 0 {
        let part = (1 + usize::from(input.u8())) * longest.div_ceil(256);
        let here = if segments.len() == 3 { left } else { part.min(left) };
        let addr = *next + input.below(4) as u64;
        *next = addr + here as u64;
        segments.push(Segment { addr: GuestAddr(addr), len: here as u32 });
        left -= here;
    }
    (*next <= end).then_some(segments)
}

/// Where a segment is.
pub fn place(segment: &Segment) -> Range<u64> {
    segment.addr.0..segment.addr.0 + u64::from(segment.len)
}
