//! The process: devices from command line and configuration file, workers, engines, and what the control socket can do with
//! them.

use crate::cli::{Args, Config};
use crate::device::CompressDevice;
use crate::options::{DeviceOptions, Scheduling};
use crate::service::{Message, ServiceConfig};
use crate::spec::DeviceSpec;
use crate::stats::ServiceStats;
use crate::unit::Unit;
use crate::{control, qemu, report};
use daemon::cli::WorkerArgs;
use daemon::control::RpcError;
use daemon::device::{Opened, Place, arrange, options_of};
use daemon::{Application, Failure, Program, Setup, Supervisor};
use offload::host::{Host, Made, Offer};
use offload::parameters::check_poll;
use runtime::attach::Attached;
use runtime::worker::WorkerGone;
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the daemon offers: compression devices.
pub struct CompressOffer;

impl Offer for CompressOffer {
    type Spec = DeviceSpec;
    type Unit = Unit;

    fn queues(&self, options: &DeviceOptions) -> u16 {
        options.queues
    }

    fn device(&self, options: &DeviceOptions, attached: Attached<Message>) -> Result<Made<Unit>, WorkerGone> {
        let unit = Arc::new(Unit::new(options));
        let device = Box::new(CompressDevice::new(unit.clone(), attached)?);
        Ok(Made { unit, device })
    }
}

/// A device that is being served.
pub type Served = offload::host::Served<CompressOffer>;

/// The compression daemon.
pub struct App {
    host: Host<CompressOffer>,
    scheduling: Scheduling,
    /// Counters of the workers' batches and tasks, in the order of the workers.
    services: Mutex<Vec<Arc<ServiceStats>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// The devices and the workers.
    pub fn host(&self) -> &Host<CompressOffer> {
        &self.host
    }

    /// How requests are collected and computed, as the process was started.
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// Counters of each worker's batches and tasks.
    pub fn services(&self) -> Vec<Arc<ServiceStats>> {
        lock(&self.services).clone()
    }

    /// One worker unless more are asked for. Several help each other.
    fn start_workers(&self) -> Result<(), Failure> {
        let Scheduling { policy, engine } = self.scheduling;
        let workers = self.host.workers();
        let count = workers.count(1);
        let configs = ServiceConfig::all(count, policy, engine)
            .map_err(|error| Failure::runtime(format!("The workers cannot be made: {error}")))?;
        *lock(&self.services) = configs.iter().map(ServiceConfig::stats).collect();
        let mut configs = configs.into_iter();
        workers.start("compress", count, workers.io(), |_| {
            let config = configs.next();
            move |cx: &mut _| config.expect("one a worker was made").start(cx)
        })
    }
}

impl Application for App {
    type Args = Args;
    type Config = Config;

    const PROGRAM: Program = Program {
        name: "vhostd-compress",
        version: env!("CARGO_PKG_VERSION"),
        kind: "compress",
        features: &[],
    };

    fn open(args: Args, config: Config, setup: &mut Setup) -> Result<Self, Failure> {
        let scheduling = scheduling(&args, &config, &setup.common().workers)?;
        let devices = devices(&args, &config, setup.common().endpoint.is_given())?;
        let host = Host::open(CompressOffer, devices, scheduling.policy, &args.handed, setup)?;
        Ok(Self { host, scheduling, services: Mutex::default() })
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
        // The sessions have ended, and each waited for its requests: the workers have nothing left to do.
        self.host.workers().join()
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
