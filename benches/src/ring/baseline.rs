//! The baseline: `virtio-queue` as devices on `vhost-user-backend` use it.
//!
//! The shape is the one of the devices in rust-vmm's own repository: a `VringRwLock` over `GuestMemoryAtomic`, all
//! chains collected, every buffer looked up, one `add_used` per chain, one `needs_notification` per burst.

use std::sync::atomic::Ordering;

use vhost_user_backend::{VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
};

use super::Subject;
use super::case::{BURST, Case, DESCRIPTORS, DEVICE_AREA, DRIVER_AREA};
use super::layout::{AVAIL_INDEX, write_split};

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// A vring of vhost-user-backend under measurement.
pub struct Baseline {
    case: Case,
    memory: Memory,
    vring: VringRwLock<Memory>,
    next: u16,
}

impl Baseline {
    /// A vring of the shape `case`, which must be split: there is no packed queue in `virtio-queue`.
    pub fn new(case: Case) -> Self {
        assert!(!case.packed, "virtio-queue has no packed ring");
        let ranges: Vec<(GuestAddress, usize)> =
            case.region_ranges().into_iter().map(|(base, len)| (GuestAddress(base), len as usize)).collect();
        let map = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("the regions are valid");
        write_split(case, |addr, bytes| {
            map.write_slice(bytes, GuestAddress(addr)).expect("the layout lies inside region 0");
        });
        let memory = GuestMemoryAtomic::new(map);
        let vring = VringRwLock::new(memory.clone(), case.ring_size()).expect("the size is a power of two");
        vring.set_queue_size(case.ring_size());
        vring.set_queue_info(DESCRIPTORS, DRIVER_AREA, DEVICE_AREA).expect("the addresses are aligned");
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        Self { case, memory, vring, next: 0 }
    }

    /// One burst as a `handle_event` of such a device serves it.
    fn burst(&mut self) -> Option<u64> {
        let memory = self.memory.memory();
        let chains: Vec<_> = self
            .vring
            .get_mut()
            .get_queue_mut()
            .iter(self.memory.memory())
            .expect("the queue is ready")
            .take(usize::from(BURST))
            .collect();
        if chains.is_empty() {
            return None;
        }
        let mut bytes = 0;
        for chain in chains {
            let head = chain.head_index();
            let mut writable = 0;
            for descriptor in chain {
                let slice = memory.get_slice(descriptor.addr(), descriptor.len() as usize);
                let len = slice.expect("the buffer lies inside a region").len() as u64;
                bytes += len;
                if descriptor.is_write_only() {
                    writable += len as u32;
                }
            }
            self.vring.add_used(head, writable).expect("the head is valid");
        }
        std::hint::black_box(self.vring.needs_notification().expect("the ring lies inside a region"));
        Some(bytes)
    }
}

impl Subject for Baseline {
    fn refill(&mut self) {
        self.next = self.next.wrapping_add(self.case.chains());
        let stored = self.memory.memory().store(self.next, GuestAddress(AVAIL_INDEX), Ordering::Release);
        stored.expect("the ring lies inside region 0");
    }

    #[inline(never)]
    fn lap(&mut self) -> u64 {
        let mut total = 0;
        while let Some(bytes) = self.burst() {
            total += bytes;
        }
        total
    }
}
