//! What a worker thread runs: the rings of any number of devices, in the rounds of [`offload::service`].

mod unit;

use crate::asym::{Client, Pool};
use crate::engine::{Choice, Engines};
use crate::flush::Policy;
use crate::journal::Journal;
use crate::queue::QueueState;
use crate::queue::desk::{CryptoRings, Desk, Known};
use crate::session::Cache;
use crate::stats::ServiceStats;
use offload::bell::Bell;
use offload::service::{Done, Env, Look, Offload};
use offload::stats::BatchCounters;
use runtime::io::WatchId;
use runtime::rings::SlotId;
use runtime::stats::WorkerStats;
use runtime::worker::{Context, Service};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtqueue::DeviceRing;

pub use unit::{Unit, UnitOptions};

/// With an engine that says when it has results, a look without its word after so long.
const SAFETY_NS: u64 = 1_000_000;

/// What control tells a worker.
pub type Message = offload::service::Message<Unit>;

/// What a worker's service is made of; made before the worker, and moved to it.
pub struct ServiceConfig {
    /// When to submit, and how to wait.
    pub policy: Policy,
    /// Which engines.
    pub engines: Choice,
    journal: Option<Journal>,
    pool: Client,
    bell: Arc<Bell>,
    stats: Arc<ServiceStats>,
}

impl ServiceConfig {
    /// A service that hands its asymmetric requests to `pool`.
    pub fn new(policy: Policy, engines: Choice, pool: &Pool) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let pool = pool.client(bell.clone());
        Ok(Self { policy, engines, journal: None, pool, bell, stats: Arc::default() })
    }

    /// Sets the sources of requests in place aside for a process that takes over.
    pub fn with_journal(self, journal: Journal) -> Self {
        Self { journal: Some(journal), ..self }
    }

    /// The counters of the service.
    pub fn stats(&self) -> Arc<ServiceStats> {
        self.stats.clone()
    }
}

/// What a worker has beside its rings: a desk, and the bell that sessions ring when they close.
pub struct CryptoOffload {
    desk: Desk,
    bell: Arc<Bell>,
    /// Every engine that works by itself says when it has results.
    engines_call: bool,
}

impl Offload for CryptoOffload {
    type Unit = Unit;
    type Queue = QueueState;

    fn events(&self) -> Vec<RawFd> {
        self.desk.engines.completion_fds().collect()
    }

    fn add(&mut self, device: u32, unit: Arc<Unit>) {
        let cache = Cache::new(unit.sessions().clone(), self.bell.clone());
        let known = Some(Known::new(device, unit, cache));
        let places = &mut self.desk.ledger.known;
        match places.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = known,
            None => places.push(known),
        }
    }

    fn remove(&mut self, device: u32) {
        let Some(place) = self.desk.ledger.place_of(device) else { return };
        if let Some(known) = &mut self.desk.ledger.known[place] {
            known.cache.clear();
        }
        self.desk.forget();
        self.desk.ledger.known[place] = None;
    }

    fn queue(&self, device: u32, index: u16) -> Option<QueueState> {
        let ledger = &self.desk.ledger;
        let place = ledger.place_of(device)?;
        QueueState::new(place, index, &ledger.known[place].as_ref()?.unit)
    }

    fn stopping(&mut self, rings: &mut CryptoRings, slot: SlotId) {
        self.desk.take_back(rings, slot);
        // Nothing may be left that the answers which are gathered would wait for.
        self.bell.ring();
    }

    fn set_policy(&mut self, policy: Policy) {
        self.desk.collector.policy = policy;
        self.desk.pool.set_thresholds(policy.thresholds);
    }

    #[inline]
    fn burst<R: DeviceRing>(&mut self, queue: &mut QueueState, ring: &mut R, env: &mut Env<'_>) -> usize {
        queue.burst(ring, &mut self.desk, env)
    }

    fn rung(&mut self, rings: &mut CryptoRings, worker: &WorkerStats) -> usize {
        let ended = self.desk.take_answers(rings, worker);
        self.desk.ledger.sweep();
        self.desk.forget();
        ended
    }

    #[inline]
    fn turn(&mut self, rings: &mut CryptoRings, look: Look, worker: &WorkerStats) -> Done {
        self.desk.settle(look);
        let ended = self.desk.reap(rings, look, worker);
        self.desk.show();
        Done { ended, more: false }
    }

    #[inline]
    fn has_work(&self) -> bool {
        self.desk.has_work()
    }

    fn awaits(&self) -> bool {
        self.desk.engines.in_flight() > 0 || self.desk.pool.in_flight() > 0
    }

    fn patience_ns(&self) -> Option<u64> {
        let deadline = self.desk.collector.policy.thresholds.deadline_ns();
        let patience = if self.engines_call { SAFETY_NS } else { deadline };
        (self.desk.engines.in_flight() > 0).then_some(patience)
    }

    #[inline]
    fn tidy(&mut self) {
        self.desk.forget();
    }

    #[inline]
    fn published(&mut self, queue: &mut QueueState) {
        queue.published(&mut self.desk);
    }

    fn counters(&self) -> &BatchCounters {
        &self.desk.stats
    }
}

/// The service of one worker.
pub struct CryptoService(offload::service::Service<CryptoOffload>);

impl CryptoService {
    /// A service without devices.
    pub fn new(config: ServiceConfig, cx: &mut Context) -> Self {
        let engines = Engines::new(config.engines);
        Self::with_engines(config, engines, cx)
    }

    /// A service with these engines instead of those that the configuration names.
    pub fn with_engines(config: ServiceConfig, engines: Engines, cx: &mut Context) -> Self {
        let ServiceConfig { policy, journal, pool, bell, stats, .. } = config;
        let engines_call = engines.completion_fds().next().is_some();
        let mut desk = Desk::new(engines, pool, policy, stats);
        desk.ledger.journal = journal;
        let offload = CryptoOffload { desk, bell: bell.clone(), engines_call };
        Self(offload::service::Service::new(offload, policy, bell, cx))
    }
}

impl Service for CryptoService {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Context) {
        self.0.message(message, cx);
    }

    #[inline]
    fn poll_once(&mut self, cx: &mut Context) -> usize {
        self.0.poll_once(cx)
    }

    fn completed(&mut self, user_data: u64, result: i32, cx: &mut Context) {
        self.0.completed(user_data, result, cx);
    }

    fn ready(&mut self, watch: WatchId, cx: &mut Context) {
        self.0.ready(watch, cx);
    }

    fn arm(&mut self) -> bool {
        self.0.arm()
    }

    fn suppress(&mut self) {
        self.0.suppress();
    }

    fn outstanding(&self) -> usize {
        self.0.outstanding()
    }

    fn close(&mut self) {
        self.0.close();
    }

    fn panicked(&mut self) {
        self.0.panicked();
    }
}
