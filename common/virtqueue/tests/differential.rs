#![cfg(not(miri))]
//! Our split ring against the crate `virtio-queue` on the same driver: the same chains, the same bytes in the used ring, the
//! same notification decisions.

use std::sync::Arc;

use memory::{GuestAddr, MemoryView, OwnMemory};
use proptest::prelude::*;
use virtio_queue::{Queue as TheirQueue, QueueOwnedT, QueueT};
use virtqueue::driver::{DriverRing, IndirectTables, Segment};
use virtqueue::{Chain, DeviceRing, Format, Ring, RingAddresses, RingFeatures, RingSetup, ring_sizes};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const GUEST: u64 = 0x10_0000;
const MEMORY: usize = 0x4_0000;
/// Descriptors an indirect table holds.
const TABLE: u16 = 8;

/// Two guests with the same driver: its memory is copied to theirs before each look.
struct Pair {
    size: u16,
    addresses: RingAddresses,
    tables: GuestAddr,
    ours: OwnMemory,
    view: MemoryView,
    theirs: GuestMemoryMmap,
    driver: DriverRing,
    ring: Ring,
    queue: TheirQueue,
    /// Chains taken by both: ours, and their head.
    taken: Vec<(Chain, u16)>,
    decided: bool,
}

impl Pair {
    fn new(size: u16, features: RingFeatures, base: u16) -> Self {
        let ours = OwnMemory::new(MEMORY, GuestAddr(GUEST)).unwrap();
        let (desc, driver, device) = ring_sizes(Format::Split, size);
        let addresses = RingAddresses {
            desc: ours.alloc(desc, 16).unwrap(),
            driver: ours.alloc(driver, 2).unwrap(),
            device: ours.alloc(device, 4).unwrap(),
        };
        let bytes = 16 * usize::from(TABLE) * usize::from(size);
        let tables = ours.alloc(bytes, 16).unwrap();
        let mut ring = DriverRing::in_table(ours.table(), &addresses, Format::Split, size, features).unwrap();
        ring.set_indirect(IndirectTables { area: ours.area(tables, bytes).unwrap(), entries: TABLE })
            .unwrap();
        ring.start_at(base.into()).unwrap();
        let theirs = GuestMemoryMmap::from_ranges(&[(GuestAddress(GUEST), MEMORY)]).unwrap();
        let mut pair = Self {
            view: MemoryView::new(Arc::clone(ours.table())),
            ring: our_ring(&ours, size, features, addresses, base),
            queue: their_queue(size, features, addresses, base),
            driver: ring,
            size,
            addresses,
            tables,
            ours,
            theirs,
            taken: Vec::new(),
            decided: false,
        };
        pair.copy(addresses.device, device);
        pair
    }

    /// Copies what the driver wrote.
    fn sync(&mut self) {
        let (desc, driver, _) = ring_sizes(Format::Split, self.size);
        self.copy(self.addresses.desc, desc);
        self.copy(self.addresses.driver, driver);
        self.copy(self.tables, 16 * usize::from(TABLE) * usize::from(self.size));
    }

    fn copy(&mut self, addr: GuestAddr, len: usize) {
        let mut bytes = vec![0; len];
        self.ours.slice(addr, len).unwrap().read(0, &mut bytes);
        self.theirs.write_slice(&bytes, GuestAddress(addr.0)).unwrap();
    }

    fn take(&mut self, max: u16) {
        self.sync();
        for _ in 0..self.ring.fetch(max) {
            let mut chain = Chain::new();
            self.ring.next(&self.view, &mut chain).unwrap();
            let theirs = self.queue.pop_descriptor_chain(&self.theirs).expect("they have a chain, too");
            let head = theirs.head_index();
            let buffers: Vec<_> =
                theirs.map(|it| (it.addr().0, it.len(), it.is_write_only())).filter(|it| it.1 > 0).collect();
            assert_eq!((self.buffers(&chain), chain.token().id()), (buffers, head));
            self.taken.push((chain, head));
        }
    }

    fn buffers(&self, chain: &Chain) -> Vec<(u64, u32, bool)> {
        let readable = chain.readable().iter().map(|range| (range, false));
        let all = readable.chain(chain.writable().iter().map(|range| (range, true)));
        all.map(|(range, write)| (self.view.guest_of(*range).unwrap().0, range.len as u32, write)).collect()
    }

    fn complete(&mut self, place: usize, written: u32) {
        let (chain, head) = self.taken.swap_remove(place);
        self.ring.complete(&self.view, &chain, written);
        self.queue.add_used(&self.theirs, head, written).unwrap();
    }

    fn publish(&mut self) {
        self.sync();
        let batch = self.ring.unpublished();
        let ours = self.ring.publish();
        let theirs = self.queue.needs_notification(&self.theirs).unwrap();
        // Ours signals the first batch in any case; theirs knows no flags and asks in vain for empty batches.
        if batch > 0 && self.decided && self.queue.event_idx_enabled() {
            assert_eq!(ours, theirs, "another decision");
        }
        self.decided |= batch > 0;
        self.compare_used();
    }

    fn compare_used(&self) {
        let (_, _, len) = ring_sizes(Format::Split, self.size);
        let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
        self.ours.slice(self.addresses.device, len).unwrap().read(0, &mut ours);
        self.theirs.read_slice(&mut theirs, GuestAddress(self.addresses.device.0)).unwrap();
        assert_eq!(ours, theirs, "another used ring");
    }

    fn arm(&mut self) {
        if self.ring.unpublished() > 0 {
            return;
        }
        self.sync();
        assert_eq!(self.ring.arm(), self.queue.enable_notification(&self.theirs).unwrap());
        self.compare_used();
    }

    fn suppress(&mut self) {
        // With EVENT_IDX theirs leaves the old event index, which may still be ahead; ours does not.
        if !self.queue.event_idx_enabled() && self.ring.unpublished() == 0 {
            self.ring.suppress();
            self.queue.disable_notification(&self.theirs).unwrap();
            self.compare_used();
        }
    }

    fn put_back(&mut self) {
        let Some((chain, _)) = self.taken.last() else { return };
        if self.ring.unfetch(chain) {
            self.queue.go_to_previous_position();
            self.taken.pop();
        }
        assert_eq!(self.ring.base() as u16, self.queue.next_avail());
    }
}

fn our_ring(
    memory: &OwnMemory,
    size: u16,
    features: RingFeatures,
    addresses: RingAddresses,
    base: u16,
) -> Ring {
    let setup = RingSetup {
        size,
        features,
        table: memory.table(),
        addresses,
        base: base.into(),
        inflight: None,
        log: None,
        used_log_addr: None,
    };
    Ring::new(setup).unwrap()
}

fn their_queue(size: u16, features: RingFeatures, addresses: RingAddresses, base: u16) -> TheirQueue {
    let mut queue = TheirQueue::new(size).unwrap();
    queue.set_size(size);
    queue.set_desc_table_address(Some(addresses.desc.0 as u32), Some(0));
    queue.set_avail_ring_address(Some(addresses.driver.0 as u32), Some(0));
    queue.set_used_ring_address(Some(addresses.device.0 as u32), Some(0));
    queue.set_event_idx(features.event_idx);
    queue.set_next_avail(base);
    queue.set_next_used(base);
    queue.set_ready(true);
    queue
}

#[derive(Clone, Debug)]
enum Step {
    Add { readable: Vec<u32>, writable: Vec<u32>, indirect: bool },
    Kick,
    Take(u16),
    PutBack,
    Complete(prop::sample::Index, u32),
    Publish,
    Pop,
    Arm,
    Suppress,
    DriverArm,
    DriverSuppress,
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = || prop::collection::vec(0u32..5000, 0..4);
    prop_oneof![
        6 => (lengths(), lengths(), any::<bool>())
            .prop_map(|(readable, writable, indirect)| Step::Add { readable, writable, indirect }),
        4 => Just(Step::Kick),
        5 => (1u16..6).prop_map(Step::Take),
        1 => Just(Step::PutBack),
        6 => (any::<prop::sample::Index>(), any::<u32>()).prop_map(|(which, len)| Step::Complete(which, len)),
        4 => Just(Step::Publish),
        6 => Just(Step::Pop),
        2 => Just(Step::Arm),
        1 => Just(Step::Suppress),
        2 => Just(Step::DriverArm),
        1 => Just(Step::DriverSuppress),
    ]
}

fn run(pair: &mut Pair, step: Step) {
    match step {
        Step::Add { readable, writable, indirect } => {
            let at = |index: usize| GuestAddr(GUEST + 0x2_0000 + 8192 * index as u64);
            let buffers = |lens: &[u32], from: usize| -> Vec<Segment> {
                lens.iter().enumerate().map(|(index, &len)| Segment { addr: at(from + index), len }).collect()
            };
            let (readable, writable) = (buffers(&readable, 0), buffers(&writable, 4));
            let _ = if indirect {
                pair.driver.add_indirect(&readable, &writable, 0)
            } else {
                pair.driver.add(&readable, &writable, 0)
            };
        }
        Step::Kick => drop(pair.driver.publish()),
        Step::Take(max) => pair.take(max),
        Step::PutBack => pair.put_back(),
        Step::Complete(which, len) if !pair.taken.is_empty() => {
            pair.complete(which.index(pair.taken.len()), len)
        }
        Step::Complete(..) => {}
        Step::Publish => pair.publish(),
        Step::Pop => drop(pair.driver.pop()),
        Step::Arm => pair.arm(),
        Step::Suppress => pair.suppress(),
        Step::DriverArm => drop(pair.driver.arm()),
        Step::DriverSuppress => pair.driver.suppress(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn our_split_ring_does_what_virtio_queue_does(
        event_idx in any::<bool>(),
        log_size in 0u32..6,
        base in prop_oneof![Just(0u16), 65400u16..=65535],
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let features = RingFeatures { event_idx, indirect: true, ..RingFeatures::default() };
        let mut pair = Pair::new(1 << log_size, features, base);
        steps.into_iter().for_each(|step| run(&mut pair, step));
    }
}
