//! A frontend and a guest behind it, against the whole device over a real socket and real rings: as QEMU's cryptodev, which
//! says almost nothing ([`Cryptodev`]), and as a VMM that passes the whole device on ([`Whole`]).
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod services;
pub mod wire;

use crypto_offload::asym;
use crypto_offload::device::CryptoDevice;
use crypto_offload::engine::Choice;
use crypto_offload::flush::{Mode, Policy, Thresholds};
use crypto_offload::service::{CryptoService, Message, ServiceConfig, Unit, UnitOptions};
use crypto_offload::vault::DeviceVault;
use memory::{GuestAddr, OwnMemory};
use runtime::attach::WorkerPool;
use runtime::policy::PollPolicy;
use runtime::stats::{QueueSnapshot, QueueStats};
use runtime::worker::{Worker, WorkerConfig};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vhost_user::frontend::Frontend;
use vhost_user::frontend::driver::{DriverQueue, Session, SessionConfig};
use vhost_user::message::{Request, VERSION, VringAddr, features, protocol};
use vhost_user::{Endpoint, Notifier, Options, serve};
use virtqueue::driver::{DriverRing, IndirectTables, Segment, Used};
use virtqueue::{Format, RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of every ring.
pub const SIZE: u16 = 256;
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Descriptors an indirect table holds.
const TABLE: u16 = 640;

/// A device and how it is served.
#[derive(Clone, Copy)]
pub struct Setup {
    pub data_queues: u16,
    pub sessions: u32,
    pub workers: usize,
    pub mode: Mode,
}

impl Default for Setup {
    fn default() -> Self {
        Self { data_queues: 1, sessions: 4096, workers: 1, mode: Mode::Interrupt }
    }
}

/// The device on its socket. Ends with the test.
pub struct Server {
    pub unit: Arc<Unit>,
    pub notifier: Notifier,
    pub path: PathBuf,
    /// What the runtime counts for each queue.
    pub counters: Vec<Arc<QueueStats>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    workers: Option<WorkerPool<Message>>,
    _asymmetric: asym::Pool,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        Self::keeping(setup, None)
    }

    /// With what a keeper holds for the process.
    pub fn keeping(setup: Setup, vault: Option<DeviceVault>) -> Self {
        let asymmetric = asym::Pool::start(1).unwrap();
        let policy = Policy { mode: setup.mode, thresholds: Thresholds::default() };
        let worker = |index| {
            let config = ServiceConfig::new(policy, Choice::default(), &asymmetric).unwrap();
            let poll = setup.mode.poll_policy(PollPolicy::Off);
            let worker = WorkerConfig { name: format!("w{index}"), poll, ..Default::default() };
            Worker::spawn(worker, move |cx| CryptoService::new(config, cx)).unwrap()
        };
        let workers = WorkerPool::new((0..setup.workers).map(worker).collect());
        let unit = Arc::new(Unit::new(UnitOptions {
            id: "test".into(),
            data_queues: setup.data_queues,
            queue_size: 1024,
            max_size: 1 << 20,
            sessions: setup.sessions,
            vault,
        }));
        let attached = workers.attach(setup.data_queues + 1);
        let counters = attached.stats().cloned().collect();
        let mut device = CryptoDevice::new(unit.clone(), attached).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let transport = Endpoint::Listen(path.clone()).open(0o600).unwrap();
        let (notifier, handle) = Notifier::new().unwrap();
        let thread = std::thread::spawn(move || serve(transport, &mut device, handle, &Options::default()));
        Self {
            unit,
            notifier,
            path,
            counters,
            thread: Some(thread),
            workers: Some(workers),
            _asymmetric: asymmetric,
            _dir: dir,
        }
    }

    pub fn stream(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// A frontend that has said nothing yet.
    pub fn raw(&self) -> Frontend {
        raw(self.stream())
    }

    pub fn sessions(&self) -> u64 {
        self.unit.sessions().figures().open
    }

    pub fn queue(&self, index: usize) -> QueueSnapshot {
        self.counters[index].snapshot()
    }
}

/// Where a frontend finds a device: served in this process, or by a daemon.
pub trait Served {
    fn dial(&self) -> UnixStream;
    fn data_queues(&self) -> u16;
}

impl Served for Server {
    fn dial(&self) -> UnixStream {
        self.stream()
    }

    fn data_queues(&self) -> u16 {
        self.unit.data_queues()
    }
}

fn raw(stream: UnixStream) -> Frontend {
    let mut frontend = Frontend::from_stream(stream);
    frontend.set_reply_timeout(PATIENCE);
    frontend
}

impl Drop for Server {
    fn drop(&mut self) {
        self.notifier.shutdown();
        let served = self.thread.take().map(JoinHandle::join);
        let failures = self.workers.take().map(WorkerPool::join).unwrap_or_default();
        if !std::thread::panicking() {
            served.unwrap().expect("the session thread must not panic").expect("serve ends without an error");
            assert!(failures.is_empty(), "{failures:?}");
        }
    }
}

/// Waits until something is true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A borrowed descriptor of an eventfd, which has no `AsFd`.
fn fd(event: &EventFd) -> BorrowedFd<'_> {
    #[expect(unsafe_code, reason = "EventFd only has AsRawFd")]
    // SAFETY: the descriptor stays open as long as `event` is borrowed.
    unsafe {
        BorrowedFd::borrow_raw(event.as_raw_fd())
    }
}

/// Memory of the guest, large enough for a test that never frees.
pub fn memory() -> OwnMemory {
    OwnMemory::new(64 << 20, GuestAddr(1 << 20)).unwrap()
}

/// A ring of a driver that has negotiated these features with whomever.
pub fn driver_queue(memory: &OwnMemory, features: RingFeatures) -> DriverQueue {
    let format = features.format();
    let (desc, driver, device) = ring_sizes(format, SIZE);
    let area = |len| memory.alloc(len, 4096).unwrap();
    let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
    let mut ring = DriverRing::in_table(memory.table(), &addresses, format, SIZE, features).unwrap();
    give_tables(memory, &mut ring, features);
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    DriverQueue { ring, kick: event(), call: event(), addresses, size: SIZE }
}

fn give_tables(memory: &OwnMemory, ring: &mut DriverRing, features: RingFeatures) {
    if features.indirect {
        let len = 16 * usize::from(TABLE) * usize::from(SIZE);
        let area = memory.area(memory.alloc(len, 4096).unwrap(), len).unwrap();
        ring.set_indirect(IndirectTables { area, entries: TABLE }).unwrap();
    }
}

/// A request on its way: where its writable bytes are.
pub struct Ticket {
    pub cookie: u32,
    writable: Vec<Segment>,
}

/// A guest's memory and what it does with a ring.
pub struct Guest {
    pub memory: OwnMemory,
    next: u32,
}

impl Guest {
    pub fn new() -> Self {
        Self { memory: memory(), next: 0 }
    }

    pub fn put(&self, bytes: &[u8]) -> Segment {
        let addr = self.memory.alloc(bytes.len().max(1), 16).unwrap();
        self.memory.slice(addr, bytes.len()).unwrap().write(0, bytes);
        Segment { addr, len: bytes.len() as u32 }
    }

    pub fn get(&self, segment: &Segment) -> Vec<u8> {
        let mut bytes = vec![0; segment.len as usize];
        self.memory.slice(segment.addr, bytes.len()).unwrap().read(0, &mut bytes);
        bytes
    }

    /// Makes a request available, in one descriptor for each part; not shown yet.
    pub fn add(&mut self, queue: &mut DriverQueue, readable: &[&[u8]], writable: &[usize]) -> Ticket {
        self.next += 1;
        let out: Vec<_> = readable.iter().map(|bytes| self.put(bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|len| self.put(&vec![0xee; *len])).collect();
        queue.ring.add(&out, &writable, self.next).unwrap();
        Ticket { cookie: self.next, writable }
    }

    /// The same in an indirect table.
    pub fn add_indirect(
        &mut self,
        queue: &mut DriverQueue,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> Ticket {
        self.next += 1;
        let out: Vec<_> = readable.iter().map(|bytes| self.put(bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|len| self.put(&vec![0xee; *len])).collect();
        queue.ring.add_indirect(&out, &writable, self.next).unwrap();
        Ticket { cookie: self.next, writable }
    }

    /// A request of these segments in an indirect table, shown to the device.
    pub fn submit(&mut self, queue: &mut DriverQueue, readable: &[Segment], writable: &[Segment]) -> Ticket {
        self.next += 1;
        queue.ring.add_indirect(readable, writable, self.next).unwrap();
        queue.publish().unwrap();
        Ticket { cookie: self.next, writable: writable.to_vec() }
    }

    /// Waits for the next completion without looking at interrupts.
    pub fn wait(&self, queue: &mut DriverQueue) -> Used {
        let mut used = None;
        eventually("a request completes", || {
            used = queue.ring.pop();
            used.is_some()
        });
        used.unwrap()
    }

    /// Waits for a completion as a sleeping driver does: an interrupt comes, or nothing does.
    pub fn sleep_for(&self, queue: &mut DriverQueue) -> Used {
        loop {
            if let Some(used) = queue.ring.pop() {
                return used;
            }
            if queue.ring.arm() {
                continue;
            }
            let mut poll = libc::pollfd { fd: queue.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            #[expect(unsafe_code, reason = "an eventfd is waited for")]
            // SAFETY: one valid entry.
            let ready = unsafe { libc::poll(&mut poll, 1, PATIENCE.as_millis() as i32) };
            assert_eq!(ready, 1, "the driver sleeps and no interrupt comes");
            let _ = queue.call.read();
        }
    }

    /// The writable bytes of a request that came back.
    pub fn outcome(&self, ticket: &Ticket) -> Vec<u8> {
        ticket.writable.iter().flat_map(|segment| self.get(segment)).collect()
    }

    /// One request and its outcome.
    pub fn ask(&mut self, queue: &mut DriverQueue, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        let ticket = self.add(queue, readable, writable);
        queue.publish().unwrap();
        assert_eq!(self.wait(queue).cookie, ticket.cookie);
        self.outcome(&ticket)
    }

    /// Ciphers with a session; the result and the status.
    pub fn cipher(
        &mut self,
        queue: &mut DriverQueue,
        opcode: u32,
        session: u64,
        iv: &[u8],
        src: &[u8],
    ) -> (Vec<u8>, u8) {
        let request = wire::cipher(opcode, session, iv.len(), src.len(), src.len());
        let mut outcome = self.ask(queue, &[&request, iv, src], &[src.len(), 1]);
        let status = outcome.pop().unwrap();
        (outcome, status)
    }

    /// The first two blocks of the vector of NIST SP 800-38A §F.2.1, which the session's key belongs to.
    pub fn check_vector(&mut self, queue: &mut DriverQueue, session: u64) {
        let done = self.cipher(queue, wire::ENCRYPT, session, &wire::IV, &wire::PLAIN);
        assert_eq!(done, (wire::SECRET.to_vec(), wire::OK));
    }
}

/// What QEMU's cryptodev cannot do without.
pub const QEMU_CHOOSES: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CRYPTO_SESSION;

/// QEMU with `-object cryptodev-vhost-user` and one queue.
pub struct Cryptodev {
    pub frontend: Frontend,
    pub queue: DriverQueue,
    pub guest: Guest,
    /// Protocol features chosen of those offered.
    chooses: u64,
}

impl Cryptodev {
    /// Before the guest's driver is there: the first handshake, once for each queue.
    pub fn connect(server: &impl Served, driver: RingFeatures) -> Self {
        Self::choosing(server, driver, QEMU_CHOOSES)
    }

    /// The same with a QEMU that knows other protocol features.
    pub fn choosing(server: &impl Served, driver: RingFeatures, chooses: u64) -> Self {
        let guest = Guest::new();
        let queue = driver_queue(&guest.memory, driver);
        let mut qemu = Self { frontend: raw(server.dial()), queue, guest, chooses };
        qemu.handshake();
        qemu
    }

    /// With the driver's ring running.
    pub fn running(server: &impl Served, driver: RingFeatures) -> Self {
        let mut qemu = Self::connect(server, driver);
        qemu.start();
        qemu
    }

    /// What QEMU does for each queue of the object.
    pub fn handshake(&mut self) {
        let frontend = &mut self.frontend;
        let offered = frontend.get_features().unwrap();
        assert_ne!(offered & features::PROTOCOL_FEATURES, 0);
        let offered = frontend.get_protocol_features().unwrap();
        assert_eq!(offered & QEMU_CHOOSES, QEMU_CHOOSES);
        frontend.set_protocol_features(offered & self.chooses).unwrap();
        frontend.get_queue_num().unwrap();
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
    }

    /// What follows DRIVER_OK. No SET_VRING_ENABLE.
    pub fn start(&mut self) {
        self.start_at(0);
    }

    pub fn start_at(&mut self, base: u32) {
        let Self { frontend, queue, guest, .. } = self;
        frontend.set_features(features::PROTOCOL_FEATURES).unwrap();
        if frontend.protocol() & protocol::CONFIGURE_MEM_SLOTS != 0 {
            frontend.add_mem_reg(&guest.memory.config(), guest.memory.fd()).unwrap();
        } else {
            frontend.set_mem_table(&[(guest.memory.config(), guest.memory.fd())]).unwrap();
        }
        frontend.set_vring_num(0, SIZE.into()).unwrap();
        frontend.set_vring_base(0, base).unwrap();
        frontend.set_vring_addr(&vring_addr(&guest.memory, 0, &queue.addresses)).unwrap();
        frontend.set_vring_kick(0, Some(fd(&queue.kick))).unwrap();
        frontend.set_vring_call(0, Some(fd(&queue.call))).unwrap();
    }

    /// The guest pauses, or its driver is reset.
    pub fn stop(&mut self) -> u32 {
        self.frontend.get_vring_base(0).unwrap()
    }

    /// A new driver, with a new ring.
    pub fn renew(&mut self, driver: RingFeatures) {
        self.queue = driver_queue(&self.guest.memory, driver);
    }

    /// Sends a description as QEMU does, without asking for an acknowledgement; the identifier is negative for a failure.
    pub fn create(&mut self, description: &[u8]) -> i64 {
        self.frontend.send_raw(Request::CreateCryptoSession.into(), VERSION, description, &[]).unwrap();
        let reply = self.frontend.receive_raw().unwrap();
        assert_eq!(reply.header.request.get(), u32::from(Request::CreateCryptoSession));
        assert_eq!(reply.header.flags.get(), 5, "version 1, reply");
        assert_eq!(reply.body.len(), description.len(), "QEMU compares the sizes");
        wire::description_id(&reply.body)
    }

    /// Sends a close as QEMU does.
    pub fn close(&mut self, id: u64) {
        self.frontend.send_raw(Request::CloseCryptoSession.into(), VERSION, &id.to_ne_bytes(), &[]).unwrap();
    }

    /// Everything sent so far was handled.
    pub fn sync(&mut self) {
        self.frontend.get_features().unwrap();
    }

    pub fn cipher(&mut self, opcode: u32, session: u64, iv: &[u8], src: &[u8]) -> (Vec<u8>, u8) {
        self.guest.cipher(&mut self.queue, opcode, session, iv, src)
    }

    pub fn check_vector(&mut self, session: u64) {
        self.guest.check_vector(&mut self.queue, session);
    }
}

pub fn vring_addr(memory: &OwnMemory, index: u32, at: &RingAddresses) -> VringAddr {
    let user = |addr: GuestAddr| memory.user_of(addr).0.into();
    VringAddr {
        index: index.into(),
        flags: 0.into(),
        descriptor: user(at.desc),
        used: user(at.device),
        available: user(at.driver),
        log: at.device.0.into(),
    }
}

/// A VMM that passes the whole device on, and its driver.
pub struct Whole {
    pub session: Session,
    pub guest: Guest,
    pub data_queues: usize,
}

impl Whole {
    /// With all queues running; `wanted` of what the device offers.
    pub fn running(server: &impl Served, wanted: u64) -> Self {
        let guest = Guest::new();
        let data_queues = server.data_queues();
        let config = SessionConfig {
            queues: data_queues + 1,
            size: SIZE,
            features_wanted: wanted,
            packed: wanted & features::RING_PACKED != 0,
            inflight: false,
            memory: &guest.memory,
        };
        let mut session = Session::start(server.dial(), &config).unwrap();
        session.frontend.set_reply_timeout(PATIENCE);
        let negotiated = session.ring_features();
        for queue in &mut session.rings {
            give_tables(&guest.memory, &mut queue.ring, negotiated);
        }
        Self { session, guest, data_queues: data_queues.into() }
    }

    /// A data queue and what works on it.
    pub fn on(&mut self, index: usize) -> (&mut Guest, &mut DriverQueue) {
        (&mut self.guest, &mut self.session.rings[index])
    }

    /// A request on the control queue.
    pub fn control(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let queue = &mut self.session.rings[self.data_queues];
        self.guest.ask(queue, &[request], &[room])
    }

    /// A new session: identifier and status.
    pub fn create(&mut self, request: &[u8]) -> (u64, u32) {
        let outcome = self.control(request, 16);
        let id = u64::from_le_bytes(outcome[..8].try_into().unwrap());
        (id, u32::from_le_bytes(outcome[8..12].try_into().unwrap()))
    }

    /// A new session that must come to be.
    pub fn session(&mut self, request: &[u8]) -> u64 {
        let (id, status) = self.create(request);
        assert_eq!(status, 0, "the session is refused");
        id
    }

    pub fn cipher(&mut self, opcode: u32, session: u64, iv: &[u8], src: &[u8]) -> (Vec<u8>, u8) {
        self.guest.cipher(&mut self.session.rings[0], opcode, session, iv, src)
    }

    pub fn check_vector(&mut self, session: u64) {
        self.guest.check_vector(&mut self.session.rings[0], session);
    }

    /// One request on the first data queue.
    pub fn ask(&mut self, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        self.guest.ask(&mut self.session.rings[0], readable, writable)
    }

    /// Stops all queues, in the order of QEMU; their bases.
    pub fn stop(&mut self) -> Vec<u32> {
        (0..=self.data_queues as u16).map(|index| self.session.stop_queue(index).unwrap()).collect()
    }

    /// Starts all queues again.
    pub fn start(&mut self, bases: &[u32]) {
        for (index, base) in (0..).zip(bases) {
            self.start_queue(index, *base);
        }
    }

    pub fn start_queue(&mut self, index: u16, base: u32) {
        let ring = &self.session.rings[usize::from(index)];
        let (addresses, size) = (ring.addresses, ring.size);
        let (kick, call) = (ring.kick.try_clone().unwrap(), ring.call.try_clone().unwrap());
        self.session.start_queue(index, size, base, &addresses, &kick, &call).unwrap();
    }

    /// A new driver, with new rings.
    pub fn renew(&mut self) {
        (0..=self.data_queues).for_each(|index| self.renew_queue(index));
    }

    pub fn renew_queue(&mut self, index: usize) {
        let features = self.session.ring_features();
        self.session.rings[index] = driver_queue(&self.guest.memory, features);
    }

    /// SET_VRING_BASE of a ring that never ran.
    pub fn first(&self) -> u32 {
        match self.session.ring_features().format() {
            Format::Packed => 0x8000_8000,
            Format::Split => 0,
        }
    }
}
