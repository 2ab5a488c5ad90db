//! A toy device for whole-worker tests: it copies what it reads back to what it may write. And a guest to drive it.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use memory::{Epoch, GuestAddr, MemoryTable, OwnMemory};
use runtime::attach::Attached;
use runtime::io::{IoConfig, IoKind};
use runtime::policy::PollPolicy;
use runtime::rings::{BURST, RingCommand, Rings, SlotId};
use runtime::worker::{Context, Service, Worker, WorkerConfig, WorkerHandle};
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{Chain, DeviceRing, Format, Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of one buffer.
pub const BUFFER: u32 = 64;

/// What the tests say to the toy.
pub enum Say {
    Ring(RingCommand),
    /// Panic in the middle of this message.
    Panic,
    /// Block the worker until the other end is dropped or sends.
    Block(mpsc::Receiver<()>),
    /// Ask for a wake-up this far from now; the time it came at is sent.
    WakeIn(Duration, mpsc::Sender<Duration>),
    /// Pause or resume all rings.
    Pause(bool),
}

impl From<RingCommand> for Say {
    fn from(command: RingCommand) -> Self {
        Self::Ring(command)
    }
}

/// Holds requests back while it is closed.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_while(open, |open| !*open).unwrap());
    }
}

struct Pending {
    slot: SlotId,
    chain: Chain,
    epoch: Epoch,
}

/// The toy device.
pub struct Echo {
    rings: Rings<()>,
    chain: Chain,
    /// With a gate each request is an I/O operation that ends when the gate opens.
    gate: Option<Arc<Gate>>,
    pending: Vec<Option<Pending>>,
    dirty: Vec<SlotId>,
    wake: Option<(u64, Instant, mpsc::Sender<Duration>)>,
    paused: bool,
    /// Which ring was served, and how many chains it had.
    pub served: Arc<Mutex<Vec<(u32, u16, u16)>>>,
}

impl Echo {
    pub fn new(gate: Option<Arc<Gate>>) -> Self {
        Self {
            rings: Rings::new(),
            chain: Chain::new(),
            gate,
            pending: Vec::new(),
            dirty: Vec::new(),
            wake: None,
            paused: false,
            served: Arc::default(),
        }
    }
}

/// Copies the readable bytes to the writable ones; the number of bytes written.
fn echo(mem: &memory::MemoryView, chain: &Chain) -> u32 {
    let len = chain.readable_len().min(chain.writable_len()) as usize;
    let mut bytes = vec![0; len];
    chain.read_at(mem, 0, &mut bytes).unwrap();
    chain.write_at(mem, 0, &bytes).unwrap();
    len as u32
}

impl Service for Echo {
    type Message = Say;

    fn message(&mut self, message: Say, cx: &mut Context) {
        match message {
            Say::Ring(command) => self.rings.apply(command, cx, |_, _, _| ()),
            Say::Panic => panic!("the toy was told to panic: expected in this test"),
            Say::Block(until) => drop(until.recv()),
            Say::WakeIn(time, report) => {
                let deadline = runtime::cpu::monotonic_ns() + time.as_nanos() as u64;
                cx.wake_at(deadline);
                self.wake = Some((deadline, Instant::now(), report));
            }
            Say::Pause(pause) => {
                self.paused = pause;
                self.rings.for_each(cx, |slot, _, _| if pause { slot.pause() } else { slot.resume() });
            }
        }
    }

    fn poll_once(&mut self, cx: &mut Context) -> usize {
        if let Some((deadline, since, report)) = self.wake.take() {
            match cx.now_ns() >= deadline {
                true => drop(report.send(since.elapsed())),
                false => self.wake = Some((deadline, since, report)),
            }
        }
        let Self { rings, chain, gate, pending, served, .. } = self;
        let work = rings.serve(cx, |slot, epochs, cx| {
            let n = slot.queue.ring.fetch(BURST);
            let mut taken = 0;
            for _ in 0..n {
                if slot.queue.ring.next(epochs.view(), chain).is_err() {
                    break;
                }
                taken += 1;
                match gate {
                    None => {
                        let written = echo(epochs.view(), chain);
                        slot.queue.ring.complete(epochs.view(), chain, written);
                    }
                    Some(gate) => {
                        let chain = std::mem::replace(chain, Chain::new());
                        let user_data = pending.len() as u64;
                        pending.push(Some(Pending { slot: slot.id, chain, epoch: epochs.enter() }));
                        let gate = gate.clone();
                        cx.io
                            .offload(user_data, move || {
                                gate.pass();
                                0
                            })
                            .unwrap();
                    }
                }
            }
            slot.stats.requests.add(u64::from(taken));
            served.lock().unwrap().push((slot.device, slot.index, taken));
            if gate.is_none() && taken > 0 {
                slot.publish(cx);
            }
            usize::from(taken)
        });
        for id in std::mem::take(&mut self.dirty) {
            if let Some((slot, _)) = self.rings.slot(id) {
                slot.publish(cx);
            }
        }
        self.rings.settle(cx);
        work
    }

    fn completed(&mut self, user_data: u64, result: i32, _cx: &mut Context) {
        assert_eq!(result, 0);
        let Pending { slot: id, chain, epoch } = self.pending[user_data as usize].take().unwrap();
        let (slot, epochs) = self.rings.slot(id).unwrap();
        let written = echo(epochs.view_of(epoch), &chain);
        slot.queue.ring.complete(epochs.view_of(epoch), &chain, written);
        epochs.leave(epoch);
        self.dirty.push(id);
    }

    fn ready(&mut self, watch: runtime::io::WatchId, _cx: &mut Context) {
        self.rings.kicked(watch);
    }

    fn arm(&mut self) -> bool {
        self.rings.arm()
    }

    fn suppress(&mut self) {
        self.rings.suppress();
    }

    fn outstanding(&self) -> usize {
        self.rings.outstanding()
    }

    fn close(&mut self) {
        self.rings.close();
    }

    fn panicked(&mut self) {
        self.rings.fail();
    }
}

/// A worker that runs the toy.
pub fn worker(name: &str, kind: IoKind, poll: PollPolicy, gate: Option<Arc<Gate>>) -> Worker<Say> {
    let config = WorkerConfig { name: name.into(), poll, io: kind.into(), ..WorkerConfig::default() };
    Worker::spawn(config, move |_| Echo::new(gate)).unwrap()
}

pub fn io(kind: IoKind) -> IoConfig {
    kind.into()
}

/// A device with one worker.
pub fn attach(worker: &WorkerHandle<Say>, device: u32, queues: u16) -> Attached<Say> {
    Attached::new(device, std::slice::from_ref(worker), queues, 0)
}

pub fn event_fd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Waits until the eventfd is readable, and reads it.
pub fn wait_for(event: &EventFd, timeout: Duration) -> bool {
    let mut fd = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let n = unsafe { libc::poll(&mut fd, 1, timeout.as_millis() as i32) };
    n == 1 && event.read().is_ok()
}

/// A guest with one ring: memory, driver, eventfds, a pair of buffers for each entry.
pub struct Guest {
    pub memory: OwnMemory,
    pub driver: DriverRing,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    pub addresses: RingAddresses,
    pub features: RingFeatures,
    pub size: u16,
    buffers: GuestAddr,
    next: u32,
    done: u32,
}

impl Guest {
    pub fn new(format: Format, size: u16) -> Self {
        Self::with_features(
            RingFeatures { event_idx: true, packed: format == Format::Packed, ..RingFeatures::default() },
            size,
        )
    }

    pub fn with_features(features: RingFeatures, size: u16) -> Self {
        let memory = OwnMemory::new(1 << 20, GuestAddr(0x10_0000)).unwrap();
        let (desc, driver, device) = ring_sizes(features.format(), size);
        let [desc, driver, device] = [desc, driver, device].map(|len| memory.alloc(len, 4096).unwrap());
        let addresses = RingAddresses { desc, driver, device };
        let ring =
            DriverRing::in_table(memory.table(), &addresses, features.format(), size, features).unwrap();
        let buffers = memory.alloc(usize::from(size) * BUFFER as usize * 2, 64).unwrap();
        let (kick, call, err) = (event_fd(), event_fd(), event_fd());
        Self { memory, driver: ring, kick, call, err, addresses, features, size, buffers, next: 0, done: 0 }
    }

    /// The device's side of the ring.
    pub fn queue(&self) -> Box<Queue> {
        self.queue_in(self.memory.table())
    }

    pub fn queue_in(&self, table: &MemoryTable) -> Box<Queue> {
        let setup = RingSetup {
            size: self.size,
            features: self.features,
            table,
            addresses: self.addresses,
            base: self.driver.base_for_restart(),
            inflight: None,
            log: None,
            used_log_addr: None,
        };
        let mut queue = Queue::new(setup).unwrap();
        queue.set_call(Some(self.call.try_clone().unwrap()));
        queue.set_err(Some(self.err.try_clone().unwrap()));
        queue.set_kick(Some(owned(&self.kick)));
        Box::new(queue)
    }

    /// Starts and enables the ring as queue 0 of a device.
    pub fn start(&self, device: &mut Attached<Say>) {
        self.start_as(device, 0);
    }

    pub fn start_as(&self, device: &mut Attached<Say>, index: u16) {
        device.set_memory(self.memory.table().clone()).unwrap();
        device.start_queue(index, self.queue()).unwrap();
        let _spurious = self.call.read();
        device.enable_queue(index, true).unwrap();
    }

    fn pair(&self, cookie: u32) -> (GuestAddr, GuestAddr) {
        let at = self.buffers.0 + u64::from(cookie % u32::from(self.size)) * u64::from(BUFFER) * 2;
        (GuestAddr(at), GuestAddr(at + u64::from(BUFFER)))
    }

    fn content(cookie: u32) -> u64 {
        u64::from(cookie).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }

    /// Adds one request; not yet published.
    pub fn add(&mut self) {
        let cookie = self.next;
        self.next += 1;
        let (from, to) = self.pair(cookie);
        let len = BUFFER;
        self.memory.slice(from, len as usize).unwrap().write_obj(0, Self::content(cookie)).unwrap();
        self.memory.slice(to, len as usize).unwrap().fill(0);
        self.driver.add(&[Segment { addr: from, len }], &[Segment { addr: to, len }], cookie).unwrap();
    }

    /// Publishes and kicks if that is wanted; whether it was.
    pub fn publish(&mut self) -> bool {
        let wanted = self.driver.publish();
        if wanted {
            self.kick.write(1).unwrap();
        }
        wanted
    }

    /// Takes and checks what has completed.
    pub fn reap(&mut self) -> u32 {
        let mut n = 0;
        while let Some(used) = self.driver.pop() {
            let (_, to) = self.pair(used.cookie);
            let got: u64 = self.memory.slice(to, BUFFER as usize).unwrap().read_obj(0).unwrap();
            assert_eq!((used.len, got), (BUFFER, Self::content(used.cookie)));
            n += 1;
        }
        self.done += n;
        n
    }

    /// Requests published or added and not completed.
    pub fn in_flight(&self) -> u32 {
        self.next - self.done
    }

    /// Sleeps until everything has completed, by interrupts alone.
    pub fn finish(&mut self) {
        self.reap();
        while self.in_flight() > 0 {
            if !self.driver.arm() {
                assert!(
                    wait_for(&self.call, Duration::from_secs(10)),
                    "no interrupt for {} requests",
                    self.in_flight()
                );
            }
            self.reap();
        }
    }

    /// Spins until everything has completed.
    pub fn spin(&mut self) {
        let start = Instant::now();
        while self.in_flight() > 0 {
            self.reap();
            assert!(start.elapsed() < Duration::from_secs(20), "{} requests lost", self.in_flight());
            std::thread::yield_now();
        }
    }

    /// One request there and back.
    pub fn round_trip(&mut self) {
        self.add();
        self.publish();
        self.finish();
    }
}

fn owned(event: &EventFd) -> OwnedFd {
    let copy = event.try_clone().unwrap();
    // SAFETY: the copy's descriptor is given away, and the copy forgotten.
    let fd = unsafe { OwnedFd::from_raw_fd(copy.as_raw_fd()) };
    std::mem::forget(copy);
    fd
}

/// CPU ticks (user and system) of the threads of this process whose names begin like this.
pub fn ticks_of(name: &str) -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (head, tail) = stat.rsplit_once(')').unwrap();
        if head.split_once('(').unwrap().1.starts_with(name) {
            let fields: Vec<_> = tail.split_whitespace().collect();
            // Fields 14 and 15 of proc(5): utime and stime.
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    ticks
}
