//! A vhost-user-blk backend in this process: a thread per queue on a vector of bytes, able to lie on demand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use benches::blk::wire::{Config, Header, Range, feature, request, status};
use memory::{DirtyLog, MemoryTable, MemoryView};
use vhost_user::message::features;
use vhost_user::{Device, Endpoint, Notifier, Options, serve};
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

/// Ways of the backend to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lie {
    None,
    /// One byte of every 50th read is flipped.
    CorruptRead,
    /// Every 50th write is acknowledged and dropped.
    DropWrite,
    /// Every 50th write goes to the next block.
    MisplaceWrite,
    /// Every 50th read is completed without touching the buffer.
    SkipRead,
    /// Every 50th request is completed with IOERR.
    Fail,
    /// Every 50th request is completed without a status.
    NoStatus,
    /// Requests are taken and never completed.
    Swallow,
}

/// State that survives the backend, like a file survives a daemon.
#[derive(Debug)]
pub struct Shared {
    pub bytes: Mutex<Vec<u8>>,
    pub flushes: AtomicU64,
    pub discarded: AtomicU64,
    lie: AtomicU32,
    read_only: AtomicBool,
    served: AtomicU64,
}

impl Shared {
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; len]),
            flushes: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            lie: AtomicU32::new(Lie::None as u32),
            read_only: AtomicBool::new(false),
            served: AtomicU64::new(0),
        })
    }

    pub fn lie(&self, lie: Lie) {
        self.lie.store(lie as u32, Ordering::Relaxed);
    }

    pub fn set_read_only(&self) {
        self.read_only.store(true, Ordering::Relaxed);
    }

    fn lies(&self, lie: Lie, count: u64) -> bool {
        self.lie.load(Ordering::Relaxed) == lie as u32 && (lie == Lie::Swallow || count % 50 == 49)
    }
}

/// A running backend; dropping it closes the connection and loses what is in flight, like a kill.
pub struct Backend {
    notifier: Notifier,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub fn start(socket: &Path, shared: &Arc<Shared>) -> Self {
        let (notifier, handle) = Notifier::new().unwrap();
        let transport = Endpoint::Listen(socket.to_owned()).open(0o600).unwrap();
        let mut device =
            MemoryDisk { shared: Arc::clone(shared), table: MemoryTable::empty(), rings: BTreeMap::new() };
        let body = move || serve(transport, &mut device, handle, &Options::default()).unwrap();
        Self { notifier, thread: Some(std::thread::spawn(body)) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.notifier.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct MemoryDisk {
    shared: Arc<Shared>,
    table: Arc<MemoryTable>,
    rings: BTreeMap<u16, Worker>,
}

struct Worker {
    stop: Arc<AtomicBool>,
    enabled: Arc<AtomicBool>,
    thread: JoinHandle<Box<Queue>>,
}

impl MemoryDisk {
    fn start(&mut self, index: u16, queue: Box<Queue>, enabled: bool) {
        let (stop, enabled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(enabled)));
        let server = Server {
            queue,
            view: MemoryView::new(Arc::clone(&self.table)),
            shared: Arc::clone(&self.shared),
            stop: Arc::clone(&stop),
            enabled: Arc::clone(&enabled),
        };
        self.rings.insert(index, Worker { stop, enabled, thread: std::thread::spawn(move || server.run()) });
    }

    fn halt(&mut self, index: u16) -> Option<(Box<Queue>, bool)> {
        let worker = self.rings.remove(&index)?;
        worker.stop.store(true, Ordering::Release);
        let enabled = worker.enabled.load(Ordering::Acquire);
        Some((worker.thread.join().unwrap(), enabled))
    }

    /// Stops the ring, changes it, and lets it go on.
    fn change(&mut self, index: u16, change: impl FnOnce(&mut Queue)) {
        if let Some((mut queue, enabled)) = self.halt(index) {
            change(&mut queue);
            self.start(index, queue, enabled);
        }
    }
}

impl Device for MemoryDisk {
    fn max_queues(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        let blk = features::VERSION_1
            | feature::SEG_MAX
            | feature::FLUSH
            | feature::MQ
            | feature::DISCARD
            | feature::WRITE_ZEROES;
        let ro = if self.shared.read_only.load(Ordering::Relaxed) { feature::RO } else { 0 };
        blk | ro | RingFeatures::ALL
    }

    fn protocol_features(&self) -> u64 {
        vhost_user::message::protocol::CONFIG
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        let sectors = self.shared.bytes.lock().unwrap().len() as u64 / 512;
        let config = Config {
            capacity: sectors.into(),
            seg_max: 126.into(),
            blk_size: 512.into(),
            num_queues: 4.into(),
            max_discard_sectors: 2048.into(),
            max_discard_seg: 1.into(),
            max_write_zeroes_sectors: 2048.into(),
            ..Config::default()
        };
        let bytes = config.as_bytes();
        for (n, byte) in buf.iter_mut().enumerate() {
            *byte = bytes.get(offset + n).copied().unwrap_or(0);
        }
    }

    fn negotiated(&mut self, _features: u64) {}

    fn set_memory(&mut self, table: Arc<MemoryTable>) {
        self.table = Arc::clone(&table);
        let running: Vec<u16> = self.rings.keys().copied().collect();
        for index in running {
            self.change(index, |queue| queue.rebuild_after_memory_change(&table).unwrap());
        }
    }

    fn set_log(&mut self, _log: Option<Arc<DirtyLog>>) {}

    fn start_queue(&mut self, index: u16, mut queue: Box<Queue>) {
        queue.interrupt();
        self.start(index, queue, false);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        self.halt(index).map(|(queue, _)| queue)
    }

    fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        self.change(index, |queue| {
            queue.set_call(call);
            queue.interrupt();
        });
    }

    fn set_err(&mut self, index: u16, err: Option<EventFd>) {
        self.change(index, |queue| queue.set_err(err));
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) {
        if let Some(worker) = self.rings.get(&index) {
            worker.enabled.store(enabled, Ordering::Release);
        }
    }

    fn disconnected(&mut self) {
        let running: Vec<u16> = self.rings.keys().copied().collect();
        for index in running {
            self.halt(index);
        }
    }
}

/// The thread of one queue.
struct Server {
    queue: Box<Queue>,
    view: MemoryView,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    enabled: Arc<AtomicBool>,
}

impl Server {
    fn run(mut self) -> Box<Queue> {
        let mut chain = Chain::new();
        while !self.stop.load(Ordering::Acquire) {
            let served = if self.enabled.load(Ordering::Acquire) { self.burst(&mut chain) } else { 0 };
            self.queue.publish();
            if served == 0 && !self.queue.ring.arm() {
                self.sleep();
            }
        }
        self.queue
    }

    fn burst(&mut self, chain: &mut Chain) -> u16 {
        let count = self.queue.ring.fetch(32);
        for _ in 0..count {
            self.queue.ring.next(&self.view, chain).unwrap();
            let number = self.shared.served.fetch_add(1, Ordering::Relaxed);
            if self.shared.lies(Lie::Swallow, number) {
                continue;
            }
            let written = self.execute(chain, number);
            self.queue.ring.complete(&self.view, chain, written);
        }
        count
    }

    fn execute(&self, chain: &mut Chain, number: u64) -> u32 {
        let mut header = [0; size_of::<Header>()];
        chain.read_prefix(&self.view, &mut header).unwrap();
        let header = Header::read_from_bytes(&header).unwrap();
        chain.detach_status().unwrap();
        let data_len = chain.writable_len() as u32;
        let outcome = if self.shared.lies(Lie::Fail, number) {
            status::IOERR
        } else {
            self.transfer(chain, header, number)
        };
        if !self.shared.lies(Lie::NoStatus, number) {
            chain.write_status(&self.view, outcome).unwrap();
        }
        data_len + 1
    }

    fn transfer(&self, chain: &mut Chain, header: Header, number: u64) -> u8 {
        let mut bytes = self.shared.bytes.lock().unwrap();
        let start = header.sector.get() as usize * 512;
        match header.kind.get() {
            request::IN => {
                let len = chain.writable_len() as usize;
                let Some(source) = bytes.get(start..start + len) else { return status::IOERR };
                let mut data = source.to_vec();
                if self.shared.lies(Lie::CorruptRead, number) {
                    data[len / 2] ^= 1;
                }
                if !self.shared.lies(Lie::SkipRead, number) {
                    chain.write_at(&self.view, 0, &data).unwrap();
                }
                status::OK
            }
            request::OUT => {
                let len = chain.readable_len() as usize;
                let shift = if self.shared.lies(Lie::MisplaceWrite, number) { len } else { 0 };
                let mut data = vec![0; len];
                chain.read_prefix(&self.view, &mut data).unwrap();
                let end = bytes.len();
                let start = if start + shift + len > end { 0 } else { start + shift };
                if start + len > end {
                    return status::IOERR;
                }
                if !self.shared.lies(Lie::DropWrite, number) {
                    bytes[start..start + len].copy_from_slice(&data);
                }
                status::OK
            }
            request::FLUSH => {
                self.shared.flushes.fetch_add(1, Ordering::Relaxed);
                status::OK
            }
            kind @ (request::DISCARD | request::WRITE_ZEROES) => {
                let mut range = [0; size_of::<Range>()];
                chain.read_prefix(&self.view, &mut range).unwrap();
                let range = Range::read_from_bytes(&range).unwrap();
                let (start, len) = (range.sector.get() as usize * 512, range.sectors.get() as usize * 512);
                if kind == request::DISCARD {
                    self.shared.discarded.fetch_add(len as u64, Ordering::Relaxed);
                } else {
                    bytes[start..start + len].fill(0);
                }
                status::OK
            }
            _ => status::UNSUPP,
        }
    }

    /// Waits for a kick, but looks at the stop flag every now and then.
    fn sleep(&mut self) {
        let kick = self.queue.kick_fd().expect("the driver sets a kick").try_clone_to_owned().unwrap();
        if benches::wait::readable(kick.as_raw_fd(), Some(Duration::from_millis(2))) {
            let mut counter = [0; 8];
            let _ = File::from(kick).read(&mut counter);
        }
        self.queue.ring.suppress();
    }
}
