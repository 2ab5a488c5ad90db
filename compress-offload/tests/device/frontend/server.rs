//! The device on its socket, with workers of its own, in this process.

use compress_offload::device::CompressDevice;
use compress_offload::engine::{Choice, Engines};
use compress_offload::options::{DeviceOptions, Limits};
use compress_offload::service::{Message, ServiceConfig};
use compress_offload::unit::Unit;
use offload::flush::{Mode, Policy, Thresholds};
use runtime::attach::WorkerPool;
use runtime::policy::PollPolicy;
use runtime::stats::{QueueSnapshot, QueueStats};
use runtime::worker::{Worker, WorkerConfig};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use vhost_user::{Endpoint, Notifier, Options, serve};

/// A device and how it is served.
#[derive(Clone, Copy)]
pub struct Setup {
    pub queues: u16,
    pub workers: usize,
    pub mode: Mode,
    pub inline_bytes: u32,
    pub engine: Choice,
    pub zero_copy: bool,
    pub limits: Limits,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            queues: 1,
            workers: 1,
            mode: Mode::Interrupt,
            inline_bytes: 1024,
            engine: Choice::default(),
            zero_copy: false,
            limits: Limits::default(),
        }
    }
}

/// The device on its socket. Ends with the test.
pub struct Server {
    pub unit: Arc<Unit>,
    pub notifier: Notifier,
    path: PathBuf,
    /// What the runtime counts for each queue.
    counters: Vec<Arc<QueueStats>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    workers: Option<WorkerPool<Message>>,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn limited(limits: Limits) -> Self {
        Self::with(Setup { limits, ..Setup::default() })
    }

    pub fn with(setup: Setup) -> Self {
        Self::with_engines(setup, move || Engines::new(setup.engine, compress_offload::engine::Verify::Off))
    }

    /// With engines of the test's own, on each worker.
    pub fn with_engines(setup: Setup, engines: impl Fn() -> Engines + Clone + Send + 'static) -> Self {
        let thresholds = Thresholds { inline_bytes: setup.inline_bytes, ..Thresholds::default() };
        let policy = Policy { mode: setup.mode, thresholds };
        let configs = ServiceConfig::all(setup.workers, policy, setup.engine).unwrap();
        let worker = |(index, config): (usize, ServiceConfig)| {
            let poll = setup.mode.poll_policy(PollPolicy::Off);
            let worker = WorkerConfig { name: format!("w{index}"), poll, ..Default::default() };
            let engines = engines.clone();
            Worker::spawn(worker, move |cx| config.start_with(engines(), cx)).unwrap()
        };
        let workers = WorkerPool::new(configs.into_iter().enumerate().map(worker).collect());
        let options = DeviceOptions {
            queues: setup.queues,
            queue_size: 1024,
            zero_copy: setup.zero_copy,
            limits: setup.limits,
            ..DeviceOptions::new("test")
        };
        let unit = Arc::new(Unit::new(&options));
        let attached = workers.attach(setup.queues);
        let counters = attached.stats().cloned().collect();
        let mut device = CompressDevice::new(unit.clone(), attached).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let transport = Endpoint::Listen(path.clone()).open(0o600).unwrap();
        let (notifier, handle) = Notifier::new().unwrap();
        let thread = std::thread::spawn(move || serve(transport, &mut device, handle, &Options::default()));
        let (thread, workers) = (Some(thread), Some(workers));
        Self { unit, notifier, path, counters, thread, workers, _dir: dir }
    }

    pub fn stream(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    pub fn queue(&self, index: usize) -> QueueSnapshot {
        self.counters[index].snapshot()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.notifier.shutdown();
        let served = self.thread.take().map(JoinHandle::join);
        let failures = self.workers.take().map(WorkerPool::join).unwrap_or_default();
        if !std::thread::panicking() {
            served.unwrap().expect("the session thread must not panic").expect("serve ends without an error");
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(self.unit.in_flight_bytes(), 0, "nothing is in flight any more");
        }
    }
}
