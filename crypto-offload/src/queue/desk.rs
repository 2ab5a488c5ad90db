//! What a worker has beside its rings: the requests in flight, the batch, the engines, and how requests end.

#![expect(unsafe_code, reason = "submits jobs that name guest memory to the engines")]

use crate::algorithm::{Akcipher, KeyKind};
use crate::asym::{Answer, Client, Task};
use crate::engine::{Engines, Group, Job, KeyId, KeySpec, Outcome, Prepared};
use crate::fair::Share;
use crate::flush::{Policy, Reason};
use crate::journal::{Journal, Saved, device_key};
use crate::queue::QueueState;
use crate::queue::accept::{Accepted, Refusal};
use crate::queue::request::{Request, status_of};
use crate::service::Unit;
use crate::session::Cache;
use crate::stats::{QueueStats, ServiceStats};
use crate::wire::status::Status;
use memory::MemoryView;
use offload::collector::Collector;
use offload::service::{Look, OffloadRings};
use offload::slab::Slab;
use runtime::cpu::monotonic_ns;
use runtime::rings::SlotId;
use runtime::stats::WorkerStats;
use std::sync::Arc;
use virtqueue::DeviceRing;

/// Requests of a ring that have ended are shown to its driver when there are more than so many, and not only at the end of the
/// round: a driver that polls then makes the next ones while the engines compute, and neither waits for the other. As many as
/// the widest engine has lanes, so that a driver that sends as many as it got back keeps them full.
const SHOWN_AT_ONCE: u16 = 16;

/// A device as one worker knows it.
pub struct Known {
    /// Its number.
    pub device: u32,
    /// What its session thread and its workers share.
    pub unit: Arc<Unit>,
    /// Its sessions.
    pub cache: Cache,
    /// How its rings share their quantum.
    pub share: Share,
    /// Its number for the journal, which its successor has too.
    pub key: u64,
}

impl Known {
    /// A device with this number.
    pub fn new(device: u32, unit: Arc<Unit>, cache: Cache) -> Self {
        let key = device_key(unit.id());
        Self { device, unit, cache, share: Share::default(), key }
    }
}

/// The requests of a worker and whose they are.
#[derive(Default)]
pub struct Ledger {
    /// The devices. Places stay while a device is known.
    pub known: Vec<Option<Known>>,
    /// Requests in flight.
    pub requests: Slab<Request>,
    /// Where the sources of requests in place are set aside for a process that takes over.
    pub journal: Option<Journal>,
    /// Keys of stateless requests that have ended, which engines may still know by name.
    gone: Vec<KeyId>,
}

/// The rings of a worker; without a state when their device is not known.
pub type CryptoRings = OffloadRings<QueueState>;

impl Ledger {
    /// Ends request `tag`: its status, its chain, its counters. `output` is the result of an asymmetric one.
    pub fn finish(
        &mut self,
        rings: &mut CryptoRings,
        tag: u64,
        (outcome, output): (Outcome, Option<&[u8]>),
        (now, worker): (u64, &WorkerStats),
    ) {
        let index = tag as u32;
        let Some(request) = self.requests.get_mut(index) else { return };
        let Some((slot, epochs)) = rings.slot(request.slot) else { return };
        let Some(epoch) = request.epoch.take() else { return };
        if slot.queue.ring.unpublished() >= SHOWN_AT_ONCE {
            slot.show_early();
        }
        let mem = epochs.view_of(epoch);
        let (status, reply) = match output {
            Some(output) => put_output(request, mem, outcome, output),
            None => (status_of(outcome), request.reply),
        };
        answer(request, mem, status, reply, &mut slot.queue.ring);
        epochs.leave(epoch);
        if let Some(state) = &mut slot.state {
            state.keep(request.saved.take());
        }
        let took = now.saturating_sub(request.started);
        let service = request.service;
        if let Some(stats) = self.count(index, status, worker) {
            stats.took(service, took, 1);
            worker.latency_ns.record(took);
        }
        self.close(index);
    }

    /// Answers a request that cannot be tried.
    #[cold]
    pub fn refuse(
        &mut self,
        index: u32,
        refusal: Refusal,
        mem: &MemoryView,
        ring: &mut impl DeviceRing,
        worker: &WorkerStats,
    ) -> Option<Saved> {
        let request = self.requests.at(index);
        let saved = request.saved.take();
        match refusal {
            Refusal::Status(status) => {
                answer(request, mem, status, 0, ring);
                self.count(index, status, worker);
            }
            Refusal::NoStatus | Refusal::Later => {
                ring.complete(mem, &request.chain, 0);
                if let Some(known) = &self.known[request.device] {
                    known.unit.queue_stats()[usize::from(request.queue)].malformed.add(1);
                }
            }
        }
        self.close(index);
        saved
    }

    /// Counts a request that has ended. Returns the counters of its ring.
    #[inline]
    fn count(&mut self, index: u32, status: Status, worker: &WorkerStats) -> Option<&QueueStats> {
        let request = self.requests.at(index);
        let known = self.known[request.device].as_ref()?;
        let stats = &known.unit.queue_stats()[usize::from(request.queue)];
        worker.requests.add(1);
        worker.bytes.add(request.bytes);
        stats.completed(request.algo, request.bytes, status);
        if request.own.is_some() {
            stats.stateless.add(1);
        }
        if request.chain.token().resubmitted() {
            stats.resubmitted.add(1);
        }
        Some(stats)
    }

    /// Lets go of whatever request `index` holds, and of the request.
    pub fn close(&mut self, index: u32) {
        let Some(request) = self.requests.get_mut(index) else { return };
        if let Some(session) = request.session.take()
            && let Some(known) = &mut self.known[request.device]
        {
            known.cache.release(session);
        }
        self.gone.extend(request.own.take().map(|key| key.id()));
        request.end();
        self.requests.give(index);
    }

    /// Tells the engines which keys are gone.
    fn forget(&mut self, engines: &mut Engines) {
        self.gone.drain(..).for_each(|key| engines.forget(key));
        for known in self.known.iter_mut().flatten() {
            known.cache.forgotten(|key| engines.forget(key));
        }
    }

    /// The place of a device.
    pub fn place_of(&self, device: u32) -> Option<usize> {
        self.known.iter().position(|known| known.as_ref().is_some_and(|known| known.device == device))
    }

    /// Lets go of closed sessions.
    pub fn sweep(&mut self) {
        self.known.iter_mut().flatten().for_each(|known| known.cache.sweep());
    }
}

/// Writes the status of a request and completes its chain; `reply` bytes of result come before the status.
#[inline]
fn answer(request: &Request, mem: &MemoryView, status: Status, reply: u32, ring: &mut impl DeviceRing) {
    let written = request.chain.write_status(mem, status as u8).map_or(0, |()| reply + 1);
    ring.complete(mem, &request.chain, written);
}

/// Copies the result of an asymmetric request to the guest. Returns its status, and how long the result is.
fn put_output(request: &Request, mem: &MemoryView, outcome: Outcome, output: &[u8]) -> (Status, u32) {
    let Outcome::Done { written } = outcome else { return (status_of(outcome), 0) };
    let result = output.get(..written as usize).filter(|_| written <= request.reply);
    match result.map(|result| request.chain.write_at(mem, 0, result)) {
        Some(Ok(())) => (Status::Ok, written),
        // The driver's buffer is too short for the result.
        Some(Err(_)) | None => (Status::Err, 0),
    }
}

/// What a worker works with.
pub struct Desk {
    /// Requests and devices.
    pub ledger: Ledger,
    /// What computes here.
    pub engines: Engines,
    /// What computes elsewhere.
    pub pool: Client,
    /// Jobs not yet submitted, and when to submit them.
    pub collector: Collector<Job>,
    /// Counters.
    pub stats: Arc<ServiceStats>,
    /// Since when the engines have had jobs that they were not told to start.
    unflushed: Option<u64>,
    answers: Vec<Answer>,
}

impl Desk {
    /// Nothing in flight.
    pub fn new(engines: Engines, pool: Client, policy: Policy, stats: Arc<ServiceStats>) -> Self {
        Self {
            ledger: Ledger::default(),
            engines,
            pool,
            collector: Collector::new(Group::COUNT, policy),
            stats,
            unflushed: None,
            answers: Vec::new(),
        }
    }

    /// Whether jobs were collected or are with the engines.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.collector.jobs() > 0 || self.engines.in_flight() > 0
    }

    /// Whether a request is answered at once.
    #[inline]
    pub fn is_small(&mut self, index: u32, accepted: &Accepted) -> bool {
        let bytes = self.ledger.requests.at(index).work.len();
        matches!(accepted, Accepted::Job { .. }) && self.collector.is_small(bytes)
    }

    /// Starts request `index`, of which `accepted` was made: its job is collected, and the batch submitted when that makes
    /// it full; or its task goes to the pool.
    #[inline(always)]
    pub fn start(&mut self, index: u32, accepted: Accepted, now: u64) {
        let tag = u64::from(index);
        match accepted {
            Accepted::Job { key, group } => {
                let work = self.ledger.requests.at(index).work;
                let bytes = work.len() as u64;
                if self.collector.collect(group.index(), Job { tag, key, work }, bytes, now) {
                    self.submit(Reason::Full, now);
                }
            }
            Accepted::Task { key, op, input, digest } => {
                let device = self.ledger.requests.at(index).device as u32;
                let slow = is_slow(&key);
                self.pool.submit(Task { tag, device, key, op, input, digest, slow });
            }
        }
    }

    /// Computes request `index`, of which `accepted` was made, and ends it.
    #[inline]
    pub fn run(
        &mut self,
        index: u32,
        accepted: Accepted,
        mem: &MemoryView,
        ring: &mut impl DeviceRing,
        worker: &WorkerStats,
    ) -> Option<Saved> {
        let Accepted::Job { key, .. } = accepted else { return None };
        let work = self.ledger.requests.at(index).work;
        // SAFETY: as in `submit`; `mem` is borrowed meanwhile, and the job has ended when this returns.
        let outcome = unsafe { self.engines.run(&Job { tag: index.into(), key, work }) };
        let request = self.ledger.requests.at(index);
        let status = status_of(outcome);
        answer(request, mem, status, request.reply, ring);
        let saved = request.saved.take();
        if let Some(stats) = self.ledger.count(index, status, worker) {
            stats.inline.add(1);
        }
        self.ledger.close(index);
        saved
    }

    fn submit(&mut self, reason: Reason, now: u64) {
        let engines = &mut self.engines;
        // SAFETY: every job is of a request in the slab. Its ranges are made of the segments of the request's chain, which
        // do not move or change before the request has ended, and name guest memory of the epoch that the request holds;
        // its additional data is in the request, its key in the request or in the cache of its device, where it is counted
        // as in flight. All of it is let go of in `Ledger::finish`, which is called with the job's outcome.
        self.collector.submit(reason, &self.stats, |jobs| unsafe { engines.submit(jobs) });
        self.unflushed.get_or_insert(now);
    }

    /// After all rings were looked at: submits what was collected, if it is time to.
    pub fn settle(&mut self, look: Look) {
        if let Some(reason) = self.collector.due(look) {
            self.submit(reason, look.now);
        }
        let deadline = self.collector.policy.thresholds.deadline_ns();
        if self.unflushed.is_some_and(|since| {
            look.rings_empty || look.throttled || look.now.saturating_sub(since) >= deadline
        }) {
            self.unflushed = None;
            self.engines.flush();
        }
    }

    /// Ends what the engines have done, if it is time to look. Returns how many requests.
    pub fn reap(&mut self, rings: &mut CryptoRings, look: Look, worker: &WorkerStats) -> usize {
        if !self.collector.reap(self.engines.in_flight(), look, &self.stats) {
            return 0;
        }
        let (ledger, at) = (&mut self.ledger, (monotonic_ns(), worker));
        let reaped = self.engines.poll(&mut |tag, outcome| ledger.finish(rings, tag, (outcome, None), at));
        self.ledger.forget(&mut self.engines);
        reaped
    }

    /// Ends what the asymmetric pool has done. Returns how many requests.
    pub fn take_answers(&mut self, rings: &mut CryptoRings, worker: &WorkerStats) -> usize {
        let mut answers = std::mem::take(&mut self.answers);
        self.pool.collect(&mut answers);
        let taken = answers.len();
        if taken > 0 {
            let at = (monotonic_ns(), worker);
            for Answer { tag, outcome, output } in answers.drain(..) {
                self.ledger.finish(rings, tag, (outcome, Some(&output)), at);
            }
            self.stats.asym.add(taken as u64);
            self.stats.asym_batch.record(taken as u64);
        }
        self.answers = answers;
        taken
    }

    /// Gives a ring back what was taken from it last and waits for a thread of the pool: it is to stop, and public-key
    /// operations take long.
    #[cold]
    pub fn take_back(&mut self, rings: &mut CryptoRings, slot: SlotId) {
        let Some((slot, epochs)) = rings.slot(slot) else { return };
        let (ledger, ring) = (&mut self.ledger, &mut slot.queue.ring);
        self.pool.take_back(slot.device, |tag| {
            let index = tag as u32;
            let Some(request) = ledger.requests.get_mut(index).filter(|request| request.slot == slot.id)
            else {
                return false;
            };
            if !ring.unfetch(&request.chain) {
                return false;
            }
            request.epoch.take().into_iter().for_each(|epoch| epochs.leave(epoch));
            if let (Some(saved), Some(journal)) = (request.saved.take(), &mut ledger.journal) {
                journal.release(saved);
            }
            ledger.close(index);
            true
        });
    }

    /// Has the engines let go of the keys that are gone.
    #[inline]
    pub fn forget(&mut self) {
        self.ledger.forget(&mut self.engines);
    }

    /// Shows the figures that are kept elsewhere.
    pub fn show(&self) {
        let counters = self.engines.counters();
        self.stats.fallbacks.set(counters.fallbacks);
        self.stats.busy.set(counters.overflowed);
        self.stats.in_flight.set(self.engines.in_flight() as u64);
        self.stats.collected.set(self.collector.jobs() as u64);
        self.stats.asym_in_flight.set(self.pool.in_flight() as u64);
    }
}

/// Whether an operation with this key takes long enough to be waited for by others: private RSA.
fn is_slow(key: &Prepared) -> bool {
    let rsa = |algorithm| matches!(algorithm, Akcipher::Rsa { .. });
    matches!(key.spec(), KeySpec::Akcipher { algorithm, kind: KeyKind::Private, .. } if rsa(algorithm))
}
