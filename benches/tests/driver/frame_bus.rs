//! A vhost-user-net backend in this process: a thread that carries frames between its ports, able to lie on demand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use benches::net::wire::{HEADER, NUM_BUFFERS, feature};
use memory::{DirtyLog, MemoryTable, MemoryView};
use vhost_user::message::features;
use vhost_user::{Device, Endpoint, Notifier, Options, serve};
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures};
use vmm_sys_util::eventfd::EventFd;

/// Ways of the backend to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lie {
    None,
    /// Every 50th frame is dropped.
    Drop,
    /// Every 50th frame is delivered twice.
    Repeat,
    /// Every 50th frame changes places with the one after it.
    Swap,
    /// One byte of every 50th frame is flipped.
    Corrupt,
    /// Every 50th frame claims a buffer too many.
    Buffers,
}

/// All ports and the thread that serves them; dropping it closes the connections, like a kill.
pub struct Backend {
    notifiers: Vec<Notifier>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Backend {
    /// One port sends its frames back to their sender, two exchange them.
    pub fn start(sockets: &[PathBuf], lie: Lie) -> Self {
        Self::at(sockets, lie, Endpoint::Listen)
    }

    /// The same for a driver that listens.
    pub fn connect(sockets: &[PathBuf]) -> Self {
        Self::at(sockets, Lie::None, Endpoint::Connect)
    }

    fn at(sockets: &[PathBuf], lie: Lie, endpoint: impl Fn(PathBuf) -> Endpoint) -> Self {
        let bus = Arc::new(Bus {
            rings: Mutex::new(BTreeMap::new()),
            ports: sockets.len(),
            lie: AtomicU32::new(lie as u32),
            carried: AtomicU64::new(0),
        });
        let (mut notifiers, mut threads) = (Vec::new(), Vec::new());
        for (port, socket) in sockets.iter().enumerate() {
            let (notifier, handle) = Notifier::new().unwrap();
            let transport = endpoint(socket.clone()).open(0o600).unwrap();
            let mut device = Port { port, bus: Arc::clone(&bus), table: MemoryTable::empty() };
            notifiers.push(notifier);
            threads.push(std::thread::spawn(move || {
                serve(transport, &mut device, handle, &Options::default()).unwrap()
            }));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                if bus.round() == 0 {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
        }));
        Self { notifiers, threads, stop }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.notifiers.iter().for_each(Notifier::shutdown);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Bus {
    /// By port and index.
    rings: Mutex<BTreeMap<(usize, u16), Ring>>,
    ports: usize,
    lie: AtomicU32,
    carried: AtomicU64,
}

struct Ring {
    queue: Box<Queue>,
    view: MemoryView,
    enabled: bool,
    /// Receive chains taken for a frame that needs more of them.
    spare: Vec<Chain>,
}

impl Bus {
    fn rings(&self) -> MutexGuard<'_, BTreeMap<(usize, u16), Ring>> {
        self.rings.lock().unwrap()
    }

    fn lies(&self, lie: Lie) -> bool {
        self.lie.load(Ordering::Relaxed) == lie as u32 && self.carried.load(Ordering::Relaxed) % 50 == 49
    }

    /// Takes a burst from every transmit ring and delivers it; returns how many frames that were.
    fn round(&self) -> usize {
        let mut rings = self.rings();
        let senders: Vec<_> = rings.keys().copied().filter(|(_, index)| index % 2 == 1).collect();
        let mut carried = 0;
        for (port, index) in senders {
            let frames = rings.get_mut(&(port, index)).map(Ring::take).unwrap_or_default();
            carried += frames.len();
            let to = if self.ports == 2 { 1 - port } else { port };
            if let Some(receiver) = rings.get_mut(&(to, index - 1)) {
                self.deliver(receiver, frames);
                receiver.queue.publish();
            }
            if let Some(sender) = rings.get_mut(&(port, index)) {
                sender.queue.publish();
            }
        }
        carried
    }

    fn deliver(&self, receiver: &mut Ring, mut frames: Vec<Vec<u8>>) {
        if self.lie.load(Ordering::Relaxed) == Lie::Swap as u32 && frames.len() > 1 {
            frames.swap(0, 1);
        }
        for mut frame in frames {
            self.carried.fetch_add(1, Ordering::Relaxed);
            if self.lies(Lie::Drop) {
                continue;
            }
            if self.lies(Lie::Corrupt) {
                let last = frame.len() - 1;
                frame[last] ^= 1;
            }
            for _ in 0..if self.lies(Lie::Repeat) { 2 } else { 1 } {
                receiver.put(&mut frame, self.lies(Lie::Buffers));
            }
        }
    }
}

impl Ring {
    fn take(&mut self) -> Vec<Vec<u8>> {
        if !self.enabled {
            return Vec::new();
        }
        self.queue.ring.suppress();
        let (mut frames, mut chain) = (Vec::new(), Chain::new());
        for _ in 0..self.queue.ring.fetch(64) {
            self.queue.ring.next(&self.view, &mut chain).unwrap();
            let mut frame = vec![0; chain.readable_len() as usize];
            chain.read_prefix(&self.view, &mut frame).unwrap();
            self.queue.ring.complete(&self.view, &chain, 0);
            frames.push(frame);
        }
        frames
    }

    /// Writes a frame into as many buffers as it needs; without enough of them it is dropped.
    fn put(&mut self, frame: &mut [u8], one_too_many: bool) {
        if !self.enabled {
            return;
        }
        self.queue.ring.suppress();
        let room = |chains: &[Chain]| chains.iter().map(|chain| chain.writable_len() as usize).sum::<usize>();
        while room(&self.spare) < frame.len() {
            if self.queue.ring.fetch(1) == 0 {
                return;
            }
            let mut chain = Chain::new();
            self.queue.ring.next(&self.view, &mut chain).unwrap();
            self.spare.push(chain);
        }
        let buffers = self.spare.len() as u16 + u16::from(one_too_many) * 1000;
        frame[NUM_BUFFERS..HEADER].copy_from_slice(&buffers.to_le_bytes());
        let mut rest = &frame[..];
        for chain in self.spare.drain(..) {
            let (piece, after) = rest.split_at(rest.len().min(chain.writable_len() as usize));
            chain.write_at(&self.view, 0, piece).unwrap();
            self.queue.ring.complete(&self.view, &chain, piece.len() as u32);
            rest = after;
        }
    }
}

struct Port {
    port: usize,
    bus: Arc<Bus>,
    table: Arc<MemoryTable>,
}

impl Port {
    fn change(&self, index: u16, change: impl FnOnce(&mut Ring)) {
        if let Some(ring) = self.bus.rings().get_mut(&(self.port, index)) {
            change(ring);
        }
    }
}

impl Device for Port {
    fn max_queues(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        let tso = feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;
        features::VERSION_1 | feature::MRG_RXBUF | feature::MQ | tso | RingFeatures::ALL
    }

    fn read_config(&self, _offset: usize, buf: &mut [u8]) {
        buf.fill(0);
    }

    fn negotiated(&mut self, _features: u64) {}

    fn set_memory(&mut self, table: Arc<MemoryTable>) {
        self.table = Arc::clone(&table);
        for ((port, _), ring) in self.bus.rings().iter_mut() {
            if *port == self.port {
                ring.queue.rebuild_after_memory_change(&table).unwrap();
                ring.view = MemoryView::new(Arc::clone(&table));
            }
        }
    }

    fn set_log(&mut self, _log: Option<Arc<DirtyLog>>) {}

    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        let view = MemoryView::new(Arc::clone(&self.table));
        let ring = Ring { queue, view, enabled: false, spare: Vec::new() };
        self.bus.rings().insert((self.port, index), ring);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        self.bus.rings().remove(&(self.port, index)).map(|ring| ring.queue)
    }

    fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        self.change(index, |ring| ring.queue.set_call(call));
    }

    fn set_err(&mut self, index: u16, err: Option<EventFd>) {
        self.change(index, |ring| ring.queue.set_err(err));
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) {
        self.change(index, |ring| ring.enabled = enabled);
    }

    fn disconnected(&mut self) {
        self.bus.rings().retain(|(port, _), _| *port != self.port);
    }
}
