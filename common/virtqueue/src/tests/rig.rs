//! Guest memory with one ring in it.

use std::sync::Arc;

use memory::{Area, DirtyLog, GuestAddr, MemoryView, OwnMemory};

use crate::driver::{DriverRing, IndirectTables, RingAreas, Segment};
use crate::inflight::{QueueRegion, region_size};
use crate::{
    Chain, DeviceRing, Format, Ring, RingAddresses, RingFeatures, RingSetup, SetupError, ring_sizes,
};

/// First byte of the guest.
pub const GUEST: GuestAddr = GuestAddr(0x10_0000);
/// Descriptors an indirect table holds.
pub const TABLE: u16 = 16;
const MEMORY: usize = 1 << 20;

/// All combinations of the ring features.
pub fn all_features() -> impl Iterator<Item = RingFeatures> {
    (0..16).map(|bits| RingFeatures {
        event_idx: bits & 1 != 0,
        indirect: bits & 2 != 0,
        in_order: bits & 4 != 0,
        packed: bits & 8 != 0,
    })
}

pub const SPLIT: RingFeatures =
    RingFeatures { event_idx: false, indirect: false, in_order: false, packed: false };
pub const PACKED: RingFeatures = RingFeatures { packed: true, ..SPLIT };

/// Guest memory with one ring, and the inflight region that the frontend keeps.
pub struct Rig {
    pub memory: OwnMemory,
    pub view: MemoryView,
    pub addresses: RingAddresses,
    pub size: u16,
    pub features: RingFeatures,
    pub region: Area,
}

impl Rig {
    pub fn new(size: u16, features: RingFeatures) -> Self {
        Self::with_memory(MEMORY, size, features)
    }

    pub fn with_memory(bytes: usize, size: u16, features: RingFeatures) -> Self {
        let memory = OwnMemory::anonymous(bytes, GUEST).unwrap();
        let (desc, driver, device) = ring_sizes(features.format(), size);
        let addresses = RingAddresses {
            desc: memory.alloc(desc, 16).unwrap(),
            driver: memory.alloc(driver, 4).unwrap(),
            device: memory.alloc(device, 4096).unwrap(),
        };
        let view = MemoryView::new(Arc::clone(memory.table()));
        let region = Area::anonymous(region_size(features.format(), size));
        Self { memory, view, addresses, size, features, region }
    }

    pub fn format(&self) -> Format {
        self.features.format()
    }

    pub fn areas(&self) -> RingAreas {
        RingAreas::in_table(self.memory.table(), &self.addresses, self.format(), self.size).unwrap()
    }

    pub fn driver(&self) -> DriverRing {
        let mut ring = DriverRing::new(self.areas(), self.format(), self.size, self.features).unwrap();
        if self.features.indirect {
            let bytes = 16 * usize::from(TABLE) * usize::from(self.size);
            let addr = self.memory.alloc(bytes, 16).unwrap();
            let area = self.memory.area(addr, bytes).unwrap();
            ring.set_indirect(IndirectTables { area, entries: TABLE }).unwrap();
        }
        ring
    }

    pub fn setup(&self, base: u32) -> RingSetup<'_> {
        RingSetup {
            size: self.size,
            features: self.features,
            table: self.memory.table(),
            addresses: self.addresses,
            base,
            inflight: None,
            log: None,
            used_log_addr: None,
        }
    }

    /// SET_VRING_BASE of a ring that never ran.
    pub fn start(&self) -> u32 {
        if self.features.packed { 0x8000_8000 } else { 0 }
    }

    pub fn device(&self) -> Ring {
        Ring::new(self.setup(self.start())).unwrap()
    }

    /// A device with the inflight region; the base is nonsense when there was a predecessor, as it does not count.
    pub fn tracked(&self, base: u32) -> Result<Ring, SetupError> {
        let region = QueueRegion::new(self.region.clone(), self.format(), self.size)?;
        Ring::new(RingSetup { inflight: Some(region), ..self.setup(base) })
    }

    pub fn logged(&self, log: &Arc<DirtyLog>) -> Ring {
        Ring::new(RingSetup { log: Some(Arc::clone(log)), ..self.setup(self.start()) }).unwrap()
    }

    /// A buffer of the guest.
    pub fn buffer(&self, len: u32) -> Segment {
        let addr = self.memory.alloc(len.max(1) as usize, 1).unwrap();
        Segment { addr, len }
    }

    /// Takes up to `max` chains.
    pub fn take(&self, ring: &mut Ring, max: u16) -> Vec<Chain> {
        (0..ring.fetch(max)).map(|_| self.next(ring)).collect()
    }

    /// Takes all there is and completes it, newest first.
    pub fn serve(&self, ring: &mut Ring) -> usize {
        let chains = self.take(ring, u16::MAX);
        chains.iter().rev().for_each(|chain| ring.complete(&self.view, chain, chain.writable_len() as u32));
        let _ = ring.publish();
        chains.len()
    }

    /// Fetches and takes one chain.
    pub fn next_of(&self, ring: &mut Ring) -> Chain {
        assert_eq!(ring.fetch(1), 1);
        self.next(ring)
    }

    pub fn next(&self, ring: &mut Ring) -> Chain {
        let mut chain = Chain::new();
        ring.next(&self.view, &mut chain).unwrap();
        chain
    }

    /// The chain's buffers as guest addresses: readable, writable.
    pub fn segments(&self, chain: &Chain) -> (Vec<Segment>, Vec<Segment>) {
        let guest = |range: &memory::HostRange| Segment {
            addr: self.memory.table().guest_of(*range).unwrap(),
            len: range.len as u32,
        };
        (chain.readable().iter().map(guest).collect(), chain.writable().iter().map(guest).collect())
    }
}
