//! What a worker thread runs: the rings of any number of devices.
//!
//! A round is: look at the bell (answers of the asymmetric pool, closed sessions), take a burst from every ring, submit
//! what was collected if [`flush`](crate::flush) says so, end what the engines have done, publish each ring once.

mod unit;

use crate::asym::{Client, Pool};
use crate::engine::{Choice, Engines};
use crate::flush::{Mode, Policy, Ticker};
use crate::journal::Journal;
use crate::queue::desk::{CryptoRings, Desk, Known};
use crate::queue::{Env, QueueState};
use crate::session::{Bell, Cache};
use crate::stats::ServiceStats;
use memory::Epochs;
use runtime::io::WatchId;
use runtime::rings::{Reply, RingCommand, Slot};
use runtime::worker::{Context, Service};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use virtqueue::{Broken, DeviceRing, Ring};

pub use unit::{Unit, UnitOptions};

/// With an engine that says when it has results, a look without its word after so long.
const SAFETY_NS: u64 = 1_000_000;

/// What control tells a worker.
pub enum Message {
    /// About the rings of one device.
    Rings(RingCommand),
    /// From now on rings of this device may be started.
    Add {
        /// Number of the device.
        device: u32,
        /// The device.
        unit: Arc<Unit>,
        /// Answered when it is known.
        reply: Reply<()>,
    },
    /// The rings of this device are gone for good.
    Remove {
        /// Number of the device.
        device: u32,
        /// Answered when the worker has let go of the device.
        reply: Reply<()>,
    },
    /// Wait and submit like this from now on. [`Mode::poll_policy`] has to be set on the worker as well.
    Policy(Policy),
    /// Are you there?
    Ping {
        /// Answered at once.
        reply: Reply<()>,
    },
}

impl From<RingCommand> for Message {
    fn from(command: RingCommand) -> Self {
        Self::Rings(command)
    }
}

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

/// The service of one worker.
pub struct CryptoService {
    rings: CryptoRings,
    desk: Desk,
    bell: Arc<Bell>,
    /// The events of bell and engines; a kick is any other.
    watches: Vec<WatchId>,
    /// Every engine that works by itself says when it has results.
    engines_call: bool,
    ticker: Ticker,
}

impl CryptoService {
    /// A service without devices.
    pub fn new(config: ServiceConfig, cx: &mut Context) -> Self {
        let engines = Engines::new(config.engines);
        Self::with_engines(config, engines, cx)
    }

    /// A service with these engines instead of those that the configuration names.
    pub fn with_engines(config: ServiceConfig, engines: Engines, cx: &mut Context) -> Self {
        let ServiceConfig { policy, journal, mut pool, bell, stats, .. } = config;
        pool.set_thresholds(policy.thresholds);
        let mut watches = Vec::new();
        let events = engines.completion_fds().chain([bell.as_raw_fd()]);
        for event in events {
            match cx.watch(event) {
                Ok(watch) => watches.push(watch),
                Err(error) => tracing::error!(%error, "A worker cannot wait for its engines"),
            }
        }
        let mut desk = Desk::new(engines, pool, policy, stats);
        desk.ledger.journal = journal;
        let engines_call = watches.len() > 1;
        let rings = CryptoRings::new();
        Self { rings, desk, bell, watches, engines_call, ticker: Ticker::default() }
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

    fn ring_command(&mut self, command: RingCommand, cx: &mut Context) {
        let ledger = &self.desk.ledger;
        self.rings.apply(command, cx, |device, index, _| {
            let place = ledger.place_of(device)?;
            QueueState::new(place, index, &ledger.known[place].as_ref()?.unit)
        });
    }

    fn set_policy(&mut self, policy: Policy) {
        self.desk.policy = policy;
        self.desk.pool.set_thresholds(policy.thresholds);
        self.ticker = Ticker::default();
    }

    /// Takes a burst from every ring. Returns the chains taken, and whether any ring has more.
    fn take_bursts(&mut self, cx: &mut Context) -> (usize, bool) {
        let Self { rings, desk, .. } = self;
        desk.round += 1;
        desk.throttled = false;
        let mut more = false;
        let taken = rings.serve(cx, |slot, epochs, cx| {
            let taken = serve(slot, epochs, desk, cx);
            more |= slot.queue.ring.has_work();
            taken
        });
        (taken, more)
    }

    /// Publishes what was completed, once a ring.
    fn publish(&mut self, cx: &mut Context) {
        let Self { rings, desk, .. } = self;
        rings.for_each(cx, |slot, _, cx| {
            if slot.queue.ring.unpublished() > 0 {
                slot.publish(cx);
                if let Some(state) = &mut slot.state {
                    state.published(desk);
                }
            }
        });
    }

    /// When to come back although nothing else happens.
    fn plan(&mut self, now: u64, worked: bool, more: bool, cx: &mut Context) {
        let in_flight = self.desk.engines.in_flight();
        let busy = worked || in_flight > 0 || self.desk.pool.in_flight() > 0;
        if let Some(tick) = self.ticker.looked(self.desk.policy.mode, now, busy, more) {
            self.desk.stats.ticks.add(1);
            cx.wake_at(tick);
        } else if in_flight > 0 {
            let patience =
                if self.engines_call { SAFETY_NS } else { self.desk.policy.thresholds.deadline_ns() };
            cx.wake_at(now + patience);
        }
    }
}

/// Takes a burst from one ring.
fn serve(
    slot: &mut Slot<Option<QueueState>>,
    epochs: &mut Epochs,
    desk: &mut Desk,
    cx: &mut Context,
) -> usize {
    let Some(state) = &mut slot.state else {
        slot.break_ring(Broken::Refused("the device has no such queue"));
        return 0;
    };
    if epochs.view().table().failed() {
        slot.break_ring(Broken::Refused("guest memory is shorter than announced"));
        return 0;
    }
    let now = cx.now_ns();
    let mut env = Env { desk, epochs, slot: slot.id, now, worker: &cx.stats };
    let taken = match &mut slot.queue.ring {
        Ring::Split(ring) => state.burst(ring, &mut env),
        Ring::Packed(ring) => state.burst(ring, &mut env),
    };
    if taken > 0 {
        slot.stats.requests.add(taken as u64);
        slot.stats.batch.record(taken as u64);
        cx.stats.batch.record(taken as u64);
    }
    taken
}

impl Service for CryptoService {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Context) {
        match message {
            Message::Rings(command) => self.ring_command(command, cx),
            Message::Add { device, unit, reply } => {
                self.add(device, unit);
                reply.send(());
            }
            Message::Remove { device, reply } => {
                self.remove(device);
                reply.send(());
            }
            Message::Policy(policy) => self.set_policy(policy),
            Message::Ping { reply } => reply.send(()),
        }
    }

    #[inline]
    fn poll_once(&mut self, cx: &mut Context) -> usize {
        if let Mode::Timer(_) = self.desk.policy.mode
            && !self.ticker.due(self.desk.policy.mode, cx.now_ns())
        {
            // Whatever has woken the worker early may have used up its wake-up for the tick, and kicks are off.
            self.ticker.next().into_iter().for_each(|tick| cx.wake_at(tick));
            self.rings.settle(cx);
            return 0;
        }
        let mut ended = 0;
        if self.bell.take() {
            ended += self.desk.take_answers(&mut self.rings, &cx.stats);
            self.desk.ledger.sweep();
            self.desk.forget();
        }
        let (taken, more) = self.take_bursts(cx);
        if taken > 0 || self.desk.has_work() {
            let now = cx.now_ns();
            self.desk.settle(!more, now);
            ended += self.desk.reap(&mut self.rings, !more, now, &cx.stats);
            self.desk.show();
        }
        if taken + ended > 0 {
            self.desk.forget();
            self.publish(cx);
        }
        self.rings.settle(cx);
        let worked = taken + ended + usize::from(more);
        if worked > 0 || self.ticker.running() || self.desk.has_work() {
            let now = cx.now_ns();
            self.plan(now, worked > 0, more, cx);
        }
        worked
    }

    fn completed(&mut self, _: u64, _: i32, _: &mut Context) {
        // Nothing is done by the I/O engine.
    }

    fn ready(&mut self, watch: WatchId, _: &mut Context) {
        if !self.watches.contains(&watch) {
            self.rings.kicked(watch);
        }
    }

    fn arm(&mut self) -> bool {
        // While the timer runs, its tick is what the worker waits for, whatever happens.
        !self.ticker.running() && (self.bell.is_rung() | self.rings.arm())
    }

    fn suppress(&mut self) {
        self.rings.suppress();
    }

    fn outstanding(&self) -> usize {
        self.rings.outstanding()
    }

    fn close(&mut self) {
        self.rings.close();
    }

    fn panicked(&mut self) {
        self.rings.fail();
    }
}
