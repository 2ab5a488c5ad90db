//! The process: devices from command line and configuration file, workers, engines, sessions, and what the control socket can
//! do with them.

use crate::asym::Pool;
use crate::cli::{Args, Config};
use crate::device::CryptoDevice;
use crate::engine;
use crate::options::{DeviceOptions, Scheduling};
use crate::service::{CryptoService, Message, ServiceConfig, Unit, UnitOptions};
use crate::spec::DeviceSpec;
use crate::stats::ServiceStats;
use crate::supervise::Inherited;
use crate::{control, qemu, report};
use daemon::cli::WorkerArgs;
use daemon::control::RpcError;
use daemon::device::{Devices, Place, Spec, arrange};
use daemon::sandbox::{self, Confinement};
use daemon::workers::Workers;
use daemon::{Application, EndpointSpec, Failure, Program, Setup, Supervisor};
use offload::parameters::{Pace, check_poll};
use runtime::rings::Reply;
use runtime::stats::QueueStats;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vhost_user::{Notifier, Transport};

/// A device that is being served.
pub struct Served {
    /// What its session, its workers and the control socket share.
    pub unit: Arc<Unit>,
    /// As it was asked for; the limits may have changed since.
    pub options: DeviceOptions,
    /// Reaches its session.
    pub notifier: Notifier,
    /// Counters that the runtime keeps for each queue.
    pub queues: Vec<Arc<QueueStats>>,
}

/// A device that has its socket.
struct Opened {
    options: DeviceOptions,
    transport: Transport,
    endpoint: EndpointSpec,
}

/// The crypto daemon.
pub struct App {
    workers: Workers<Message>,
    confinement: Confinement,
    /// How requests are collected and computed, as the process was started.
    scheduling: Scheduling,
    /// What of it can change.
    pace: Pace,
    /// Counters of the workers' batches and engines, in the order of the workers.
    services: Mutex<Vec<Arc<ServiceStats>>>,
    pool: Mutex<Option<Pool>>,
    /// What another process keeps for this one.
    inherited: Option<Inherited>,
    opened: Mutex<Vec<Opened>>,
    served: Devices<Served>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// The devices that are served, by name.
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

    /// How requests are collected and computed, as the process was started.
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// How workers wait and submit now.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Counters of each worker's batches and engines.
    pub fn services(&self) -> Vec<Arc<ServiceStats>> {
        lock(&self.services).clone()
    }

    /// Reads the pool for asymmetric requests, while there is one.
    pub fn pool<R>(&self, read: impl FnOnce(&Pool) -> R) -> Option<R> {
        lock(&self.pool).as_ref().map(read)
    }

    /// Whether there is a process that keeps this one.
    pub fn is_supervised(&self) -> bool {
        self.inherited.is_some()
    }

    /// Adds a device to the running process.
    pub fn add(&self, spec: &DeviceSpec) -> Result<(), Failure> {
        if self.is_supervised() {
            return Err(Failure::usage(
                "A device cannot be added under --supervise: its socket would not survive a crash",
            )
            .hint("put it into the configuration file and restart the daemon, or run another daemon"));
        }
        let _change = self.served.changing();
        let options = spec.options().map_err(Failure::usage)?;
        self.served.check_new(&options.id)?;
        let endpoint = spec.endpoint();
        let transport = endpoint.open().map_err(|error| self.confinement.explain_socket(&endpoint, error))?;
        self.serve(Opened { options, transport, endpoint })
    }

    /// Ends a device: its session is closed, its requests are finished, its keys wiped.
    pub fn remove(&self, id: &str) -> Result<(), RpcError> {
        self.served.remove(id, || Ok(()), || Ok(()))
    }

    fn serve(&self, Opened { options, transport, endpoint }: Opened) -> Result<(), Failure> {
        let supervisor = self.served.supervisor()?;
        // The control queue comes after the data queues.
        let attached = self.workers.pool(|pool| pool.attach(options.queues + 1))?;
        let queues = attached.stats().cloned().collect();
        let id = options.id.clone();
        let unit = Arc::new(Unit::new(UnitOptions {
            id: id.clone(),
            data_queues: options.queues,
            queue_size: options.queue_size,
            max_size: options.limits.max_size.into(),
            sessions: options.limits.sessions,
            vault: self.inherited.as_ref().map(|inherited| inherited.vault.device(&id)),
        }));
        let session = CryptoDevice::new(unit.clone(), attached).map_err(Failure::runtime)?;
        let notifier = supervisor.serve(&id, transport, Box::new(session))?;
        tracing::info!(device = id, socket = %endpoint, queues = options.queues, "serving");
        self.served.insert(id, Served { unit, options, notifier, queues });
        Ok(())
    }

    /// One worker unless more are asked for: requests that are together make fuller batches.
    fn start_workers(&self) -> Result<(), Failure> {
        let failed = |error| Failure::runtime(format!("The workers cannot be made: {error}"));
        let scheduling = self.scheduling;
        let pool = Pool::start(scheduling.asym_threads.into()).map_err(failed)?;
        let count = self.workers.count(1);
        let config = |index| {
            let config = ServiceConfig::new(scheduling.policy, scheduling.engine, &pool)?;
            Ok(match &self.inherited {
                Some(inherited) => config.with_journal(inherited.journals.worker(index, count)),
                None => config,
            })
        };
        let configs: Vec<_> = (0..count).map(config).collect::<io::Result<_>>().map_err(failed)?;
        *lock(&self.services) = configs.iter().map(ServiceConfig::stats).collect();
        let mut configs = configs.into_iter();
        self.workers.start("crypto", count, self.workers.io(), |_| {
            let config = configs.next();
            move |cx: &mut _| CryptoService::new(config.expect("one a worker was made"), cx)
        })?;
        *lock(&self.pool) = Some(pool);
        self.pace.start(&self.workers)
    }
}

impl Application for App {
    type Args = Args;
    type Config = Config;

    const PROGRAM: Program =
        Program { name: "vhostd-crypto", version: env!("CARGO_PKG_VERSION"), kind: "crypto", features: &[] };

    fn open(args: Args, config: Config, setup: &mut Setup) -> Result<Self, Failure> {
        let scheduling = scheduling(&args, &config, &setup.common().workers)?;
        let devices = devices(&args, &config, setup.common().endpoint.is_given())?;
        sandbox::keep_secrets().map_err(|error| {
            Failure::runtime(format!("The process cannot be kept out of core files: {error}"))
        })?;
        engine::start().map_err(Failure::runtime)?;
        let inherited = Inherited::take(&args.handed)?;
        let open = |(options, place): (DeviceOptions, Place)| {
            let (endpoint, transport) = match args.handed.devices.descriptor(&options.id) {
                Some(fd) => {
                    let kept = EndpointSpec { fd: Some(fd), ..EndpointSpec::default() };
                    (place.endpoint(setup.common()), setup.endpoint_of(&kept)?)
                }
                None => place.open(setup)?,
            };
            Ok(Opened { options, transport, endpoint })
        };
        let opened = devices.into_iter().map(open).collect::<Result<_, Failure>>()?;
        Ok(Self {
            workers: Workers::new(&setup.common().workers),
            confinement: Confinement::new(&setup.common().sandbox),
            scheduling,
            pace: Pace::new(scheduling.policy, &setup.common().workers),
            services: Mutex::default(),
            pool: Mutex::default(),
            inherited,
            opened: Mutex::new(opened),
            served: Devices::new(DeviceSpec::NOUN),
        })
    }

    fn start(self: &Arc<Self>, supervisor: &Arc<Supervisor>) -> Result<(), Failure> {
        let opened = std::mem::take(&mut *lock(&self.opened));
        let first_steps = first_steps(&opened);
        self.start_workers()?;
        self.served.started(supervisor);
        opened.into_iter().try_for_each(|each| self.serve(each))?;
        if !self.is_supervised() {
            daemon::device::qemu::show(&first_steps);
        }
        Ok(())
    }

    fn status(&self) -> Value {
        report::status(self)
    }

    fn stats(&self) -> daemon::stats::Snapshot {
        report::snapshot(self)
    }

    fn metrics(&self, out: &mut daemon::metrics::Exposition) {
        report::metrics(self, out);
    }

    fn responsive(&self, within: Duration) -> bool {
        self.workers.responsive(within, |reply: Reply<()>| Message::Ping { reply })
    }

    fn drain(&self, _: Instant) -> bool {
        // The sessions have ended, and each waited for its requests: workers and pool have nothing left to do.
        let joined = self.workers.join();
        drop(lock(&self.pool).take());
        joined
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

/// How requests are collected: arguments first, then the file.
pub fn scheduling(args: &Args, config: &Config, workers: &WorkerArgs) -> Result<Scheduling, Failure> {
    check_poll(workers)?;
    args.scheduling.or(&config.scheduling).change(&Scheduling::default()).map_err(Failure::usage)
}

/// The devices of command line and file, with their options checked. `given`: the command line names a socket.
pub fn devices(args: &Args, config: &Config, given: bool) -> Result<Vec<(DeviceOptions, Place)>, Failure> {
    let arranged = arrange(&args.device, config.device.iter().chain(&args.devices), given)?;
    let mut ids = BTreeSet::new();
    let mut devices = Vec::new();
    for (spec, place) in arranged {
        let options = spec.options().map_err(Failure::usage)?;
        if !ids.insert(options.id.clone()) {
            return Err(Failure::usage(format!("Two devices have the name '{}'", options.id)));
        }
        devices.push((options, place));
    }
    Ok(devices)
}

/// The part of a QEMU command line that attaches these devices.
fn first_steps(opened: &[Opened]) -> String {
    qemu::first_steps(opened.iter().map(|each| (&each.options, &each.endpoint)))
}
