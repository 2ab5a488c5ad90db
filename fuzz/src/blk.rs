//! Block requests of any shape against a disk on this thread, with a model of what the disk holds.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use blk_backend::bounce::BouncePool;
use blk_backend::disk::Disk;
use blk_backend::options::{DiskOptions, Source};
use blk_backend::queue::{Env, QueueState};
use blk_backend::request::{DataLen, Header, RangeOp, Request, Status, WireRange};
use memory::{Epochs, GuestAddr, RegionConfig, UserAddr};
use runtime::doorbell::{Doorbell, EventBell};
use runtime::io::{Event, FileSlot, Io, IoConfig};
use runtime::stats::WorkerStats;
use tempfile::NamedTempFile;
use virtqueue::driver::{DriverRing, Segment, Used};
use virtqueue::{DeviceRing, Ring, RingAddresses, RingFeatures, RingSetup, ring_sizes};
use zerocopy::IntoBytes;

use crate::guest::Guest;
use crate::input::Input;

const SECTOR: usize = 512;
const SECTORS: usize = 32;
const QUEUE_SIZE: u16 = 16;

/// Guest memory: rings in front, buffers behind, and a seam that buffers cross.
const BASE: u64 = 0x1_0000;
const REGION: u64 = 0x5000;
const BUFFERS: Range<u64> = BASE + 0x1000..BASE + 2 * REGION;

/// What writable buffers hold before.
const UNTOUCHED: u8 = 0xee;

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

/// Runs one input to its end.
pub fn run(bytes: &[u8]) {
    BENCH.with_borrow_mut(|bench| {
        let mut input = Input::new(bytes);
        let mut world = World::new(bench, &mut input);
        while !input.is_empty() {
            world.batch(&mut input);
        }
        world.read_everything();
    });
}

/// What is made once: the I/O engine and the disks that are files.
struct Bench {
    io: Io,
    pool: BouncePool,
    stats: WorkerStats,
    files: Vec<(NamedTempFile, Arc<Disk>, FileSlot)>,
}

impl Bench {
    fn new() -> Self {
        let doorbell = Arc::new(Doorbell::new(EventBell::new().expect("eventfd")));
        let mut io = Io::new(IoConfig::default(), doorbell).expect("an I/O engine");
        let mut files = Vec::new();
        for (read_only, direct) in [(false, false), (true, false), (false, true)] {
            let image = NamedTempFile::new().expect("a temporary file");
            image.as_file().set_len((SECTORS * SECTOR) as u64).expect("length");
            let source = Source::File(image.path().into());
            let options = DiskOptions { read_only, direct, ..DiskOptions::new("fuzz", source) };
            // A file system without O_DIRECT has two kinds of disks only.
            let Ok(disk) = Disk::open(options) else { continue };
            let slot = io.add_file(disk.backend().file().expect("a file").file()).expect("a slot");
            files.push((image, Arc::new(disk), slot));
        }
        Self { io, pool: BouncePool::default(), stats: WorkerStats::default(), files }
    }

    /// A disk full of zeros.
    fn disk(&self, input: &mut Input<'_>) -> (Arc<Disk>, Option<FileSlot>) {
        let choice = input.below(self.files.len() + 1);
        let Some((image, disk, slot)) = self.files.get(choice) else {
            let options = DiskOptions::new("fuzz", Source::Mem((SECTORS * SECTOR) as u64));
            return (Arc::new(Disk::open(options).expect("memory")), None);
        };
        image.as_file().set_len(0).expect("truncate");
        image.as_file().set_len((SECTORS * SECTOR) as u64).expect("length");
        (Arc::clone(disk), Some(*slot))
    }
}

/// A request on its way.
struct Sent {
    request: Result<Request, Status>,
    /// Extents a request with ranges names, when all are good.
    ranges: Vec<Range<usize>>,
    op: Option<RangeOp>,
    /// Data of a write.
    data: Vec<u8>,
    writable: Vec<Segment>,
}

impl Sent {
    fn writable_len(&self) -> usize {
        self.writable.iter().map(|segment| segment.len as usize).sum()
    }

    /// The bytes of the disk it reads or changes.
    fn touches(&self) -> Vec<Range<usize>> {
        match self.request {
            Ok(Request::In(extent) | Request::Out(extent)) => {
                vec![extent.offset as usize..extent.end() as usize]
            }
            _ => self.ranges.clone(),
        }
    }

    fn changes(&self) -> bool {
        matches!(self.request, Ok(Request::Out(_) | Request::Ranges { .. }))
    }
}

struct World<'b> {
    bench: &'b mut Bench,
    guest: Guest,
    epochs: Epochs,
    ring: Ring,
    driver: DriverRing,
    state: QueueState,
    disk: Arc<Disk>,
    /// What the disk holds; `None` where that depends on the order of requests in one batch.
    model: Vec<Option<u8>>,
    sent: Vec<Option<Sent>>,
    next_buffer: u64,
}

impl<'b> World<'b> {
    fn new(bench: &'b mut Bench, input: &mut Input<'_>) -> Self {
        let region =
            |guest| RegionConfig { guest: GuestAddr(guest), len: REGION, user: UserAddr(0), mmap_offset: 0 };
        let guest = Guest::with(vec![region(BASE), region(BASE + REGION)]);
        let (disk, file) = bench.disk(input);
        let bits = input.u8();
        let features = RingFeatures {
            event_idx: bits & 1 != 0,
            in_order: bits & 2 != 0,
            packed: bits & 4 != 0,
            indirect: bits & 8 != 0,
        };
        disk.negotiate(if bits & 16 != 0 { 0 } else { disk.offered() });
        let (desc, driver, _) = ring_sizes(features.format(), QUEUE_SIZE);
        let driver_at = BASE + desc as u64;
        let device_at = (driver_at + driver as u64).next_multiple_of(4);
        let addresses = RingAddresses {
            desc: GuestAddr(BASE),
            driver: GuestAddr(driver_at),
            device: GuestAddr(device_at),
        };
        let table = Arc::clone(guest.table());
        let driver = DriverRing::in_table(&table, &addresses, features.format(), QUEUE_SIZE, features);
        let setup = RingSetup {
            size: QUEUE_SIZE,
            features,
            table: &table,
            addresses,
            base: if features.packed { 0x8000_8000 } else { 0 },
            inflight: None,
            log: None,
            used_log_addr: None,
        };
        Self {
            ring: Ring::new(setup).expect("a good ring"),
            driver: driver.expect("a good ring"),
            epochs: Epochs::new(table),
            state: QueueState::new(Arc::clone(&disk), 0, file),
            model: vec![Some(0); SECTORS * SECTOR],
            sent: Vec::new(),
            next_buffer: BUFFERS.start,
            bench,
            guest,
            disk,
        }
    }

    /// One to four requests at once, to the end of all of them.
    fn batch(&mut self, input: &mut Input<'_>) {
        self.next_buffer = BUFFERS.start;
        self.sent.clear();
        for _ in 0..=input.below(4) {
            let (header, data) = request(input);
            let room = match input.below(8) {
                0 => input.below(256),
                choice => (choice + 1) * SECTOR,
            };
            let writable = match input.below(16) {
                0 => 0,
                1 => room,
                choice if choice & 1 == 0 => 1,
                _ => room + 1,
            };
            let cut = if input.below(16) == 0 { input.below(17) } else { 16 };
            self.send(header, &data, cut, writable, input);
        }
        self.execute();
    }

    /// Makes one request available, spread over descriptors as the input says.
    fn send(&mut self, header: Header, data: &[u8], cut: usize, writable: usize, input: &mut Input<'_>) {
        let readable = [&header.as_bytes()[..cut], if cut == 16 { data } else { &[] }].concat();
        let Some(out) = self.buffers(readable.len(), input) else { return };
        let Some(within) = self.buffers(writable, input) else { return };
        let mut at = 0;
        for segment in &out {
            self.guest.poke(segment.addr.0, &readable[at..at + segment.len as usize]);
            at += segment.len as usize;
        }
        for segment in &within {
            self.guest.poke(segment.addr.0, &vec![UNTOUCHED; segment.len as usize]);
        }
        let cookie = self.sent.len() as u32;
        if out.len() + within.len() == 0 || self.driver.add(&out, &within, cookie).is_err() {
            return;
        }
        self.sent.push(Some(self.expect(header, data, cut, within)));
    }

    /// Cuts `len` bytes of guest memory into one to three segments.
    fn buffers(&mut self, len: usize, input: &mut Input<'_>) -> Option<Vec<Segment>> {
        let mut left = len;
        let mut segments = Vec::new();
        while left > 0 {
            let here = if segments.len() == 2 { left } else { (1 + usize::from(input.u8()) * 8).min(left) };
            let addr = self.next_buffer + input.below(4) as u64;
            self.next_buffer = addr + here as u64;
            segments.push(Segment { addr: GuestAddr(addr), len: here as u32 });
            left -= here;
        }
        (self.next_buffer <= BUFFERS.end).then_some(segments)
    }

    fn expect(&self, header: Header, data: &[u8], cut: usize, writable: Vec<Segment>) -> Sent {
        let rules = self.disk.rules();
        let len: usize = writable.iter().map(|segment| segment.len as usize).sum();
        let lengths = DataLen { readable: data.len() as u64, writable: len.saturating_sub(1) as u64 };
        let mut request = if cut < 16 { Err(Status::IoErr) } else { rules.parse(&header, lengths) };
        let mut ranges = Vec::new();
        let mut op = None;
        if let Ok(Request::Ranges { op: named, .. }) = request {
            op = Some(named);
            for range in data.chunks_exact(16) {
                match rules.check_range(named, &wire_range(range)) {
                    Ok((extent, _)) => ranges.push(extent.offset as usize..extent.end() as usize),
                    Err(status) => {
                        request = Err(status);
                        ranges.clear();
                        break;
                    }
                }
            }
        }
        if len == 0 {
            // Nowhere to put the status: nothing happens at all.
            (request, ranges) = (Err(Status::IoErr), Vec::new());
        }
        Sent { request, ranges, op, data: data.to_vec(), writable }
    }

    fn execute(&mut self) {
        self.guest.remember();
        // A driver that is told by flags or by polling looks the same to a device that is asked at once.
        let _ = self.driver.publish();
        self.work();
        let _ = self.ring.publish();
        assert_eq!(self.ring.broken(), None, "well-formed chains break no ring");
        self.check_memory();
        let before = self.model.clone();
        let sent: Vec<_> = self.sent.iter().map(|sent| sent.as_ref().expect("not yet answered")).collect();
        let shared: Vec<bool> = (0..sent.len()).map(|index| in_conflict(&sent, index)).collect();
        for (sent, shared) in sent.iter().zip(&shared) {
            apply(&mut self.model, sent, *shared);
        }
        let mut answered = 0;
        while let Some(used) = self.driver.pop() {
            let sent = self.sent[used.cookie as usize].take().expect("answered once");
            self.check_answer(used, &sent, &before, shared[used.cookie as usize]);
            answered += 1;
        }
        assert_eq!(answered, shared.len(), "every request is answered");
    }

    /// What a worker does, until nothing is left.
    fn work(&mut self) {
        let Self { bench, epochs, ring, state, .. } = self;
        let mut events = Vec::new();
        loop {
            let Bench { io, pool, stats, .. } = &mut **bench;
            let mut env = Env { io, epochs: &mut *epochs, pool, now: 1, key: 0, stats };
            let mut moved = state.burst(ring, &mut env);
            if state.has_waiting() {
                moved += state.resume(ring, &mut env);
            }
            env.io.flush().expect("submitted");
            env.io.harvest(&mut events).expect("harvested");
            let idle = moved == 0 && events.is_empty();
            for event in events.drain(..) {
                if let Event::Done { user_data, result } = event {
                    state.completed(ring, user_data as u16, result, &mut env);
                }
            }
            if idle && env.io.in_flight() == 0 {
                break;
            }
            if idle {
                env.io.pause(Some(1_000_000_000)).expect("waited");
            }
        }
        assert_eq!((ring.in_flight(), epochs.in_flight()), (0, 0), "nothing is left in flight");
    }

    /// Only the ring and writable buffers may have changed.
    fn check_memory(&self) {
        let mut allowed = vec![BASE..BUFFERS.start];
        for sent in self.sent.iter().flatten() {
            allowed.extend(
                sent.writable.iter().map(|segment| segment.addr.0..segment.addr.0 + u64::from(segment.len)),
            );
        }
        self.guest.assert_only(&allowed, "serving requests");
    }

    fn check_answer(&self, used: Used, sent: &Sent, before: &[Option<u8>], shared: bool) {
        let len = sent.writable_len();
        assert!(used.len as usize <= len, "more was written than there is room");
        if len == 0 {
            return;
        }
        let bytes: Vec<u8> = sent.writable.iter().flat_map(|segment| self.bytes(segment)).collect();
        let (data, status) = bytes.split_at(len - 1);
        let expected = sent.request.as_ref().map_or_else(|status| *status, |_| Status::Ok);
        assert_eq!(status, [expected as u8], "{:?}", sent.request);
        match sent.request {
            Ok(Request::In(extent)) if !shared => {
                let stored = &before[extent.offset as usize..extent.end() as usize];
                let same = |(stored, read): (&Option<u8>, &u8)| stored.is_none_or(|stored| stored == *read);
                assert!(stored.iter().zip(data).all(same), "a read of {extent:?} gave other bytes");
            }
            Ok(Request::In(_) | Request::GetId) => {}
            _ => assert!(data.iter().all(|byte| *byte == UNTOUCHED), "data for a request that has none"),
        }
    }

    fn bytes(&self, segment: &Segment) -> Vec<u8> {
        let mut bytes = vec![0; segment.len as usize];
        let (start, mut done) = (segment.addr, 0);
        let copy = |piece: memory::GuestSlice<'_>| {
            piece.read(0, &mut bytes[done..done + piece.len()]);
            done += piece.len();
        };
        self.guest.view().pieces(start, segment.len as usize, copy).expect("a buffer of ours");
        bytes
    }

    /// The disk holds what the model says.
    fn read_everything(&mut self) {
        self.next_buffer = BUFFERS.start;
        self.sent.clear();
        let header = Header { kind: 0.into(), ioprio: 0.into(), sector: 0.into() };
        self.send(header, &[], 16, SECTORS * SECTOR + 1, &mut Input::new(&[0xff; 64]));
        self.execute();
    }
}

/// Whether a request and another of its batch touch the same bytes, and one of them changes them.
fn in_conflict(all: &[&Sent], index: usize) -> bool {
    let overlap = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
    let one = all[index];
    all.iter().enumerate().any(|(other_index, other)| {
        other_index != index
            && (one.changes() || other.changes())
            && one.touches().iter().any(|a| other.touches().iter().any(|b| overlap(a, b)))
    })
}

fn apply(model: &mut [Option<u8>], sent: &Sent, shared: bool) {
    for extent in sent.touches().into_iter().filter(|_| sent.changes()) {
        let place = &mut model[extent];
        match (sent.op, shared) {
            // What a discarded sector reads as is the device's choice.
            (_, true) | (Some(RangeOp::Discard), _) => place.fill(None),
            (Some(_), _) => place.fill(Some(0)),
            (None, _) => place.iter_mut().zip(&sent.data).for_each(|(place, byte)| *place = Some(*byte)),
        }
    }
}

/// A header, and what comes behind it.
fn request(input: &mut Input<'_>) -> (Header, Vec<u8>) {
    let kind = match input.below(16) {
        0 => input.u32(),
        choice => [0, 1, 0, 1, 4, 8, 11, 13, 13, 14, 0, 1, 1, 0, 11][choice - 1],
    };
    let sector = if input.below(16) == 0 { input.u64() } else { input.below(SECTORS + 2) as u64 };
    let data = match kind {
        1 => {
            let odd = if input.below(16) == 0 { input.below(256) } else { 0 };
            vec![input.u8(); input.below(8) * SECTOR + odd]
        }
        11 | 13 | 14 => (0..=input.below(3)).flat_map(|_| range(input)).collect(),
        _ => vec![7; if input.below(8) == 0 { input.below(64) } else { 0 }],
    };
    (Header { kind: kind.into(), ioprio: 0.into(), sector: sector.into() }, data)
}

fn range(input: &mut Input<'_>) -> [u8; 16] {
    let sector = if input.below(16) == 0 { input.u64() } else { input.below(SECTORS) as u64 };
    let count = if input.below(16) == 0 { input.u32() } else { input.below(8) as u32 };
    let flags = if input.below(16) == 0 { input.u32() } else { u32::from(input.flag()) };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn wire_range(bytes: &[u8]) -> WireRange {
    let mut range = WireRange::default();
    range.as_mut_bytes().copy_from_slice(bytes);
    range
}
