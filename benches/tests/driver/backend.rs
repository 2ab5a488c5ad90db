//! A vhost-user backend in this process: a thread per queue that hands each request to a model of a device.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use memory::{DirtyLog, MemoryTable, MemoryView};
use vhost_user::message::protocol;
use vhost_user::{Device, Endpoint, Notifier, Options, Refused, serve};
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures};
use vmm_sys_util::eventfd::EventFd;

/// What a device does with its requests. Shared by the threads of its queues; survives the backend, like a file survives a
/// daemon.
pub trait Model: Send + Sync + 'static {
    /// Queues.
    fn queues(&self) -> u16;

    /// Features without those of the rings.
    fn features(&self) -> u64;

    /// Protocol features on top of the session's own.
    fn protocol_features(&self) -> u64;

    /// Configuration space.
    fn config(&self) -> Vec<u8>;

    /// Does a request; returns how many bytes it wrote, or `None` when it is never to be completed.
    fn execute(&self, index: u16, chain: &mut Chain, view: &MemoryView) -> Option<u32>;

    /// Virtio features were chosen.
    fn negotiated(&self, _features: u64) {}

    /// CREATE_CRYPTO_SESSION.
    fn create_session(&self, _description: &[u8]) -> Result<u64, Refused> {
        Err(Refused("not supported"))
    }

    /// CLOSE_CRYPTO_SESSION.
    fn close_session(&self, _id: u64) -> Result<(), Refused> {
        Err(Refused("not supported"))
    }
}

/// A running backend; dropping it closes the connection and loses what is in flight, like a kill.
pub struct Backend {
    notifier: Notifier,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub fn start(socket: &Path, model: &Arc<impl Model>) -> Self {
        let (notifier, handle) = Notifier::new().unwrap();
        let transport = Endpoint::Listen(socket.to_owned()).open(0o600).unwrap();
        let mut device = Threads {
            model: Arc::clone(model),
            table: MemoryTable::empty(),
            rings: BTreeMap::new(),
            messages: false,
        };
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

struct Threads<M> {
    model: Arc<M>,
    table: Arc<MemoryTable>,
    rings: BTreeMap<u16, Worker>,
    /// Sessions come by messages: as from QEMU's cryptodev, which tells nothing of the driver and enables no ring.
    messages: bool,
}

struct Worker {
    stop: Arc<AtomicBool>,
    enabled: Arc<AtomicBool>,
    thread: JoinHandle<Box<Queue>>,
}

impl<M: Model> Threads<M> {
    fn start(&mut self, index: u16, queue: Box<Queue>, enabled: bool) {
        let (stop, enabled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(enabled)));
        let server = Server {
            queue,
            view: MemoryView::new(Arc::clone(&self.table)),
            index,
            model: Arc::clone(&self.model),
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

impl<M: Model> Device for Threads<M> {
    fn max_queues(&self) -> u16 {
        self.model.queues()
    }

    fn features(&self) -> u64 {
        self.model.features() | RingFeatures::ALL
    }

    fn protocol_features(&self) -> u64 {
        self.model.protocol_features()
    }

    fn rings_start_enabled(&self) -> bool {
        self.messages
    }

    fn driver_features_unknown(&self) -> bool {
        self.messages
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        let bytes = self.model.config();
        for (n, byte) in buf.iter_mut().enumerate() {
            *byte = bytes.get(offset + n).copied().unwrap_or(0);
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.model.negotiated(features);
    }

    fn protocol_negotiated(&mut self, features: u64) {
        self.messages = features & (protocol::CRYPTO_SESSION | protocol::CONFIG) == protocol::CRYPTO_SESSION;
    }

    fn create_crypto_session(&mut self, description: &[u8]) -> Result<u64, Refused> {
        self.model.create_session(description)
    }

    fn close_crypto_session(&mut self, id: u64) -> Result<(), Refused> {
        self.model.close_session(id)
    }

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
struct Server<M> {
    index: u16,
    queue: Box<Queue>,
    view: MemoryView,
    model: Arc<M>,
    stop: Arc<AtomicBool>,
    enabled: Arc<AtomicBool>,
}

impl<M: Model> Server<M> {
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
            if let Some(written) = self.model.execute(self.index, chain, &self.view) {
                self.queue.ring.complete(&self.view, chain, written);
            }
        }
        count
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
