//! A driver beside the device in one process: real workers, real rings, no socket. Each test file uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part")]

use blk_backend::device::BlkDevice;
use blk_backend::disk::Disk;
use blk_backend::options::{DiskOptions, Source};
use blk_backend::request::{self, Header, WireRange};
use blk_backend::service::{BlkService, Message};
use blk_backend::stats::QueueSnapshot;
use memory::{Area, GuestAddr, OwnMemory};
use runtime::attach::WorkerPool;
use runtime::io::{IoConfig, IoKind};
use runtime::policy::PollPolicy;
use runtime::stats::WorkerSnapshot;
use runtime::worker::{Worker, WorkerConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_user::Device;
use virtqueue::driver::{DriverRing, IndirectTables, Segment, Used};
use virtqueue::inflight::QueueRegion;
use virtqueue::{Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

/// Every feature a disk may offer.
pub const ALL: u64 = u64::MAX;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
/// What a status byte holds before the device writes it.
pub const UNTOUCHED: u8 = 0xee;

/// How a rig is set up.
#[derive(Clone)]
pub struct Config {
    pub size: u16,
    pub features: u64,
    pub workers: usize,
    pub io: IoKind,
    pub poll: PollPolicy,
}

impl Default for Config {
    fn default() -> Self {
        let packed = blk_backend::features::VIRTIO_F_RING_PACKED | blk_backend::features::VIRTIO_F_IN_ORDER;
        Self { size: 128, features: ALL & !packed, workers: 1, io: IoKind::Auto, poll: PollPolicy::Off }
    }
}

/// One queue as its driver has it.
pub struct DriverQueue {
    pub ring: DriverRing,
    pub addresses: RingAddresses,
    kick: EventFd,
    call: EventFd,
}

pub struct Rig {
    pub memory: OwnMemory,
    pub disk: Arc<Disk>,
    pub device: Option<BlkDevice>,
    pub queues: Vec<DriverQueue>,
    pub config: Config,
    pub features: u64,
    pool: Option<WorkerPool<Message>>,
    /// What the runtime counts for each queue.
    pub counters: Vec<Arc<runtime::stats::QueueStats>>,
    next_cookie: u32,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    pub cookie: u32,
    pub data: GuestAddr,
    pub data_len: usize,
    pub status: GuestAddr,
}

/// A request that came back.
#[derive(Debug)]
pub struct Done {
    pub status: u8,
    pub len: u32,
    pub data: Vec<u8>,
}

pub fn file_disk(path: &Path) -> DiskOptions {
    DiskOptions::new("test", Source::File(path.into()))
}

pub fn mem_disk(bytes: u64) -> DiskOptions {
    DiskOptions::new("test", Source::Mem(bytes))
}

/// An image of `bytes` zeroes in a directory of its own.
pub fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |i: u64| (seed.wrapping_add(i) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..len.div_ceil(8) as u64).flat_map(word).take(len).collect()
}

pub fn range(sector: u64, num_sectors: u32, flags: u32) -> WireRange {
    WireRange { sector: sector.into(), num_sectors: num_sectors.into(), flags: flags.into() }
}

impl Rig {
    pub fn new(options: DiskOptions) -> Self {
        Self::with(options, Config::default())
    }

    pub fn with(options: DiskOptions, config: Config) -> Self {
        let mut rig = Self::unstarted(options, config);
        for index in 0..rig.disk.options().num_queues {
            rig.start(index);
        }
        rig
    }

    /// Negotiated, with memory, without a running queue.
    pub fn unstarted(options: DiskOptions, config: Config) -> Self {
        let memory = OwnMemory::new(512 << 20, GuestAddr(0x10_0000)).unwrap();
        let worker = |index| {
            let io = IoConfig::from(config.io);
            let config =
                WorkerConfig { name: format!("w{index}"), poll: config.poll, io, ..Default::default() };
            Worker::spawn(config, |_| BlkService::new()).unwrap()
        };
        let pool = WorkerPool::new((0..config.workers).map(worker).collect());
        let disk = Arc::new(Disk::open(options).unwrap());
        let attached = pool.attach(disk.options().num_queues);
        let counters = attached.stats().cloned().collect();
        let mut device = BlkDevice::new(disk.clone(), attached).unwrap();
        let features = device.features() & config.features;
        device.negotiated(features);
        device.set_memory(memory.table().clone());
        let mut rig = Self {
            memory,
            disk,
            device: Some(device),
            queues: Vec::new(),
            features,
            config,
            pool: Some(pool),
            counters,
            next_cookie: 0,
        };
        for _ in 0..rig.disk.options().num_queues {
            let queue = rig.make_queue();
            rig.queues.push(queue);
        }
        rig
    }

    pub fn device(&mut self) -> &mut BlkDevice {
        self.device.as_mut().unwrap()
    }

    fn ring_features(&self) -> RingFeatures {
        RingFeatures::from_bits(self.features)
    }

    fn make_queue(&self) -> DriverQueue {
        let (features, size) = (self.ring_features(), self.config.size);
        let (desc, driver, device) = ring_sizes(features.format(), size);
        let area = |len| self.memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let mut ring =
            DriverRing::in_table(self.memory.table(), &addresses, features.format(), size, features).unwrap();
        if features.indirect {
            let entries = 64;
            let tables = self.memory.alloc(16 * usize::from(entries) * usize::from(size), 4096).unwrap();
            let len = 16 * usize::from(entries) * usize::from(size);
            let area = self.memory.area(tables, len).unwrap();
            ring.set_indirect(IndirectTables { area, entries }).unwrap();
        }
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        DriverQueue { ring, addresses, kick: event(), call: event() }
    }

    /// A new ring in place of queue `index`, which must be stopped.
    pub fn renew(&mut self, index: usize) {
        self.queues[index] = self.make_queue();
    }

    /// Starts queue `index` where its driver is.
    pub fn start(&mut self, index: u16) {
        self.start_with(index, None, 0);
    }

    /// Starts queue `index` with an inflight region and a base.
    pub fn start_with(&mut self, index: u16, inflight: Option<QueueRegion>, base: u32) {
        let queue = &self.queues[usize::from(index)];
        let features = self.ring_features();
        let base = if features.packed && base == 0 { 0x8000_8000 } else { base };
        let mut device_queue = Queue::new(RingSetup {
            size: self.config.size,
            features,
            table: self.memory.table(),
            addresses: queue.addresses,
            base,
            inflight,
            log: None,
            used_log_addr: None,
        })
        .unwrap();
        device_queue.set_kick(Some(duplicate(&queue.kick)));
        device_queue.set_call(Some(queue.call.try_clone().unwrap()));
        self.device().start_queue(index, Box::new(device_queue));
        self.device().enable_queue(index, true);
    }

    /// A fresh inflight region for one queue.
    pub fn inflight(&self) -> (Area, QueueRegion) {
        let format = self.ring_features().format();
        let len = virtqueue::inflight::region_size(format, self.config.size);
        let area = Area::anonymous(len);
        let region = QueueRegion::new(area.clone(), format, self.config.size).unwrap();
        (area, region)
    }

    pub fn alloc(&self, len: usize, align: usize) -> GuestAddr {
        self.memory.alloc(len, align).unwrap()
    }

    pub fn fill(&self, addr: GuestAddr, bytes: &[u8]) {
        self.memory.slice(addr, bytes.len()).unwrap().write(0, bytes);
    }

    pub fn bytes(&self, addr: GuestAddr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.slice(addr, len).unwrap().read(0, &mut bytes);
        bytes
    }

    /// Makes a request available; it is not shown to the device before `publish`.
    pub fn add(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], in_len: usize) -> Ticket {
        let header = self.header(kind, sector);
        let (data_len, data) = (out.len().max(in_len), self.alloc(out.len().max(in_len).max(1), 4096));
        self.fill(data, out);
        let status = self.alloc(1, 1);
        self.fill(status, &[UNTOUCHED]);
        let segment = |addr, len| Segment { addr, len };
        let mut readable = vec![segment(header, 16)];
        let mut writable = vec![segment(status, 1)];
        if !out.is_empty() {
            readable.push(segment(data, out.len() as u32));
        }
        if in_len > 0 {
            writable.insert(0, segment(data, in_len as u32));
        }
        let cookie = self.add_segments(queue, &readable, &writable);
        Ticket { cookie, data, data_len, status }
    }

    pub fn header(&self, kind: u32, sector: u64) -> GuestAddr {
        let header = Header { kind: kind.into(), ioprio: 0xffff_ffff.into(), sector: sector.into() };
        let addr = self.alloc(16, 16);
        self.fill(addr, header.as_bytes());
        addr
    }

    pub fn add_segments(&mut self, queue: usize, readable: &[Segment], writable: &[Segment]) -> u32 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.queues[queue].ring.add(readable, writable, cookie).unwrap();
        cookie
    }

    pub fn publish(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        if queue.ring.publish() {
            queue.kick.write(1).unwrap();
        }
    }

    /// Waits for one completion of a queue.
    pub fn wait(&mut self, queue: usize) -> Used {
        self.try_wait(queue, Duration::from_secs(20)).expect("a request hangs")
    }

    pub fn try_wait(&mut self, queue: usize, patience: Duration) -> Option<Used> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(used) = self.queues[queue].ring.pop() {
                return Some(used);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits until all these requests are back, in whatever order, and returns their results in theirs.
    pub fn finish(&mut self, queue: usize, tickets: &[Ticket]) -> Vec<Done> {
        let mut used: Vec<Used> = tickets.iter().map(|_| self.wait(queue)).collect();
        used.sort_by_key(|u| u.cookie);
        let find = |t: &Ticket| used[used.binary_search_by_key(&t.cookie, |u| u.cookie).unwrap()];
        tickets.iter().map(|t| self.done(t, find(t))).collect()
    }

    pub fn done(&self, ticket: &Ticket, used: Used) -> Done {
        let status = self.bytes(ticket.status, 1)[0];
        Done { status, len: used.len, data: self.bytes(ticket.data, ticket.data_len) }
    }

    pub fn request(&mut self, kind: u32, sector: u64, out: &[u8], in_len: usize) -> Done {
        self.request_on(0, kind, sector, out, in_len)
    }

    pub fn request_on(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], in_len: usize) -> Done {
        let ticket = self.add(queue, kind, sector, out, in_len);
        self.publish(queue);
        self.finish(queue, &[ticket]).remove(0)
    }

    pub fn read(&mut self, sector: u64, len: usize) -> Done {
        self.request(request::VIRTIO_BLK_T_IN, sector, &[], len)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> Done {
        self.request(request::VIRTIO_BLK_T_OUT, sector, data, 0)
    }

    pub fn flush(&mut self) -> Done {
        self.request(request::VIRTIO_BLK_T_FLUSH, 0, &[], 0)
    }

    pub fn ranges(&mut self, kind: u32, ranges: &[WireRange]) -> Done {
        self.request(kind, 0, ranges.as_bytes(), 0)
    }

    /// Writes, reads back and compares.
    pub fn check_round_trip(&mut self, sector: u64, len: usize) {
        let data = pattern(sector, len);
        assert_eq!(self.write(sector, &data).status, OK);
        let done = self.read(sector, len);
        assert_eq!((done.status, done.len), (OK, len as u32 + 1));
        assert!(done.data == data, "what was read is not what was written");
    }

    pub fn stats(&self) -> QueueSnapshot {
        self.disk.queue_stats()[0].snapshot()
    }

    /// What the first worker counts.
    pub fn worker(&self) -> WorkerSnapshot {
        self.pool.as_ref().unwrap().stats().remove(0).2
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.device.take());
        let failures = self.pool.take().map(WorkerPool::join).unwrap_or_default();
        assert!(failures.is_empty() || std::thread::panicking(), "{failures:?}");
    }
}

pub fn duplicate(event: &EventFd) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd, BorrowedFd};
    #[expect(unsafe_code, reason = "EventFd has no AsFd")]
    // SAFETY: the descriptor is open for the duration of the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    borrowed.try_clone_to_owned().unwrap()
}
