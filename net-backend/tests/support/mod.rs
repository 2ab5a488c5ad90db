//! Guests beside the switch in one process: real workers, real rings, no socket. Each test file uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{Area, DirtyLog, GuestAddr, OwnMemory};
use net_backend::frame::{HeaderSize, MacAddr};
use net_backend::path::crossings;
use net_backend::port::{Identity, Port};
use net_backend::service::{Message, NetService};
use net_backend::stats::PortSnapshot;
use net_backend::switch::{Drop, Fabric, Policy, PortId, PortPolicy, SwitchOptions};
use net_backend::uplink::UplinkQueue;
use runtime::attach::{Attached, WorkerPool};
use runtime::policy::PollPolicy;
use runtime::rings::Reply;
use runtime::worker::{Worker, WorkerConfig};
use virtqueue::driver::{DriverRing, IndirectTables, Segment};
use virtqueue::inflight::QueueRegion;
use virtqueue::{Format, Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const MRG_RXBUF: u64 = 1 << 15;
pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;
pub const HASH_REPORT: u64 = 1 << 57;
/// GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO.
pub const GUEST_OFFLOADS: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10;

/// What a guest has.
#[derive(Clone)]
pub struct Config {
    pub features: u64,
    pub pairs: u16,
    /// Ring size.
    pub size: u16,
    /// Bytes of a receive buffer.
    pub buffer: u32,
    /// Header in a descriptor of its own.
    pub split_header: bool,
    /// Chains in indirect tables.
    pub indirect: bool,
    pub policy: PortPolicy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            features: VERSION_1 | MRG_RXBUF | EVENT_IDX,
            pairs: 1,
            size: 256,
            buffer: 2048,
            split_header: false,
            indirect: false,
            policy: PortPolicy::default(),
        }
    }
}

impl Config {
    pub fn with(features: u64) -> Self {
        Self { features, ..Self::default() }
    }
}

/// A switch with its workers.
pub struct Rig {
    pub pool: Option<WorkerPool<Message>>,
    pub fabric: Arc<Fabric>,
    pub policy: Arc<Policy>,
    workers: usize,
    next: u16,
}

impl Rig {
    pub fn new() -> Self {
        Self::with_workers(1)
    }

    pub fn with_workers(workers: usize) -> Self {
        let fabric = Arc::new(Fabric::new(4096));
        let policy = Arc::new(Policy::new(SwitchOptions::default(), BTreeMap::new()).unwrap());
        let spawn = |(index, crossing)| {
            let (fabric, policy) = (fabric.clone(), policy.clone());
            let config =
                WorkerConfig { name: format!("net{index}"), poll: PollPolicy::Off, ..Default::default() };
            Worker::spawn(config, move |cx| NetService::new(crossing, fabric, policy, cx)).unwrap()
        };
        let workers_all = crossings(workers).unwrap().into_iter().enumerate().map(spawn).collect();
        Self { pool: Some(WorkerPool::new(workers_all)), fabric, policy, workers, next: 0 }
    }

    pub fn pool(&self) -> &WorkerPool<Message> {
        self.pool.as_ref().unwrap()
    }

    /// Tells every worker something and waits for the answers.
    pub fn tell<R: Send + 'static>(&self, message: impl Fn(Reply<R>) -> Message) -> Vec<R> {
        let answers: Vec<_> = self
            .pool()
            .handles()
            .iter()
            .map(|worker| {
                let (reply, answer) = Reply::new();
                worker.send(message(reply)).unwrap();
                answer
            })
            .collect();
        answers.into_iter().map(|answer| answer.recv().unwrap()).collect()
    }

    /// Everything that was kicked is done afterwards.
    pub fn settle(&self) {
        for _ in 0..2 {
            self.tell(|reply| Message::Ping { reply });
        }
    }

    pub fn set_policy(&mut self, policy: Policy) {
        self.fabric.adopt(&policy).unwrap();
        self.policy = Arc::new(policy);
        self.tell(|reply| Message::Policy { policy: self.policy.clone(), reply });
    }

    pub fn set_port_policy(&mut self, port: PortId, policy: PortPolicy) {
        let policy = self.policy.with_port(port, policy).unwrap();
        self.set_policy(policy);
    }

    fn new_port(&mut self, pairs: u16, policy: PortPolicy) -> Arc<Port> {
        let id = PortId(self.next);
        self.next += 1;
        self.set_port_policy(id, policy);
        let name = format!("port{}", id.0);
        Arc::new(Port::new(Identity { id, name, pairs, workers: self.workers }))
    }

    /// A guest with all of its rings running and receive buffers posted.
    pub fn guest(&mut self, config: Config) -> Guest {
        let mut guest = self.unstarted(config);
        guest.start_all();
        guest
    }

    /// A guest that is known to the workers, with memory, without running rings.
    pub fn unstarted(&mut self, config: Config) -> Guest {
        let port = self.new_port(config.pairs, config.policy.clone());
        port.negotiated(config.features);
        let attached = self.pool().attach_pairs(2 * config.pairs);
        let device = attached.device();
        self.tell(|reply| Message::AddPort { device, port: port.clone(), control: None, reply });
        Guest::new(port, attached, config)
    }

    pub fn remove(&mut self, mut guest: Guest) {
        guest.attached.disconnected().unwrap();
        let port = guest.port.id();
        self.tell(|reply| Message::RemovePort { port, reply });
        let policy = self.policy.without_port(port).unwrap();
        self.set_policy(policy);
    }

    /// An uplink with a queue on worker 0.
    pub fn uplink(&mut self, queue: Box<dyn UplinkQueue>) -> Arc<Port> {
        let policy = PortPolicy { uplink: true, ..PortPolicy::default() };
        let port = self.new_port(1, policy);
        let (reply, answer) = Reply::new();
        let handles = self.pool().handles();
        let (first, others) = handles.split_first().unwrap();
        first.send(Message::Uplink { port: port.clone(), queue, reply }).unwrap();
        answer.recv().unwrap().unwrap();
        for worker in others {
            let (reply, answer) = Reply::new();
            let port = port.clone();
            worker.send(Message::AddPort { device: u32::MAX, port, control: None, reply }).unwrap();
            answer.recv().unwrap();
        }
        port
    }
}

impl std::ops::Drop for Rig {
    fn drop(&mut self) {
        let gone = self.pool.take().unwrap().join();
        assert!(std::thread::panicking() || gone.is_empty(), "a worker has failed: {gone:?}");
    }
}

/// One ring as its driver has it.
pub struct DriverQueue {
    pub ring: DriverRing,
    pub addresses: RingAddresses,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    pub inflight: Option<Area>,
    /// One buffer for each entry.
    pub buffers: GuestAddr,
    free: Vec<u32>,
}

/// A frame as a guest got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The virtio-net header.
    pub header: Vec<u8>,
    pub frame: Vec<u8>,
    /// Receive buffers it came in.
    pub buffers: usize,
}

/// One guest, with its port.
pub struct Guest {
    pub port: Arc<Port>,
    pub attached: Attached<Message>,
    pub memory: OwnMemory,
    pub config: Config,
    /// Receive and transmit rings in turn.
    pub queues: Vec<DriverQueue>,
    pub patience: Duration,
}

/// Bytes of one transmit buffer.
pub const TX_BUFFER: usize = 72 << 10;

impl Guest {
    fn new(port: Arc<Port>, attached: Attached<Message>, config: Config) -> Self {
        let memory = OwnMemory::new(64 << 20, GuestAddr(0x100_0000)).unwrap();
        let mut guest =
            Self { port, attached, memory, config, queues: Vec::new(), patience: Duration::from_secs(5) };
        guest.attached.set_memory(guest.memory.table().clone()).unwrap();
        for index in 0..2 * guest.config.pairs {
            let queue = guest.make_queue(index);
            guest.queues.push(queue);
        }
        guest
    }

    pub fn ring_features(&self) -> RingFeatures {
        RingFeatures::from_bits(self.config.features)
    }

    pub fn header_len(&self) -> usize {
        HeaderSize::of(self.config.features).len()
    }

    fn make_queue(&self, index: u16) -> DriverQueue {
        let (features, size) = (self.ring_features(), self.config.size);
        let (desc, driver, device) = ring_sizes(features.format(), size);
        let area = |len| self.memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let mut ring =
            DriverRing::in_table(self.memory.table(), &addresses, features.format(), size, features).unwrap();
        if features.indirect {
            let len = 16 * 64 * usize::from(size);
            let area = self.memory.area(self.memory.alloc(len, 4096).unwrap(), len).unwrap();
            ring.set_indirect(IndirectTables { area, entries: 64 }).unwrap();
        }
        let (count, bytes) = match index.is_multiple_of(2) {
            true => (usize::from(size), self.config.buffer as usize),
            false => (16.min(usize::from(size)), TX_BUFFER),
        };
        let buffers = self.memory.alloc(count * bytes, 4096).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        DriverQueue {
            ring,
            addresses,
            kick: event(),
            call: event(),
            err: event(),
            inflight: None,
            buffers,
            free: (0..count as u32).rev().collect(),
        }
    }

    pub fn start_all(&mut self) {
        for index in 0..self.queues.len() as u16 {
            self.start(index);
        }
        for pair in 0..self.config.pairs {
            self.post(pair, usize::MAX);
        }
    }

    /// The device's side of queue `index`.
    pub fn device_queue(&self, index: u16, base: Option<u32>) -> Box<Queue> {
        let queue = &self.queues[usize::from(index)];
        let features = self.ring_features();
        let inflight = queue.inflight.clone();
        let mut device = Queue::new(RingSetup {
            size: self.config.size,
            features,
            table: self.memory.table(),
            addresses: queue.addresses,
            base: base.unwrap_or(if features.packed { 0x8000_8000 } else { 0 }),
            inflight: inflight
                .map(|area| QueueRegion::new(area, features.format(), self.config.size).unwrap()),
            log: None,
            used_log_addr: None,
        })
        .unwrap();
        device.set_kick(Some(duplicate(&queue.kick)));
        device.set_call(Some(queue.call.try_clone().unwrap()));
        device.set_err(Some(queue.err.try_clone().unwrap()));
        Box::new(device)
    }

    pub fn start(&mut self, index: u16) {
        self.start_at(index, None);
    }

    pub fn start_at(&mut self, index: u16, base: Option<u32>) {
        let queue = self.device_queue(index, base);
        self.attached.start_queue(index, queue).unwrap();
        self.attached.enable_queue(index, true).unwrap();
        let _spurious = self.queues[usize::from(index)].call.read();
    }

    /// An inflight region for queue `index`.
    pub fn track(&mut self, index: u16) {
        let len = virtqueue::inflight::region_size(self.ring_features().format(), self.config.size);
        self.queues[usize::from(index)].inflight = Some(Area::anonymous(len));
    }

    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.attached.set_log(log).unwrap();
    }

    /// Posts up to `count` receive buffers to a pair; returns how many.
    pub fn post(&mut self, pair: u16, count: usize) -> usize {
        let (buffer, header) = (self.config.buffer, self.header_len() as u32);
        let (split, indirect) = (self.config.split_header, self.config.indirect);
        let queue = &mut self.queues[usize::from(2 * pair)];
        let mut posted = 0;
        while posted < count
            && let Some(cookie) = queue.free.pop()
        {
            let addr = GuestAddr(queue.buffers.0 + u64::from(cookie) * u64::from(buffer));
            let whole = [Segment { addr, len: buffer }];
            let parts = [
                Segment { addr, len: header },
                Segment { addr: GuestAddr(addr.0 + u64::from(header)), len: buffer - header },
            ];
            let segments: &[Segment] = if split { &parts } else { &whole };
            let added = match indirect {
                true => queue.ring.add_indirect(&[], segments, cookie),
                false => queue.ring.add(&[], segments, cookie),
            };
            if added.is_err() {
                queue.free.push(cookie);
                break;
            }
            posted += 1;
        }
        if queue.ring.publish() {
            queue.kick.write(1).unwrap();
        }
        posted
    }

    /// Sends frames with nothing left undone on pair 0, and waits until the switch has taken them.
    pub fn send(&mut self, frames: &[&[u8]]) {
        let header = vec![0; self.header_len()];
        self.send_with(0, &header, frames);
    }

    /// Sends frames with this header.
    pub fn send_with(&mut self, pair: u16, header: &[u8], frames: &[&[u8]]) {
        for burst in frames.chunks(16) {
            for frame in burst {
                assert!(self.offer(pair, header, frame), "the ring is full");
            }
            self.kick(pair);
            self.reap(pair, burst.len());
        }
        self.settle();
    }

    /// Waits until the workers have ended their round: receivers see what was sent only after the sender has its buffers back.
    pub fn settle(&self) {
        for worker in self.attached.workers() {
            let (reply, answer) = Reply::new();
            worker.send(Message::Ping { reply }).unwrap();
            answer.recv().unwrap();
        }
    }

    /// Makes a frame available, unpublished; false when there is no room.
    pub fn offer(&mut self, pair: u16, header: &[u8], frame: &[u8]) -> bool {
        let (split, indirect) = (self.config.split_header, self.config.indirect);
        let queue = &mut self.queues[usize::from(2 * pair + 1)];
        let Some(cookie) = queue.free.pop() else { return false };
        let addr = GuestAddr(queue.buffers.0 + u64::from(cookie) * TX_BUFFER as u64);
        let slice = self.memory.slice(addr, TX_BUFFER).unwrap();
        slice.write(0, header);
        slice.write(header.len(), frame);
        let (h, f) = (header.len() as u32, frame.len() as u32);
        let body = GuestAddr(addr.0 + u64::from(h));
        let whole = [Segment { addr, len: h + f }];
        let parts = [Segment { addr, len: h }, Segment { addr: body, len: f }];
        let segments: &[Segment] = if split { &parts } else { &whole };
        let added = match indirect {
            true => queue.ring.add_indirect(segments, &[], cookie),
            false => queue.ring.add(segments, &[], cookie),
        };
        if added.is_err() {
            queue.free.push(cookie);
        }
        added.is_ok()
    }

    /// Shows what was offered.
    pub fn kick(&mut self, pair: u16) {
        let queue = &mut self.queues[usize::from(2 * pair + 1)];
        if queue.ring.publish() {
            queue.kick.write(1).unwrap();
        }
    }

    /// Waits until `count` more transmit chains have come back.
    pub fn reap(&mut self, pair: u16, count: usize) {
        let deadline = Instant::now() + self.patience;
        let mut done = 0;
        while done < count {
            done += self.reap_some(pair);
            assert!(Instant::now() < deadline, "{done} of {count} frames were taken");
            std::thread::yield_now();
        }
    }

    /// Takes back the transmit chains that are done, in the order the device used them; how many.
    pub fn reap_some(&mut self, pair: u16) -> usize {
        let queue = &mut self.queues[usize::from(2 * pair + 1)];
        let mut done = 0;
        while let Some(used) = queue.ring.pop() {
            assert_eq!(used.len, 0, "nothing is written to a transmit chain");
            queue.free.push(used.cookie);
            done += 1;
        }
        done
    }

    /// The frames that have arrived on a pair; their buffers are posted again.
    pub fn received_on(&mut self, pair: u16) -> Vec<Received> {
        let (buffer, header_len) = (self.config.buffer, self.header_len());
        let queue = &mut self.queues[usize::from(2 * pair)];
        let mut frames = Vec::new();
        let mut parts: Vec<u8> = Vec::new();
        let (mut expected, mut buffers) = (0, 0);
        while let Some(used) = queue.ring.pop() {
            queue.free.push(used.cookie);
            let addr = GuestAddr(queue.buffers.0 + u64::from(used.cookie) * u64::from(buffer));
            let mut bytes = vec![0; used.len as usize];
            self.memory.slice(addr, bytes.len()).unwrap().read(0, &mut bytes);
            if expected == 0 {
                expected = match header_len {
                    10 => 1,
                    _ => usize::from(u16::from_le_bytes([bytes[10], bytes[11]])),
                };
                assert!(expected > 0, "num_buffers is never 0");
            }
            parts.extend(bytes);
            buffers += 1;
            expected -= 1;
            if expected == 0 {
                let frame = parts.split_off(header_len);
                frames.push(Received { header: std::mem::take(&mut parts), frame, buffers });
                buffers = 0;
            }
        }
        assert_eq!(expected, 0, "a frame is shown whole");
        if !frames.is_empty() {
            self.post(pair, usize::MAX);
        }
        frames
    }

    /// Waits for `count` frames on pair 0.
    pub fn receive(&mut self, count: usize) -> Vec<Received> {
        let deadline = Instant::now() + self.patience;
        let mut frames = Vec::new();
        while frames.len() < count {
            frames.extend(self.received_on(0));
            assert!(Instant::now() < deadline, "{} of {count} frames came: {}", frames.len(), self.drops());
            std::thread::yield_now();
        }
        assert_eq!(frames.len(), count);
        frames
    }

    /// The bytes of the frames that have come on pair 0, without waiting.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.received_on(0).into_iter().map(|received| received.frame).collect()
    }

    pub fn stats(&self) -> PortSnapshot {
        self.port.stats.snapshot()
    }

    pub fn dropped_out(&self, why: Drop) -> u64 {
        self.stats().out_drops[why as usize]
    }

    pub fn dropped_in(&self, why: Drop) -> u64 {
        self.stats().in_drops[why as usize]
    }

    /// What was dropped, for messages.
    pub fn drops(&self) -> String {
        let stats = self.stats();
        let named = |drops: &[u64]| -> Vec<String> {
            let some = Drop::ALL.iter().filter(|why| drops[**why as usize] > 0);
            some.map(|why| format!("{} {}", why.name(), drops[*why as usize])).collect()
        };
        format!("in {:?}, out {:?}", named(&stats.in_drops), named(&stats.out_drops))
    }

    pub fn format(&self) -> Format {
        self.ring_features().format()
    }
}

pub fn duplicate(event: &EventFd) -> OwnedFd {
    use std::os::fd::{AsRawFd, BorrowedFd};
    #[expect(unsafe_code, reason = "EventFd has no AsFd")]
    // SAFETY: the descriptor is open for the duration of the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    borrowed.try_clone_to_owned().unwrap()
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// A frame of `len` bytes of a local experimental ethertype; the rest tells where it belongs.
pub fn frame(dst: MacAddr, src: MacAddr, len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&dst.0);
    bytes.extend_from_slice(&src.0);
    bytes.extend_from_slice(&[0x88, 0xb5]);
    let mut word = seed | 1;
    while bytes.len() < len {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(13) ^ seed;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
