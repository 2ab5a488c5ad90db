//! The process: devices from command line and configuration file, workers, engines, and what the control socket can do with
//! them.

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
use daemon::device::{Opened, Place, arrange, options_of};
use daemon::sandbox;
use daemon::{Application, Failure, Program, Setup, Supervisor};
use offload::host::{Host, Made, Offer};
use offload::parameters::check_poll;
use runtime::attach::Attached;
use runtime::worker::WorkerGone;
use serde_json::Value;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the daemon offers: virtio-crypto devices.
pub struct CryptoOffer {
    /// What another process keeps for this one.
    inherited: Option<Inherited>,
}

impl Offer for CryptoOffer {
    type Spec = DeviceSpec;
    type Unit = Unit;

    /// The control queue comes after the data queues.
    fn queues(&self, options: &DeviceOptions) -> u16 {
        options.queues + 1
    }

    fn device(&self, options: &DeviceOptions, attached: Attached<Message>) -> Result<Made<Unit>, WorkerGone> {
        let unit = Arc::new(Unit::new(UnitOptions {
            id: options.id.clone(),
            data_queues: options.queues,
            queue_size: options.queue_size,
            max_size: options.limits.max_size.into(),
            sessions: options.limits.sessions,
            vault: self.inherited.as_ref().map(|inherited| inherited.vault.device(&options.id)),
        }));
        let device = Box::new(CryptoDevice::new(unit.clone(), attached)?);
        Ok(Made { unit, device })
    }
}

/// A device that is being served.
pub type Served = offload::host::Served<CryptoOffer>;

/// The crypto daemon.
pub struct App {
    host: Host<CryptoOffer>,
    scheduling: Scheduling,
    /// Counters of the workers' batches and engines, in the order of the workers.
    services: Mutex<Vec<Arc<ServiceStats>>>,
    pool: Mutex<Option<Pool>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// The devices and the workers.
    pub fn host(&self) -> &Host<CryptoOffer> {
        &self.host
    }

    /// How requests are collected and computed, as the process was started.
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// Counters of each worker's batches and engines.
    pub fn services(&self) -> Vec<Arc<ServiceStats>> {
        lock(&self.services).clone()
    }

    /// Reads the pool for asymmetric requests, while there is one.
    pub fn pool<R>(&self, read: impl FnOnce(&Pool) -> R) -> Option<R> {
        lock(&self.pool).as_ref().map(read)
    }

    /// One worker unless more are asked for: requests that are together make fuller batches.
    fn start_workers(&self) -> Result<(), Failure> {
        let failed = |error| Failure::runtime(format!("The workers cannot be made: {error}"));
        let Scheduling { policy, engine, asym_threads } = self.scheduling;
        let pool = Pool::start(asym_threads.into()).map_err(failed)?;
        let workers = self.host.workers();
        let count = workers.count(1);
        let config = |index| {
            let config = ServiceConfig::new(policy, engine, &pool)?;
            Ok(match &self.host.offer().inherited {
                Some(inherited) => config.with_journal(inherited.journals.worker(index, count)),
                None => config,
            })
        };
        let configs: Vec<_> = (0..count).map(config).collect::<io::Result<_>>().map_err(failed)?;
        *lock(&self.services) = configs.iter().map(ServiceConfig::stats).collect();
        let mut configs = configs.into_iter();
        workers.start("crypto", count, workers.io(), |_| {
            let config = configs.next();
            move |cx: &mut _| CryptoService::new(config.expect("one a worker was made"), cx)
        })?;
        *lock(&self.pool) = Some(pool);
        Ok(())
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
        let offer = CryptoOffer { inherited: Inherited::take(&args.handed)? };
        let host = Host::open(offer, devices, scheduling.policy, &args.handed.devices, setup)?;
        Ok(Self { host, scheduling, services: Mutex::default(), pool: Mutex::default() })
    }

    fn start(self: &Arc<Self>, supervisor: &Arc<Supervisor>) -> Result<(), Failure> {
        self.host.start(supervisor, || self.start_workers(), first_steps)
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
        self.host.responsive(within)
    }

    fn drain(&self, _: Instant) -> bool {
        // The sessions have ended, and each waited for its requests: workers and pool have nothing left to do.
        let joined = self.host.workers().join();
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
    options_of(arrange(&args.device, config.device.iter().chain(&args.devices), given)?)
}

/// The part of a QEMU command line that attaches these devices.
fn first_steps(opened: &[Opened<DeviceOptions>]) -> String {
    qemu::first_steps(opened.iter().map(|each| (&each.options, &each.endpoint)))
}
