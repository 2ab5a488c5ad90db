//! Our rings: `fetch`, `next`, `complete` per chain, one `publish` per burst.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory::{Area, GuestAddr, MemoryTable, MemoryView, RegionConfig, UserAddr};
use virtqueue::driver::{DriverRing, IndirectTables, RingAreas, Segment};
use virtqueue::{Chain, DeviceRing, Ring, RingAddresses, RingFeatures, RingSetup, ring_sizes};

use super::Subject;
use super::case::{BURST, Case, DESCRIPTORS, DEVICE_AREA, DRIVER_AREA};
use super::layout::{AVAIL_INDEX, write_split};

/// The device side under measurement and a driver that refills it between laps.
pub struct Ours {
    case: Case,
    device: Ring,
    driver: Driver,
    view: MemoryView,
    chain: Chain,
}

enum Driver {
    /// A lap is one store.
    Split { avail_index: Area, next: u16 },
    /// The device overwrites descriptors, so they are written anew.
    Packed(DriverRing),
}

impl Ours {
    /// A ring of the shape `case`.
    pub fn new(case: Case) -> Self {
        let table = table(case);
        let addresses = RingAddresses {
            desc: GuestAddr(DESCRIPTORS),
            driver: GuestAddr(DRIVER_AREA),
            device: GuestAddr(DEVICE_AREA),
        };
        let features = RingFeatures { indirect: true, packed: case.packed, ..RingFeatures::default() };
        let setup = RingSetup {
            size: case.ring_size(),
            features,
            table: &table,
            addresses,
            // Both wrap counters of a packed ring start at 1 (virtio 1.3 §2.8.1).
            base: if case.packed { 0x8000_8000 } else { 0 },
            inflight: None,
            log: None,
            used_log_addr: None,
        };
        let device = Ring::new(setup).expect("the layout is valid");
        let driver =
            if case.packed { packed_driver(case, &table, features) } else { split_driver(case, &table) };
        Self { case, device, driver, view: MemoryView::new(table), chain: Chain::new() }
    }
}

fn table(case: Case) -> Arc<MemoryTable> {
    let region =
        |(base, len)| RegionConfig { guest: GuestAddr(base), len, user: UserAddr(base), mmap_offset: 0 };
    let regions: Vec<RegionConfig> = case.region_ranges().into_iter().map(region).collect();
    MemoryTable::anonymous(&regions).expect("the regions are valid")
}

fn area(table: &MemoryTable, addr: u64, len: usize) -> Area {
    table.area(GuestAddr(addr), len).expect("the layout lies inside region 0")
}

fn split_driver(case: Case, table: &Arc<MemoryTable>) -> Driver {
    write_split(case, |addr, bytes| area(table, addr, bytes.len()).write_bytes(0, bytes));
    Driver::Split { avail_index: area(table, AVAIL_INDEX, 2), next: 0 }
}

fn packed_driver(case: Case, table: &Arc<MemoryTable>, features: RingFeatures) -> Driver {
    let (desc, driver, device) = ring_sizes(features.format(), case.ring_size());
    let areas = RingAreas {
        desc: area(table, DESCRIPTORS, desc),
        driver: area(table, DRIVER_AREA, driver),
        device: area(table, DEVICE_AREA, device),
    };
    let mut ring =
        DriverRing::new(areas, features.format(), case.ring_size(), features).expect("the layout is valid");
    if case.indirect {
        let entries = 4;
        let tables = area(table, case.table(0), 16 * usize::from(entries) * usize::from(case.ring_size()));
        ring.set_indirect(IndirectTables { area: tables, entries }).expect("the tables fit");
    }
    ring.suppress();
    Driver::Packed(ring)
}

/// Adds one lap of chains to a packed ring.
fn fill_packed(case: Case, ring: &mut DriverRing) {
    while ring.pop().is_some() {}
    for chain in 0..case.chains() {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for buffer in 0..case.buffers {
            let (addr, len, device_writes) = case.buffer(chain, buffer);
            let side = if device_writes { &mut writable } else { &mut readable };
            side.push(Segment { addr: GuestAddr(addr), len });
        }
        let added = if case.indirect {
            ring.add_indirect(&readable, &writable, u32::from(chain))
        } else {
            ring.add(&readable, &writable, u32::from(chain))
        };
        assert!(added.is_ok(), "a lap fits into the ring");
    }
    let _ = ring.publish();
}

impl Subject for Ours {
    fn refill(&mut self) {
        match &mut self.driver {
            Driver::Packed(ring) => fill_packed(self.case, ring),
            Driver::Split { avail_index, next } => {
                *next = next.wrapping_add(self.case.chains());
                avail_index.store_u16(0, *next, Ordering::Release);
            }
        }
    }

    fn lap(&mut self) -> u64 {
        match &mut self.device {
            Ring::Split(ring) => serve(ring, &self.view, &mut self.chain),
            Ring::Packed(ring) => serve(ring, &self.view, &mut self.chain),
        }
    }
}

/// What a device with nothing to do per chain does: take, walk, complete, publish once per burst.
#[inline(never)]
fn serve<R: DeviceRing>(ring: &mut R, view: &MemoryView, chain: &mut Chain) -> u64 {
    let mut bytes = 0;
    loop {
        let count = ring.fetch(BURST);
        if count == 0 {
            return bytes;
        }
        for _ in 0..count {
            ring.next(view, chain).expect("the driver breaks no rule");
            bytes += chain.readable_len() + chain.writable_len();
            ring.complete(view, chain, chain.writable_len() as u32);
        }
        std::hint::black_box(ring.publish());
    }
}
