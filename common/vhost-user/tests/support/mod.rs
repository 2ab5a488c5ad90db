//! A device for tests that runs real rings, and a server around it.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod qemu;
pub mod script;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memory::{DirtyLog, GuestAddr, MemoryTable, MemoryView, OwnMemory};
use vhost_user::frontend::Frontend;
use vhost_user::frontend::driver::{DriverQueue, Session, SessionConfig, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::{features, protocol};
use vhost_user::{Device, Endpoint, Notifier, NotifierHandle, Options, Refused, Transport, serve};
use virtqueue::driver::{IndirectTables, Segment};
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures};
use vmm_sys_util::eventfd::EventFd;

/// Features of the test device: everything the rings can do.
pub const FEATURES: u64 = features::VERSION_1 | RingFeatures::ALL;
/// Extra protocol features of the test device: everything a device may add.
pub const EXTRAS: u64 =
    protocol::CONFIG | protocol::RARP | protocol::NET_MTU | protocol::CRYPTO_SESSION | protocol::DEVICE_STATE;
/// The crypto session of the test device: an identifier that needs all of its 63 bits.
pub const SESSION: u64 = 0x7654_3210_89ab_cdef;
/// Number of rings of the test device.
pub const QUEUES: u16 = 4;

/// What a [`Mirror`] does, shared with the test.
#[derive(Default)]
pub struct State {
    pub queues: BTreeMap<u16, (Box<Queue>, bool)>,
    pub table: Option<Arc<MemoryTable>>,
    pub log: Option<Arc<DirtyLog>>,
    /// Every call of the session, in order.
    pub calls: Vec<String>,
    pub features: u64,
    pub protocol: Option<u64>,
    pub served: u64,
    pub config: Vec<u8>,
    pub saved: Vec<u8>,
    /// Chains are taken but not completed while this is set.
    pub stalled: bool,
}

impl State {
    fn note(&mut self, call: impl Into<String>) {
        self.calls.push(call.into());
    }
}

/// A device whose every request returns the readable bytes, inverted. A thread of its own looks at the rings every 100 us.
pub struct Mirror {
    pub state: Arc<Mutex<State>>,
    pub offers: u64,
    pub extras: u64,
    pub queues: u16,
    pub start_enabled: bool,
    /// The front-end is not believed about features.
    pub any_driver: bool,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Mirror {
    pub fn new() -> Self {
        let config: Vec<u8> = (1..=60).collect();
        let state = Arc::new(Mutex::new(State { config, ..State::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    serve_rings(&mut state.lock().unwrap());
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        });
        Self {
            state,
            offers: FEATURES,
            extras: EXTRAS,
            queues: QUEUES,
            start_enabled: false,
            any_driver: false,
            stop,
            worker: Some(worker),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.worker.take().unwrap().join();
    }
}

fn serve_rings(state: &mut State) {
    let Some(table) = state.table.clone() else { return };
    if state.stalled {
        return;
    }
    let view = MemoryView::new(table);
    for (queue, enabled) in state.queues.values_mut() {
        if *enabled {
            state.served += serve_ring(queue, &view);
        }
    }
}

fn serve_ring(queue: &mut Queue, view: &MemoryView) -> u64 {
    let (mut chain, mut served) = (Chain::new(), 0);
    loop {
        let ready = queue.ring.fetch(32);
        if ready == 0 {
            if let Some(why) = queue.ring.broken() {
                queue.break_ring(why);
            }
            return served;
        }
        for _ in 0..ready {
            if let Err(why) = queue.ring.next(view, &mut chain) {
                queue.break_ring(why);
                return served;
            }
            let len = chain.readable_len().min(chain.writable_len()) as usize;
            let mut bytes = vec![0; len];
            chain.read_at(view, 0, &mut bytes).unwrap();
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            chain.write_at(view, 0, &bytes).unwrap();
            queue.ring.complete(view, &chain, len as u32);
            served += 1;
        }
        queue.publish();
    }
}

impl Device for Mirror {
    fn max_queues(&self) -> u16 {
        self.queues
    }

    fn features(&self) -> u64 {
        self.offers
    }

    fn protocol_features(&self) -> u64 {
        self.extras
    }

    fn max_queue_size(&self) -> u16 {
        1024
    }

    fn rings_start_enabled(&self) -> bool {
        self.start_enabled
    }

    fn driver_features_unknown(&self) -> bool {
        self.any_driver
    }

    fn protocol_negotiated(&mut self, features: u64) {
        self.lock().protocol = Some(features);
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        let state = self.lock();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = state.config.get(offset + i).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8], migration: bool) -> Result<(), Refused> {
        // Only byte 8 may be written by the guest.
        if !migration && (offset, data.len()) != (8, 1) {
            return Err(Refused("read-only"));
        }
        let mut state = self.lock();
        let end = offset + data.len();
        state.config.get_mut(offset..end).ok_or(Refused("beyond the end"))?.copy_from_slice(data);
        Ok(())
    }

    fn negotiated(&mut self, features: u64) {
        let mut state = self.lock();
        state.features = features;
        state.note(format!("negotiated {features:#x}"));
    }

    fn set_memory(&mut self, table: Arc<MemoryTable>) {
        let mut state = self.lock();
        state.note(format!("memory {}", table.regions().count()));
        for (queue, _) in state.queues.values_mut() {
            queue
                .rebuild_after_memory_change(&table)
                .expect("the session stops rings that lose their memory");
        }
        state.table = Some(table);
    }

    fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        let mut state = self.lock();
        state.note(format!("log {}", log.is_some()));
        for (queue, _) in state.queues.values_mut() {
            queue.set_log(log.clone(), None);
        }
        state.log = log;
    }

    fn start_queue(&mut self, index: u16, mut queue: Box<Queue>) {
        queue.interrupt();
        let mut state = self.lock();
        state.note(format!("start {index}"));
        assert!(state.queues.insert(index, (queue, false)).is_none(), "ring {index} was started twice");
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        let mut state = self.lock();
        state.note(format!("stop {index}"));
        state.queues.remove(&index).map(|(queue, _)| queue)
    }

    fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        let mut state = self.lock();
        let queue = &mut state.queues.get_mut(&index).expect("a running ring").0;
        queue.set_call(call);
        queue.interrupt();
    }

    fn set_err(&mut self, index: u16, err: Option<EventFd>) {
        self.lock().queues.get_mut(&index).expect("a running ring").0.set_err(err);
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) {
        let mut state = self.lock();
        state.note(format!("enable {index} {enabled}"));
        state.queues.get_mut(&index).expect("a running ring").1 = enabled;
    }

    fn set_status(&mut self, status: u8) {
        self.lock().note(format!("status {status}"));
    }

    fn reset(&mut self) {
        self.lock().note("reset");
    }

    fn disconnected(&mut self) {
        let mut state = self.lock();
        state.note("disconnected");
        state.queues.clear();
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), Refused> {
        if mtu >= 68 { Ok(()) } else { Err(Refused("MTU too small")) }
    }

    fn rarp(&mut self, mac: [u8; 6]) -> Result<(), Refused> {
        self.lock().note(format!("rarp {mac:x?}"));
        Ok(())
    }

    fn create_crypto_session(&mut self, description: &[u8]) -> Result<u64, Refused> {
        match description[8] {
            0xff => Err(Refused("unknown algorithm")),
            0xfe => Ok(1 << 63),
            _ => Ok(SESSION),
        }
    }

    fn close_crypto_session(&mut self, id: u64) -> Result<(), Refused> {
        if id == SESSION { Ok(()) } else { Err(Refused("no such session")) }
    }

    fn save_state(&mut self) -> Result<Vec<u8>, Refused> {
        Ok(self.lock().saved.clone())
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), Refused> {
        if state.first() == Some(&0xff) {
            return Err(Refused("malformed state"));
        }
        self.lock().saved = state.to_vec();
        Ok(())
    }
}

/// A served [`Mirror`]. Ends with the test.
pub struct Server {
    pub state: Arc<Mutex<State>>,
    pub notifier: Notifier,
    pub path: PathBuf,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Listens in a new directory.
    pub fn new() -> Self {
        Self::with(Mirror::new(), Options::default())
    }

    pub fn with(mirror: Mirror, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let transport = Endpoint::Listen(path.clone()).open(0o600).unwrap();
        Self::on(transport, mirror, options, path, dir)
    }

    /// Connects to a front-end that listens at `socket` in the new directory.
    pub fn connecting(mirror: Mirror, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let transport = Endpoint::Connect(path.clone()).open(0o600).unwrap();
        Self::on(transport, mirror, options, path, dir)
    }

    pub fn on(
        transport: Transport,
        mut mirror: Mirror,
        options: Options,
        path: PathBuf,
        dir: tempfile::TempDir,
    ) -> Self {
        let state = mirror.state.clone();
        let (notifier, handle): (Notifier, NotifierHandle) = Notifier::new().unwrap();
        let thread = std::thread::spawn(move || serve(transport, &mut mirror, handle, &options));
        Self { state, notifier, path, thread: Some(thread), _dir: dir }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The calls since the last time this was asked.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    pub fn stream(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// A raw front-end.
    pub fn raw(&self) -> Frontend {
        patient(self.stream())
    }

    /// A front-end that has negotiated everything and asks for acknowledgements.
    pub fn negotiated(&self) -> Session {
        let mut session = Session::connect(&self.path, FEATURES & !features::RING_PACKED, u64::MAX).unwrap();
        session.frontend.set_reply_timeout(Duration::from_secs(5));
        session
    }

    /// A front-end with running rings.
    pub fn running(&self, memory: &OwnMemory, queues: u16, packed: bool) -> Session {
        Session::start(self.stream(), &config(memory, queues, packed)).unwrap()
    }

    /// Ends the server now; its result.
    pub fn shutdown(&mut self) -> std::io::Result<()> {
        self.notifier.shutdown();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits for the server to end by itself.
    pub fn wait(&mut self) -> std::io::Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.notifier.shutdown();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.expect("the session thread must not panic").expect("serve ends without an error");
            }
        }
    }
}

pub fn patient(stream: UnixStream) -> Frontend {
    let mut frontend = Frontend::from_stream(stream);
    frontend.set_reply_timeout(Duration::from_secs(5));
    frontend
}

pub fn config(memory: &OwnMemory, queues: u16, packed: bool) -> SessionConfig<'_> {
    SessionConfig { queues, size: 16, features_wanted: FEATURES, packed, inflight: false, memory }
}

/// The protocol features [`Session`] asks for and everything of the test device.
pub const ALL_PROTOCOL: u64 = USEFUL_PROTOCOL_FEATURES | EXTRAS;

/// Memory at 1 MiB.
pub fn memory() -> OwnMemory {
    OwnMemory::new(1 << 20, GuestAddr(1 << 20)).unwrap()
}

/// Waits until something is true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < end, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A buffer pair in the memory, used again and again.
pub struct Buffers {
    request: GuestAddr,
    reply: GuestAddr,
}

/// Bytes of each buffer.
pub const LEN: usize = 64;

impl Buffers {
    pub fn new(memory: &OwnMemory) -> Self {
        let page = || memory.alloc(4096, 4096).unwrap();
        Self { request: page(), reply: page() }
    }

    pub fn reply_addr(&self) -> GuestAddr {
        self.reply
    }

    /// Puts one request on a ring, without waiting.
    pub fn submit(&self, session: &mut Session, ring: usize, memory: &OwnMemory, fill: u8) {
        self.submit_on(&mut session.rings[ring], memory, fill);
    }

    /// One request whose descriptors are in a table.
    pub fn indirect_round_trip(&self, queue: &mut DriverQueue, memory: &OwnMemory, fill: u8) {
        let addr = memory.alloc(16 * usize::from(queue.size) * 2, 16).unwrap();
        let area = memory.area(addr, 16 * usize::from(queue.size) * 2).unwrap();
        queue.ring.set_indirect(IndirectTables { area, entries: 2 }).unwrap();
        memory.slice(self.request, LEN).unwrap().write(0, &[fill; LEN]);
        let segment = |addr| Segment { addr, len: LEN as u32 };
        queue.ring.add_indirect(&[segment(self.request)], &[segment(self.reply)], fill.into()).unwrap();
        queue.publish().unwrap();
        self.finish_on(queue, memory, fill);
    }

    /// Waits for a request's completion and checks every byte.
    pub fn finish(&self, session: &mut Session, ring: usize, memory: &OwnMemory, fill: u8) {
        self.finish_on(&mut session.rings[ring], memory, fill);
    }

    /// One request and its completion.
    pub fn round_trip(&self, session: &mut Session, ring: usize, memory: &OwnMemory, fill: u8) {
        self.submit(session, ring, memory, fill);
        self.finish(session, ring, memory, fill);
    }

    pub fn submit_on(&self, queue: &mut DriverQueue, memory: &OwnMemory, fill: u8) {
        memory.slice(self.request, LEN).unwrap().write(0, &[fill; LEN]);
        memory.slice(self.reply, LEN).unwrap().write(0, &[0; LEN]);
        let segment = |addr| Segment { addr, len: LEN as u32 };
        queue.ring.add(&[segment(self.request)], &[segment(self.reply)], fill.into()).unwrap();
        queue.publish().unwrap();
    }

    pub fn finish_on(&self, queue: &mut DriverQueue, memory: &OwnMemory, fill: u8) {
        let mut used = None;
        eventually("the request completes", || {
            used = queue.ring.pop();
            used.is_some()
        });
        let used = used.unwrap();
        assert_eq!((used.cookie, used.len), (fill.into(), LEN as u32));
        let mut bytes = [0; LEN];
        memory.slice(self.reply, LEN).unwrap().read(0, &mut bytes);
        assert_eq!(bytes, [!fill; LEN]);
    }

    /// Several requests on one ring, one after another.
    pub fn exercise(&self, queue: &mut DriverQueue, memory: &OwnMemory, rounds: u8) {
        for fill in 0..rounds {
            self.submit_on(queue, memory, fill);
            self.finish_on(queue, memory, fill);
        }
    }
}

/// Takes what an eventfd counted, 0 if nothing.
pub fn drain(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

/// A borrowed descriptor of an eventfd, which has no `AsFd`.
pub fn fd(event: &EventFd) -> BorrowedFd<'_> {
    #[expect(unsafe_code, reason = "EventFd only has AsRawFd")]
    // SAFETY: the descriptor stays open as long as `event` is borrowed.
    unsafe {
        BorrowedFd::borrow_raw(event.as_raw_fd())
    }
}

/// Socket path of somebody else's server.
pub fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).unwrap()
}
