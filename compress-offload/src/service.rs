//! What a worker thread runs: the rings of any number of devices, and what other workers have too much of.
//!
//! The round is [`offload::service::Service`]'s; what is in it is the [`Desk`]'s. All workers of a process are made together,
//! because they share their work.

use crate::engine::{Choice, Engines};
use crate::queue::desk::Desk;
use crate::stats::ServiceStats;
use crate::steal::{Member, Team};
use crate::task::Task;
use offload::bell::Bell;
use offload::flush::Policy;
use offload::service::{self, Service};
use runtime::worker::Context;
use std::io;
use std::sync::Arc;

pub use crate::unit::Unit;

/// What control tells a worker.
pub type Message = service::Message<Unit>;

/// The service of one worker.
pub type CompressService = Service<Desk>;

/// What a worker's service is made of; made before the worker, and moved to it.
pub struct ServiceConfig {
    policy: Policy,
    choice: Choice,
    bell: Arc<Bell>,
    member: Member<Box<Task>>,
    stats: Arc<ServiceStats>,
}

impl ServiceConfig {
    /// The services of so many workers, at least one, which share their work.
    pub fn all(workers: usize, policy: Policy, choice: Choice) -> io::Result<Vec<Self>> {
        let bells = (0..workers.max(1)).map(|_| Bell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let config =
            |(bell, member)| Self { policy, choice, bell, member, stats: Arc::new(ServiceStats::default()) };
        Ok(bells.clone().into_iter().zip(Team::gather(bells)).map(config).collect())
    }

    /// The counters of the service.
    pub fn stats(&self) -> Arc<ServiceStats> {
        self.stats.clone()
    }

    /// The service, on its worker.
    pub fn start(self, cx: &mut Context) -> CompressService {
        let engines = Engines::new(self.choice, crate::engine::Verify::Off);
        self.start_with(engines, cx)
    }

    /// The service with these engines instead of those that the configuration names.
    pub fn start_with(self, engines: Engines, cx: &mut Context) -> CompressService {
        let Self { policy, bell, member, stats, .. } = self;
        Service::new(Desk::new(engines, member, stats), policy, bell, cx)
    }

    /// The place in the team, for somebody who is no service.
    #[cfg(test)]
    pub(crate) fn into_member(self) -> Member<Box<Task>> {
        self.member
    }
}
