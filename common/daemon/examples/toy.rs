//! The smallest whole daemon: devices that negotiate and never complete a request. It shows what a device crate has to
//! write, and the crate's tests run it as a process of its own.
//!
//! ```text
//! toy --socket-path /tmp/toy.sock --control-socket /tmp/toy.ctl
//! vhostctl --socket /tmp/toy.ctl status
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use daemon::control::{self, Method, RpcError};
use daemon::{Application, EndpointSpec, Failure, Program, Setup, Supervisor, cli, config, stats};
use memory::{DirtyLog, MemoryTable};
use serde::Deserialize;
use serde_json::{Value, json};
use vhost_user::{Device, Notifier, Transport};
use virtqueue::Queue;
use vmm_sys_util::eventfd::EventFd;

#[path = "toy/probe.rs"]
mod probe;

/// A vhost-user daemon that does nothing, for tests
#[derive(Parser)]
#[command(name = "toy", version)]
struct Args {
    #[command(flatten)]
    common: cli::Common,
    /// Inside the sandbox, try something and exit with 0 if it worked, 3 if it was refused
    #[arg(long, hide = true)]
    probe: Option<String>,
    /// Take this long to drain
    #[arg(long, hide = true, default_value_t = 0)]
    drain_ms: u64,
    /// Fail in this place: start, session
    #[arg(long, hide = true)]
    fail: Option<String>,
    /// Answer the watchdog as a process whose workers hang
    #[arg(long, hide = true)]
    unresponsive: bool,
}

impl AsRef<cli::Common> for Args {
    fn as_ref(&self) -> &cli::Common {
        &self.common
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    daemon: config::Settings,
    disk: Vec<Disk>,
}

impl AsRef<config::Settings> for Config {
    fn as_ref(&self) -> &config::Settings {
        &self.daemon
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Disk {
    id: String,
    socket: Option<PathBuf>,
    fd_name: Option<String>,
}

impl Disk {
    fn spec(&self) -> EndpointSpec {
        EndpointSpec { socket_path: self.socket.clone(), fd_name: self.fd_name.clone(), ..Default::default() }
    }
}

struct Toy {
    opened: Mutex<Vec<(String, Transport)>>,
    served: Mutex<BTreeMap<String, Notifier>>,
    supervisor: OnceLock<Arc<Supervisor>>,
    started: Instant,
    drain: Duration,
    responsive: bool,
    probe: Option<String>,
    fail: Option<String>,
}

impl Application for Toy {
    type Args = Args;
    type Config = Config;
    const PROGRAM: Program =
        Program { name: "toy", version: env!("CARGO_PKG_VERSION"), kind: "block", features: &["read-only"] };

    fn open(args: Args, config: Config, setup: &mut Setup) -> Result<Self, Failure> {
        let mut opened = Vec::new();
        for disk in &config.disk {
            opened.push((disk.id.clone(), setup.endpoint_of(&disk.spec())?));
        }
        if opened.is_empty() && args.probe.is_none() {
            opened.push(("disk0".to_owned(), setup.endpoint()?));
        }
        Ok(Self {
            opened: Mutex::new(opened),
            served: Mutex::default(),
            supervisor: OnceLock::new(),
            started: Instant::now(),
            drain: Duration::from_millis(args.drain_ms),
            responsive: !args.unresponsive,
            probe: args.probe,
            fail: args.fail,
        })
    }

    fn start(self: &Arc<Self>, supervisor: &Arc<Supervisor>) -> Result<(), Failure> {
        if let Some(what) = &self.probe {
            probe::run(what);
        }
        let _ = self.supervisor.set(Arc::clone(supervisor));
        let opened = std::mem::take(&mut *lock(&self.opened));
        opened.into_iter().try_for_each(|(id, transport)| self.serve(&id, transport))?;
        if self.fail.as_deref() == Some("start") { Err(Failure::runtime("Told to fail")) } else { Ok(()) }
    }

    fn stats(&self) -> stats::Snapshot {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        let devices =
            lock(&self.served).iter().map(|(id, notifier)| counters(id, notifier, elapsed)).collect();
        let worker =
            stats::Worker { name: "worker-0".into(), poll_success: elapsed, parks: 7, ..Default::default() };
        stats::Snapshot { devices, workers: vec![worker], ..Default::default() }
    }

    fn responsive(&self, _within: Duration) -> bool {
        self.responsive
    }

    fn drain(&self, deadline: Instant) -> bool {
        // A dead disk would keep a worker beyond any deadline, and so does this.
        std::thread::sleep(self.drain);
        Instant::now() <= deadline
    }
}

/// Requests as of an imaginary guest: one read a millisecond.
fn counters(id: &str, notifier: &Notifier, elapsed: u64) -> stats::Device {
    let latency_ns =
        stats::Histogram { buckets: [vec![0; 14], vec![elapsed]].concat(), sum: elapsed * 10_000 };
    let read = stats::Operation { requests: elapsed, bytes: elapsed * 4096, errors: 0, latency_ns };
    stats::Device {
        name: id.to_owned(),
        kind: "block".into(),
        connected: notifier.status().connected,
        operations: BTreeMap::from([("read".to_owned(), read)]),
        kicks: elapsed / 2,
        interrupts: elapsed / 4,
        ..Default::default()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    disk: String,
}

const METHODS: &[Method] = &[
    Method { name: "disk.add", params: "{id: string, socket: string}", help: "Adds a disk." },
    Method { name: "disk.remove", params: "{disk: string}", help: "Removes a disk." },
    Method { name: "disk.resize", params: "{disk: string, size?: integer}", help: "Says what it was asked." },
    Method { name: "disk.limit", params: "{disk: string, ...}", help: "Says what it was asked." },
    Method { name: "poll.set", params: "{poll: string}", help: "Says what it was asked." },
    Method { name: "toy.sleep", params: "{ms: integer}", help: "Blocks its client." },
];

impl control::Handler for Toy {
    fn methods(&self) -> &'static [Method] {
        METHODS
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        match method {
            "disk.add" => {
                let disk: Disk = control::params(params)?;
                let refused = |failure: Failure| RpcError::refused(failure.message());
                let transport = disk.spec().open().map_err(refused)?;
                self.serve(&disk.id, transport).map_err(refused)?;
                Ok(json!({}))
            }
            "disk.remove" => {
                let Which { disk } = control::params(params)?;
                let sessions =
                    self.supervisor.get().ok_or_else(|| RpcError::internal("not started"))?.sessions();
                sessions
                    .stop(&disk, Instant::now() + Duration::from_secs(5))
                    .map_err(|error| RpcError::refused(error.to_string()))?;
                lock(&self.served).remove(&disk);
                Ok(json!({}))
            }
            "toy.sleep" => {
                std::thread::sleep(Duration::from_millis(params["ms"].as_u64().unwrap_or(0)));
                Ok(json!({}))
            }
            "disk.resize" | "disk.limit" | "poll.set" => Ok(json!({"asked": params})),
            other => Err(RpcError::method_not_found(other)),
        }
    }
}

impl Toy {
    fn serve(&self, id: &str, transport: Transport) -> Result<(), Failure> {
        let supervisor = self.supervisor.get().ok_or_else(|| Failure::runtime("Not started"))?;
        let notifier = supervisor.serve(
            id,
            transport,
            Box::new(Rings { fails: self.fail.as_deref() == Some("session"), ..Default::default() }),
        )?;
        lock(&self.served).insert(id.to_owned(), notifier);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that takes rings and never looks at them.
#[derive(Default)]
struct Rings {
    fails: bool,
    queues: BTreeMap<u16, Box<Queue>>,
}

impl Device for Rings {
    fn max_queues(&self) -> u16 {
        1
    }
    fn features(&self) -> u64 {
        1 << 32
    }
    fn read_config(&self, _offset: usize, buf: &mut [u8]) {
        buf.fill(0);
    }
    fn negotiated(&mut self, _features: u64) {}
    fn set_memory(&mut self, _table: Arc<MemoryTable>) {}
    fn set_log(&mut self, _log: Option<Arc<DirtyLog>>) {}
    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        self.queues.insert(index, queue);
    }
    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        self.queues.remove(&index)
    }
    fn set_call(&mut self, _index: u16, _call: Option<EventFd>) {}
    fn set_err(&mut self, _index: u16, _err: Option<EventFd>) {}
    fn enable_queue(&mut self, _index: u16, _enabled: bool) {}
    fn disconnected(&mut self) {
        assert!(!self.fails, "told to fail");
        self.queues.clear();
    }
}

fn main() -> ExitCode {
    daemon::main::<Toy>()
}
