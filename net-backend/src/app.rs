//! The process: ports and uplink from command line and configuration file, workers, sessions, and what the control socket
//! can do with them.

use crate::board::Board;
use crate::cli::{Args, Config};
use crate::device::{NetDevice, queues_of};
use crate::guest::Guest;
use crate::options::{PortOptions, TableOptions, UplinkOptions};
use crate::path::crossings;
use crate::port::{Identity, MAX_PAIRS, Port};
use crate::service::{Message, NetService};
use crate::spec::{PortSpec, UplinkSpec};
use crate::switch::{AdoptError, Fabric, PortId};
use crate::uplink_port::{self, UplinkPort};
use crate::{control, qemu, report};
use daemon::control::RpcError;
use daemon::device::{Arranged, Devices, Opened, Place, Spec, arrange};
use daemon::sandbox::Confinement;
use daemon::workers::Workers;
use daemon::{Application, Failure, Program, Setup, Supervisor};
use runtime::rings::Reply;
use runtime::stats::QueueStats;
use serde_json::Value;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vhost_user::Notifier;

/// How long the end waits for mirror files on a slow disk.
const CAPTURE_LIMIT: Duration = Duration::from_millis(300);
/// How long a worker may take to adopt a new policy.
const POLICY_LIMIT: Duration = Duration::from_secs(5);

/// A port that is being served.
pub struct Served {
    /// Its guest, and what that has set.
    pub guest: Arc<Guest>,
    /// Reaches its session.
    pub notifier: Notifier,
    /// Counters that the runtime keeps for each queue.
    pub queues: Vec<Arc<QueueStats>>,
}

impl Served {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.guest.options().id
    }
}

/// What `start` takes over from `open`.
struct Waiting {
    ports: Vec<Opened<PortOptions>>,
    uplink: Option<uplink_port::Opened>,
}

/// The net daemon.
pub struct App {
    workers: Workers<Message>,
    worker_count: usize,
    confinement: Confinement,
    fabric: Arc<Fabric>,
    board: Mutex<Board>,
    waiting: Mutex<Option<Waiting>>,
    served: Devices<Served>,
    uplink: Mutex<Option<Arc<UplinkPort>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// The ports that are served, by name.
    pub fn served(&self) -> Vec<Arc<Served>> {
        self.served.all()
    }

    /// One of them.
    pub fn find(&self, id: &str) -> Result<Arc<Served>, RpcError> {
        self.served.find(id)
    }

    /// The uplink.
    pub fn uplink(&self) -> Option<Arc<UplinkPort>> {
        lock(&self.uplink).clone()
    }

    /// What all workers share.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    /// The workers.
    pub fn workers(&self) -> &Workers<Message> {
        &self.workers
    }

    /// Reads what is asked of the switch.
    pub fn board<R>(&self, read: impl FnOnce(&Board) -> R) -> R {
        read(&lock(&self.board))
    }

    /// Adds a port to the running process.
    pub fn add(&self, spec: &PortSpec) -> Result<(), Failure> {
        let _change = self.served.changing();
        let options = spec.options().map_err(Failure::usage)?;
        self.board(|board| board.check_new(&options.id, &options.policy.macs))?;
        let endpoint = spec.endpoint();
        let transport = endpoint.open().map_err(|error| self.confinement.explain_socket(&endpoint, error))?;
        self.edit(|board| board.add(&options.id, options.policy.clone(), options.mirror.as_ref()))?;
        let id = options.id.clone();
        self.serve(Opened { options, transport, endpoint }).inspect_err(|_| {
            // The port was never used: taking it back cannot be refused.
            let _ = self.edit(|board| board.remove(&id));
        })
    }

    /// Ends a port: its session is closed, its rings are finished.
    pub fn remove(&self, id: &str) -> Result<(), RpcError> {
        let check = || self.board(|board| board.check_removable(id)).map_err(RpcError::from);
        self.served.remove(id, check, || self.edit(|board| board.remove(id)).map_err(RpcError::from))
    }

    /// Changes what is asked of a port or the switch while it runs.
    pub fn set<R>(&self, edit: impl FnOnce(&mut Board) -> Result<R, Failure>) -> Result<R, RpcError> {
        let _change = self.served.changing();
        Ok(self.edit(edit)?)
    }

    /// Changes the board; the policy that comes out of it is in force when this returns, or nothing has changed.
    fn edit<R>(&self, edit: impl FnOnce(&mut Board) -> Result<R, Failure>) -> Result<R, Failure> {
        let mut held = lock(&self.board);
        let mut board = held.clone();
        let result = edit(&mut board)?;
        let policy = board.policy().clone();
        self.fabric.adopt(&policy).map_err(|error| self.explain(&error))?;
        *held = board;
        drop(held);
        let message = |reply| Message::Policy { policy: policy.clone(), reply };
        if !self.workers.ask(message, Instant::now() + POLICY_LIMIT) {
            tracing::error!("A worker does not take the new policy");
        }
        Ok(result)
    }

    /// Why a policy is refused: if the sandbox may be the reason, with what it leaves open.
    fn explain(&self, error: &AdoptError) -> Failure {
        let failure = Failure::usage(error);
        match error {
            AdoptError::Capture { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                self.confinement.explain_file(path, failure)
            }
            _ => failure,
        }
    }

    fn serve(&self, Opened { options, transport, endpoint }: Opened<PortOptions>) -> Result<(), Failure> {
        let supervisor = self.served.supervisor()?;
        let attached = self.workers.pool(|pool| pool.attach_pairs(queues_of(options.queues)))?;
        let queues = attached.stats().cloned().collect();
        let number = self.board(|board| board.number(&options.id))?;
        let port = self.new_port(number, &options.id, options.queues);
        port.set_link(!options.link_down);
        port.set_mtu(options.mtu.unwrap_or_default());
        let id = options.id.clone();
        let guest = Guest::new(port, Arc::new(options), self.fabric.clone(), self.workers.handles());
        let guest = Arc::new(guest);
        let device =
            NetDevice::new(guest.clone(), attached, self.workers.handles()).map_err(Failure::runtime)?;
        let notifier = supervisor.serve(&id, transport, Box::new(device))?;
        guest.set_notifier(notifier.clone());
        tracing::info!(port = id, socket = %endpoint, queues = guest.options().queues, "serving");
        self.served.insert(id, Served { guest, notifier, queues });
        Ok(())
    }

    fn new_port(&self, id: PortId, name: &str, pairs: u16) -> Arc<Port> {
        Arc::new(Port::new(Identity { id, name: name.to_owned(), pairs, workers: self.worker_count }))
    }

    fn start_workers(&self) -> Result<(), Failure> {
        let policy = self.board(|board| board.policy().clone());
        self.fabric.adopt(&policy).map_err(Failure::usage)?;
        let failed = |error| Failure::runtime(format!("The workers cannot be connected: {error}"));
        let mut crossings = crossings(self.worker_count).map_err(failed)?.into_iter();
        self.workers.start("net", self.worker_count, self.workers.io(), |_| {
            let (crossing, fabric, policy) = (crossings.next(), self.fabric.clone(), policy.clone());
            move |cx: &mut _| NetService::new(crossing.expect("one a worker was made"), fabric, policy, cx)
        })
    }

    fn start_uplink(&self, opened: uplink_port::Opened) -> Result<(), Failure> {
        let number = self.board(|board| board.number(opened.id()))?;
        let port = self.new_port(number, opened.id(), self.worker_count as u16);
        let uplink = opened.start(port, &self.workers.handles())?;
        *lock(&self.uplink) = Some(Arc::new(uplink));
        Ok(())
    }
}

impl Application for App {
    type Args = Args;
    type Config = Config;

    const PROGRAM: Program =
        Program { name: "vhostd-net", version: env!("CARGO_PKG_VERSION"), kind: "net", features: &[] };

    fn open(args: Args, config: Config, setup: &mut Setup) -> Result<Self, Failure> {
        let table = args.switch.or(&config.switch).options().map_err(Failure::usage)?;
        let uplink = uplink_options(&args, &config)?;
        let ports = port_specs(&args, &config, setup)?;
        let board = lay_out(table, &ports, uplink.as_ref())?;
        let workers = Workers::new(&setup.common().workers);
        let worker_count = worker_count(&workers)?;
        // All that may be refused for what it is comes before all that makes something.
        let uplink =
            uplink.map(|options| uplink_port::Opened::open(options, worker_count, setup)).transpose()?;
        board.prepare_mirrors(setup)?;
        let open = |(options, place)| Opened::at(options, place, setup);
        let ports = ports.into_iter().map(open).collect::<Result<_, Failure>>()?;
        Ok(Self {
            workers,
            worker_count,
            confinement: Confinement::new(&setup.common().sandbox),
            fabric: Arc::new(Fabric::new(table.size as usize)),
            board: Mutex::new(board),
            waiting: Mutex::new(Some(Waiting { ports, uplink })),
            served: Devices::new(PortSpec::NOUN),
            uplink: Mutex::default(),
        })
    }

    fn start(self: &Arc<Self>, supervisor: &Arc<Supervisor>) -> Result<(), Failure> {
        let Some(Waiting { ports, uplink }) = lock(&self.waiting).take() else { return Ok(()) };
        let first_steps = first_steps(&ports);
        self.start_workers()?;
        self.served.started(supervisor);
        uplink.map_or(Ok(()), |uplink| self.start_uplink(uplink))?;
        ports.into_iter().try_for_each(|each| self.serve(each))?;
        daemon::device::qemu::show(&first_steps);
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

    fn drain(&self, deadline: Instant) -> bool {
        // The sessions have ended, and each finished its rings: the workers have nothing left but the uplink.
        let joined = self.workers.join();
        drop(lock(&self.uplink).take());
        let patience = deadline.saturating_duration_since(Instant::now());
        self.fabric.finish_captures(patience.min(CAPTURE_LIMIT));
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

/// One worker unless more are asked for. A worker serves pairs of queues, of which no port has more than [`MAX_PAIRS`].
fn worker_count(workers: &Workers<Message>) -> Result<usize, Failure> {
    match workers.count(1) {
        count if count > MAX_PAIRS.into() => Err(Failure::usage(format!(
            "{count} workers are too many: a port has at most {MAX_PAIRS} pairs of queues to share among them"
        ))),
        count => Ok(count),
    }
}

/// The ports of command line and file, with their options checked.
fn port_specs(args: &Args, config: &Config, setup: &Setup) -> Result<Vec<(PortOptions, Place)>, Failure> {
    let listed = config.port.iter().chain(&args.ports);
    let ports = arrange(&args.port, listed, setup.common().endpoint.is_given())?;
    let options = |(spec, place): Arranged<PortSpec>| Ok((spec.options().map_err(Failure::usage)?, place));
    ports.into_iter().map(options).collect()
}

fn uplink_options(args: &Args, config: &Config) -> Result<Option<UplinkOptions>, Failure> {
    // As everywhere, an argument wins over the file.
    let given: Vec<&UplinkSpec> = match args.uplink.as_slice() {
        [] => config.uplink.iter().collect(),
        given => given.iter().collect(),
    };
    match *given {
        [] => Ok(None),
        [spec] => spec.options().map_err(Failure::usage),
        _ => Err(Failure::usage("Two uplinks are given, but a switch has one")
            .hint("attach more interfaces to a bridge, and the uplink to it with bridge=NAME")),
    }
}

/// Gives every port its number in the switch, then its policy, which may name ports that come later.
fn lay_out(
    table: TableOptions,
    ports: &[(PortOptions, Place)],
    uplink: Option<&UplinkOptions>,
) -> Result<Board, Failure> {
    let uplink = uplink.map(|uplink| (&uplink.id, &uplink.policy, &uplink.mirror));
    let ports = ports.iter().map(|(port, _)| (&port.id, &port.policy, &port.mirror));
    let places: Vec<_> = uplink.into_iter().chain(ports).collect();
    let mut board = Board::new(table.aging)?;
    for (id, policy, _) in &places {
        board.check_new(id, &policy.macs)?;
        board.reserve(id)?;
    }
    // Addresses and rules first: a mirror's target has to have a policy.
    places.iter().try_for_each(|(id, policy, _)| board.set(id, (*policy).clone(), None))?;
    for (id, policy, mirror) in places {
        if mirror.is_some() {
            board.set(id, policy.clone(), mirror.as_ref())?;
        }
    }
    Ok(board)
}

/// The part of a QEMU command line that attaches these ports.
fn first_steps(opened: &[Opened<PortOptions>]) -> String {
    let ports: Vec<_> = opened.iter().map(|each| (&each.options, &each.endpoint)).collect();
    qemu::first_steps(&ports)
}
