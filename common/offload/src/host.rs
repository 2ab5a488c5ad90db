//! The devices of an offload daemon and the workers that serve them: what the process is made of, but for the engines.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::control::RpcError;
use daemon::device::{Described, Devices, Opened, Place, qemu};
use daemon::sandbox::Confinement;
use daemon::workers::Workers;
use daemon::{Failure, Setup, Supervisor};
use keeper::HandedArgs;
use runtime::attach::Attached;
use runtime::rings::Reply;
use runtime::stats::QueueStats;
use runtime::worker::WorkerGone;
use vhost_user::{Device, Notifier};

use crate::flush::Policy;
use crate::parameters::Pace;
use crate::service::Message;

/// A device, and its end for the session.
pub struct Made<U> {
    /// The device, as its session thread and its workers share it.
    pub unit: Arc<U>,
    /// Its end for the session.
    pub device: Box<dyn Device>,
}

/// What a daemon offers.
pub trait Offer: Send + Sync {
    /// How the user describes a device.
    type Spec: Described<Options: Send>;
    /// A device, as its session thread and its workers share it.
    type Unit: Send + Sync + 'static;

    /// How many queues a device has.
    fn queues(&self, options: &OptionsOf<Self>) -> u16;

    /// Makes a device.
    fn device(
        &self,
        options: &OptionsOf<Self>,
        attached: Attached<Message<Self::Unit>>,
    ) -> Result<Made<Self::Unit>, WorkerGone>;
}

/// The options of a device of this offer.
pub type OptionsOf<O> = <<O as Offer>::Spec as Described>::Options;

/// A device that is being served.
pub struct Served<O: Offer + ?Sized> {
    /// What its session, its workers and the control socket share.
    pub unit: Arc<O::Unit>,
    /// As it was asked for; what can be changed may have been since.
    pub options: OptionsOf<O>,
    /// Reaches its session.
    pub notifier: Notifier,
    /// Counters that the runtime keeps for each queue.
    pub queues: Vec<Arc<QueueStats>>,
}

/// The devices of a process, and its workers.
pub struct Host<O: Offer> {
    offer: O,
    workers: Workers<Message<O::Unit>>,
    pace: Pace,
    confinement: Confinement,
    supervised: bool,
    opened: Mutex<Vec<Opened<OptionsOf<O>>>>,
    served: Devices<Served<O>>,
}

impl<O: Offer> Host<O> {
    /// Opens the sockets of the devices, or takes those that were `handed` over. Nothing is served yet.
    pub fn open(
        offer: O,
        devices: Vec<(OptionsOf<O>, Place)>,
        policy: Policy,
        handed: &HandedArgs,
        setup: &mut Setup,
    ) -> Result<Self, Failure> {
        let open = |(options, place)| match handed.descriptor(O::Spec::name(&options)) {
            Some(fd) => Opened::handed(options, place, fd, setup),
            None => Opened::at(options, place, setup),
        };
        let opened = devices.into_iter().map(open).collect::<Result<_, Failure>>()?;
        let common = setup.common();
        Ok(Self {
            offer,
            workers: Workers::new(&common.workers),
            pace: Pace::new(policy, &common.workers),
            confinement: Confinement::new(&common.sandbox),
            supervised: handed.is_supervised(),
            opened: Mutex::new(opened),
            served: Devices::new(<O::Spec as daemon::device::Spec>::NOUN),
        })
    }

    /// What is offered.
    pub fn offer(&self) -> &O {
        &self.offer
    }

    /// The workers.
    pub fn workers(&self) -> &Workers<Message<O::Unit>> {
        &self.workers
    }

    /// How workers wait and submit now.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Whether there is a process that keeps this one.
    pub fn is_supervised(&self) -> bool {
        self.supervised
    }

    /// The devices that are served, by name.
    pub fn served(&self) -> Vec<Arc<Served<O>>> {
        self.served.all()
    }

    /// One of them.
    pub fn find(&self, id: &str) -> Result<Arc<Served<O>>, RpcError> {
        self.served.find(id)
    }

    /// Starts the workers, and serves the devices that were opened. `first_steps` is shown to someone who starts the daemon by
    /// hand.
    pub fn start(
        &self,
        supervisor: &Arc<Supervisor>,
        start_workers: impl FnOnce() -> Result<(), Failure>,
        first_steps: impl FnOnce(&[Opened<OptionsOf<O>>]) -> String,
    ) -> Result<(), Failure> {
        let opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let first_steps = first_steps(&opened);
        start_workers()?;
        self.pace.start(&self.workers)?;
        self.served.started(supervisor);
        opened.into_iter().try_for_each(|each| self.serve(each))?;
        if !self.supervised {
            qemu::show(&first_steps);
        }
        Ok(())
    }

    /// Adds a device to the running process.
    pub fn add(&self, spec: &O::Spec) -> Result<(), Failure> {
        if self.supervised {
            return Err(Failure::usage(
                "A device cannot be added under --supervise: its socket would not survive a crash",
            )
            .hint("put it into the configuration file and restart the daemon, or run another daemon"));
        }
        let _change = self.served.changing();
        let options = spec.options().map_err(Failure::usage)?;
        self.served.check_new(O::Spec::name(&options))?;
        let endpoint = daemon::device::Spec::endpoint(spec);
        let transport = endpoint.open().map_err(|error| self.confinement.explain_socket(&endpoint, error))?;
        self.serve(Opened { options, transport, endpoint })
    }

    /// Ends a device: its session is closed, and its requests are finished.
    pub fn remove(&self, id: &str) -> Result<(), RpcError> {
        self.served.remove(id, || Ok(()), || Ok(()))
    }

    fn serve(&self, Opened { options, transport, endpoint }: Opened<OptionsOf<O>>) -> Result<(), Failure> {
        let supervisor = self.served.supervisor()?;
        let attached = self.workers.pool(|pool| pool.attach(self.offer.queues(&options)))?;
        let queues: Vec<_> = attached.stats().cloned().collect();
        let Made { unit, device } = self.offer.device(&options, attached).map_err(Failure::runtime)?;
        let id = O::Spec::name(&options).to_owned();
        let notifier = supervisor.serve(&id, transport, device)?;
        tracing::info!(device = id, socket = %endpoint, queues = queues.len(), "serving");
        self.served.insert(id, Served { unit, options, notifier, queues });
        Ok(())
    }

    /// Whether all workers answer within this time.
    pub fn responsive(&self, within: Duration) -> bool {
        self.workers.responsive(within, |reply: Reply<()>| Message::Ping { reply })
    }
}
