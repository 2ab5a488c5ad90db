//! A compression device for tests, which does as it is told: honestly or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use compress_protocol::{
    Config, HEADER_LEN, Header, Levels, Operation, RESPONSE_LEN, Request as Wire, Response, Status, feature,
};
use guest_driver::compress::{Client, Options, Place, Request};
use memory::{DirtyLog, MemoryTable, MemoryView};
use vhost_user::message::{features, protocol};
use vhost_user::{Device, Endpoint, Notifier, serve};
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures};
use vmm_sys_util::eventfd::EventFd;

/// What the device makes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// What they ask for.
    Honest,
    /// This status.
    Answers(Status),
    /// A response that claims more than there was room for.
    Boasts,
    /// Nothing, until the mood changes.
    Sleeps,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<u16, Box<Queue>>,
    table: Option<Arc<MemoryTable>>,
    features: u64,
    /// Taken and not answered.
    asleep: Vec<(u16, Chain)>,
}

/// The device and the thread that serves it.
pub struct Daemon {
    pub socket: PathBuf,
    pub served: Arc<AtomicU64>,
    pub negotiated: Arc<AtomicU64>,
    mood: Arc<Mutex<Mood>>,
    notifier: Option<Notifier>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Daemon {
    /// Serves `vcomp.sock` in a directory.
    pub fn start(dir: &Path, offers: u64, config: Config) -> Self {
        let socket = dir.join("vcomp.sock");
        let _ = std::fs::remove_file(&socket);
        let state = Arc::new(Mutex::new(State::default()));
        let mood = Arc::new(Mutex::new(Mood::Honest));
        let (served, negotiated) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (notifier, handle) = Notifier::new().unwrap();
        let transport = Endpoint::Listen(socket.clone()).open(0o600).unwrap();
        let session = std::thread::spawn({
            let mut device =
                Compressor { state: Arc::clone(&state), offers, config, negotiated: Arc::clone(&negotiated) };
            move || serve(transport, &mut device, handle, &vhost_user::Options::default()).unwrap()
        });
        let worker = std::thread::spawn({
            let (stop, mood, served) = (Arc::clone(&stop), Arc::clone(&mood), Arc::clone(&served));
            move || {
                let mut engines = Client::open(Options { place: Place::Nowhere, ..Options::default() });
                while !stop.load(Ordering::Relaxed) {
                    let mood = *lock(&mood);
                    let count = lock(&state).serve(mood, &config, &mut engines);
                    served.fetch_add(count, Ordering::Relaxed);
                    if count == 0 {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
            }
        });
        let threads = vec![session, worker];
        Self { socket, served, negotiated, mood, notifier: Some(notifier), threads, stop }
    }

    /// From now on it does this.
    pub fn mood(&self, mood: Mood) {
        *lock(&self.mood) = mood;
    }

    /// Options of a client that finds it.
    pub fn options(&self) -> Options {
        Options { place: Place::Socket(self.socket.clone()), small: 0, ..Options::default() }
    }

    /// Requests so far.
    pub fn count(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(notifier) = &self.notifier {
            notifier.shutdown();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that can do everything but streams.
pub fn config() -> Config {
    let levels = |min, max| Levels { min, max };
    Config {
        num_queues: 2,
        features: feature::CHECKSUM | feature::VERIFY,
        compress_formats: 0x7e,
        decompress_formats: 0x7e,
        checksums: 0x1e,
        max_src: 1 << 20,
        max_dst: 1 << 20,
        max_segments: 1024,
        batch: 16,
        levels: [levels(1, 12), levels(1, 12), levels(1, 12), levels(-7, 19), levels(1, 12), levels(1, 12)],
        ..Config::default()
    }
}

/// Every ring feature, and those of the device.
pub const OFFERS: u64 = features::VERSION_1 | RingFeatures::ALL | feature::CHECKSUM | feature::VERIFY;

impl State {
    fn serve(&mut self, mood: Mood, config: &Config, engines: &mut Client) -> u64 {
        let Some(table) = self.table.clone() else { return 0 };
        let view = MemoryView::new(table);
        let mut count = 0;
        if mood != Mood::Sleeps {
            for (index, chain) in std::mem::take(&mut self.asleep) {
                if let Some(queue) = self.queues.get_mut(&index) {
                    answer(queue, &chain, &view, mood, config, self.features, engines);
                    queue.publish();
                    count += 1;
                }
            }
        }
        for (index, queue) in &mut self.queues {
            while queue.ring.fetch(1) > 0 {
                let mut chain = Chain::new();
                if queue.ring.next(&view, &mut chain).is_err() {
                    break;
                }
                if mood == Mood::Sleeps {
                    self.asleep.push((*index, chain));
                    continue;
                }
                answer(queue, &chain, &view, mood, config, self.features, engines);
                queue.publish();
                count += 1;
            }
        }
        count
    }
}

fn answer(
    queue: &mut Queue,
    chain: &Chain,
    view: &MemoryView,
    mood: Mood,
    config: &Config,
    features: u64,
    engines: &mut Client,
) {
    let mut header = [0; HEADER_LEN];
    chain.read_at(view, 0, &mut header).unwrap();
    let header = Header::decode(&header);
    let wire = Wire::parse(&header, config, features);
    let plain = matches!(&wire, Ok(Wire { operation: Operation::GetConfig, .. }));
    let response = match (mood, wire) {
        (Mood::Answers(status), _) if !plain => Response::bare(status, header.user_tag),
        (Mood::Boasts, Ok(_)) if !plain => {
            Response { produced: header.dst_len + 1, ..Response::bare(Status::Ok, header.user_tag) }
        }
        (_, Ok(wire)) => run(&wire, chain, view, config, engines),
        (_, Err(status)) => Response::bare(status, header.user_tag),
    };
    let at = chain.writable_len() as usize - RESPONSE_LEN;
    chain.write_at(view, at, &response.encode()).unwrap();
    queue.ring.complete(view, chain, chain.writable_len() as u32);
}

fn run(wire: &Wire, chain: &Chain, view: &MemoryView, config: &Config, engines: &mut Client) -> Response {
    assert!(wire.fits(chain.readable_len() - HEADER_LEN as u64, chain.writable_len() - RESPONSE_LEN as u64));
    let mut source = vec![0; wire.src_len as usize];
    chain.read_at(view, HEADER_LEN, &mut source).unwrap();
    let request = match wire.operation {
        Operation::GetConfig => {
            chain.write_at(view, 0, &config.encode()).unwrap();
            return Response { produced: 64, ..Response::bare(Status::Ok, wire.user_tag) };
        }
        Operation::Compress { format, level, .. } => Request::compress(format, &source).level(level),
        Operation::Decompress { format } => Request::decompress(format, &source, 0),
        Operation::Checksum => Request::sum(wire.checksum, &source),
        // Whose requests have to be answered by a mood.
        Operation::Open { .. } => {
            return Response { checksum: 7, ..Response::bare(Status::Ok, wire.user_tag) };
        }
        _ => return Response::bare(Status::NotSupported, wire.user_tag),
    };
    let done = engines.run(&request.room(wire.dst_len as usize).checksum(wire.checksum));
    chain.write_at(view, 0, &done.output).unwrap();
    Response {
        consumed: done.consumed as u32,
        produced: done.output.len() as u32,
        checksum: done.checksum,
        ..Response::bare(done.status, wire.user_tag)
    }
}

struct Compressor {
    state: Arc<Mutex<State>>,
    offers: u64,
    config: Config,
    negotiated: Arc<AtomicU64>,
}

impl Device for Compressor {
    fn max_queues(&self) -> u16 {
        self.config.num_queues
    }

    fn features(&self) -> u64 {
        self.offers
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        self.config.read(offset, buf);
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated.store(features, Ordering::Relaxed);
        lock(&self.state).features = features & feature::ALL;
    }

    fn set_memory(&mut self, table: Arc<MemoryTable>) {
        lock(&self.state).table = Some(table);
    }

    fn set_log(&mut self, _log: Option<Arc<DirtyLog>>) {}

    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        lock(&self.state).queues.insert(index, queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        let mut state = lock(&self.state);
        state.asleep.retain(|(queue, _)| *queue != index);
        state.queues.remove(&index)
    }

    fn set_call(&mut self, _index: u16, _call: Option<EventFd>) {}

    fn set_err(&mut self, _index: u16, _err: Option<EventFd>) {}

    fn enable_queue(&mut self, _index: u16, _enabled: bool) {}

    fn disconnected(&mut self) {
        *lock(&self.state) = State::default();
    }
}

/// Text that compresses, different for each seed.
pub fn text(seed: usize, len: usize) -> Vec<u8> {
    let words = ["offload", "queue", "ring", "descriptor", "buffer", "device", "guest", "of", "the", "a"];
    let mut state = seed as u64 * 0x9e37_79b9 + 1;
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend(words[(state >> 33) as usize % words.len()].bytes());
        text.push(b' ');
    }
    text.truncate(len);
    text
}
