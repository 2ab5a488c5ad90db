//! The process: disks from command line and configuration file, workers, sessions, and what the control socket
//! can do with them.

use crate::backend::OpenError;
use crate::cli::{Args, Config};
use crate::config::SECTOR;
use crate::device::BlkDevice;
use crate::disk::Disk;
use crate::service::{BlkService, Message};
use crate::sizes::SizeWatch;
use crate::spec::DiskSpec;
use crate::{control, qemu, report};
use daemon::control::RpcError;
use daemon::device::{Devices, Spec};
use daemon::sandbox::Confinement;
use daemon::workers::Workers;
use daemon::{Application, EndpointSpec, Failure, Program, Setup, Supervisor};
use runtime::io::IoConfig;
use runtime::rings::Reply;
use runtime::stats::QueueStats;
use runtime::worker::WorkerHandle;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vhost_user::{Notifier, Transport};

/// A disk that is being served.
pub struct Served {
    /// The disk.
    pub disk: Arc<Disk>,
    /// Its number, as workers know it.
    pub device: u32,
    /// Reaches its session.
    pub notifier: Notifier,
    /// Counters that the runtime keeps for each queue.
    pub queues: Vec<Arc<QueueStats>>,
    /// The workers that have its queues.
    pub workers: Vec<WorkerHandle<Message>>,
}

/// A disk that is open, with the socket it will be served on.
struct Opened {
    disk: Arc<Disk>,
    transport: Transport,
    endpoint: EndpointSpec,
    /// What it counts for when the number of workers is not given: queues that somebody asked for, not those that are
    /// merely offered.
    weight: u16,
}

/// The block daemon.
pub struct App {
    workers: Workers<Message>,
    confinement: Confinement,
    register_memory: bool,
    /// Opened before the sandbox closed, served from `start` on.
    opened: Mutex<Vec<Opened>>,
    served: Devices<Served>,
    sizes: Mutex<Option<SizeWatch>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// The disks that are served, by name.
    pub fn served(&self) -> Vec<Arc<Served>> {
        self.served.all()
    }

    /// One of them.
    pub fn find(&self, id: &str) -> Result<Arc<Served>, RpcError> {
        self.served.find(id)
    }

    /// The workers.
    pub fn workers(&self) -> &Workers<Message> {
        &self.workers
    }

    /// Adds a disk to the running process.
    pub fn add(&self, spec: &DiskSpec) -> Result<(), Failure> {
        let _change = self.served.changing();
        let options = spec.options().map_err(Failure::usage)?;
        self.served.check_new(&options.id)?;
        let disk = Disk::open(options).map_err(|error| self.explain(error))?;
        let endpoint = spec.endpoint();
        let transport = endpoint.open().map_err(|error| self.confinement.explain_socket(&endpoint, error))?;
        self.serve(Opened { disk: Arc::new(disk), transport, endpoint, weight: 0 })
    }

    /// Why a disk cannot be added: if the sandbox may be the reason, with what it leaves open.
    fn explain(&self, error: OpenError) -> Failure {
        let denied = match &error {
            OpenError::Open { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(path.clone())
            }
            _ => None,
        };
        let failure = Failure::usage(error);
        match denied {
            Some(path) => self.confinement.explain_file(&path, failure),
            None => failure,
        }
    }

    /// Ends a disk: its session is closed, its I/O finished, its file closed.
    pub fn remove(&self, id: &str) -> Result<(), RpcError> {
        self.served.remove(id, || Ok(()), || Ok(()))
    }

    /// Tells the guests of files that have grown. Always true: the watch goes on.
    fn take_growth(&self) -> bool {
        for served in self.served() {
            if served.disk.in_use() && served.disk.take_growth() {
                tracing::info!(
                    disk = served.disk.id(),
                    bytes = served.disk.capacity() * SECTOR,
                    "The file has grown"
                );
                served.notifier.config_changed();
            }
        }
        true
    }

    fn serve(&self, Opened { disk, transport, endpoint, .. }: Opened) -> Result<(), Failure> {
        let supervisor = self.served.supervisor()?;
        let attached = self.workers.pool(|pool| pool.attach(disk.options().num_queues))?;
        let (device, workers) = (attached.device(), attached.workers().to_vec());
        let queues = attached.stats().cloned().collect();
        let id = disk.id().to_owned();
        let session = BlkDevice::new(disk.clone(), attached).map_err(Failure::runtime)?;
        let notifier = supervisor.serve(&id, transport, Box::new(session))?;
        tracing::info!(
            disk = id,
            source = %disk.options().source,
            bytes = disk.capacity() * SECTOR,
            socket = %endpoint,
            "serving"
        );
        self.served.insert(id, Served { disk, device, notifier, queues, workers });
        Ok(())
    }

    fn start_workers(&self, queues: usize) -> Result<(), Failure> {
        let io = IoConfig { register_memory: self.register_memory, ..self.workers.io() };
        self.workers.start("blk", self.workers.count(queues), io, |_| |_: &mut _| BlkService::new())
    }
}

impl Application for App {
    type Args = Args;
    type Config = Config;

    const PROGRAM: Program = Program {
        name: "vhostd-blk",
        version: env!("CARGO_PKG_VERSION"),
        kind: "block",
        features: &["blk-file", "read-only"],
    };

    fn open(args: Args, config: Config, setup: &mut Setup) -> Result<Self, Failure> {
        let opened = open_disks(&args, &config, setup)?;
        Ok(Self {
            workers: Workers::new(&setup.common().workers),
            confinement: Confinement::new(&setup.common().sandbox),
            register_memory: args.register_memory || config.register_memory,
            opened: Mutex::new(opened),
            served: Devices::new(DiskSpec::NOUN),
            sizes: Mutex::default(),
        })
    }

    fn start(self: &Arc<Self>, supervisor: &Arc<Supervisor>) -> Result<(), Failure> {
        let opened = std::mem::take(&mut *lock(&self.opened));
        let queues = opened.iter().map(|each| usize::from(each.weight)).sum();
        let first_steps = first_steps(&opened);
        self.start_workers(queues)?;
        self.served.started(supervisor);
        opened.into_iter().try_for_each(|each| self.serve(each))?;
        let app = Arc::downgrade(self);
        let watch = SizeWatch::start(move || app.upgrade().is_some_and(|app| app.take_growth()));
        *lock(&self.sizes) = Some(watch.map_err(Failure::runtime)?);
        daemon::device::qemu::show(&first_steps);
        Ok(())
    }

    fn status(&self) -> Value {
        report::status(self)
    }

    fn stats(&self) -> daemon::stats::Snapshot {
        report::snapshot(&self.served(), &self.workers.stats())
    }

    fn metrics(&self, out: &mut daemon::metrics::Exposition) {
        report::metrics(&self.served(), out);
    }

    fn responsive(&self, within: Duration) -> bool {
        self.workers.responsive(within, |reply: Reply<()>| Message::Ping { reply })
    }

    fn drain(&self, _: Instant) -> bool {
        drop(lock(&self.sizes).take());
        // The sessions have ended, and each waited for its I/O: the workers have nothing left to do.
        self.workers.join()
    }
}

impl daemon::control::Handler for App {
    fn methods(&self) -> &'static [daemon::control::Method] {
        control::METHODS
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        control::call(self, method, params)
    }
}

/// Opens all disks, then all sockets, so that a bad disk leaves no socket behind.
fn open_disks(args: &Args, config: &Config, setup: &mut Setup) -> Result<Vec<Opened>, Failure> {
    let own = args.disk.path.is_some();
    if !own && args.disk != DiskSpec::default() {
        return Err(Failure::usage("Options of a disk are given without --blk-file"));
    }
    let listed = || config.disk.iter().chain(&args.disks);
    if !own && listed().next().is_none() {
        return Err(Failure::usage("No disk is given").hint("use --blk-file, --disk or a configuration file"));
    }
    // A single disk that names no socket has the one of the command line.
    let lone = !own && listed().count() == 1 && listed().all(|spec| !spec.has_endpoint());
    let endpoint = &args.common.endpoint;
    if !own && !lone && endpoint.is_given() {
        return Err(Failure::usage("A socket is given for --blk-file, but no --blk-file"));
    }
    let specs: Vec<&DiskSpec> = own.then_some(&args.disk).into_iter().chain(listed()).collect();
    let mut ids = BTreeSet::new();
    let mut disks = Vec::new();
    for spec in &specs {
        let options = spec.options().map_err(Failure::usage)?;
        if !ids.insert(options.id.clone()) {
            return Err(Failure::usage(format!("Two disks have the name '{}'", options.id)));
        }
        disks.push(Arc::new(Disk::open(options).map_err(Failure::usage)?));
    }
    let common_line = |index: usize| index == 0 && (own || lone);
    let open = |(index, (disk, spec)): (usize, (Arc<Disk>, &&DiskSpec))| {
        let (endpoint, transport) = if common_line(index) {
            (EndpointSpec::from(&setup.common().endpoint), setup.endpoint()?)
        } else {
            (spec.endpoint(), setup.endpoint_of(&spec.endpoint())?)
        };
        Ok(Opened { disk, transport, endpoint, weight: spec.num_queues.unwrap_or(1) })
    };
    disks.into_iter().zip(&specs).enumerate().map(open).collect()
}

/// The part of a QEMU command line that attaches these disks.
fn first_steps(opened: &[Opened]) -> String {
    let disks: Vec<_> = opened.iter().map(|each| (each.disk.options(), &each.endpoint)).collect();
    qemu::first_steps(&disks)
}
