//! The data path of one ring: from chains to jobs, and back to status bytes.
//!
//! [`QueueState::burst`] takes what the driver made available, as far as the ring's share of the round goes: each chain is
//! read and checked ([`accept`]), then its job is collected for a batch, or its task handed to the asymmetric pool. A chain
//! that makes no sense is answered at once and never stops the burst. [`desk::Ledger::finish`] writes the status of a
//! request and completes its chain, in whatever order requests end. Neither publishes: the worker does that once a round.

pub mod accept;
pub mod desk;
pub mod request;

use crate::ctrl;
use crate::fair::{Account, cost};
use crate::journal::Saved;
use crate::queue::accept::{Intake, Refusal};
use crate::queue::desk::{Desk, Known};
use crate::service::Unit;
use crate::stats::QueueStats;
use memory::MemoryView;
use offload::service::Env;
use runtime::rings::BURST;
use virtqueue::{Chain, DeviceRing};

/// A ring on its worker.
#[derive(Debug)]
pub struct QueueState {
    /// Its device, by place among those that the worker knows.
    device: usize,
    index: u16,
    account: Account,
    /// Sources set aside for requests that were completed and not yet published.
    saved: Vec<Saved>,
}

impl QueueState {
    /// Ring `index` of the device at `device` among those that the worker knows; `None` when it has no such ring.
    pub fn new(device: usize, index: u16, unit: &Unit) -> Option<Self> {
        let exists = usize::from(index) < unit.queue_stats().len();
        exists.then(|| Self { device, index, account: Account::default(), saved: Vec::new() })
    }

    /// The place of its device.
    pub fn device(&self) -> usize {
        self.device
    }

    /// The ring's counters.
    pub fn stats<'u>(&self, unit: &'u Unit) -> &'u QueueStats {
        &unit.queue_stats()[usize::from(self.index)]
    }

    /// Keeps a source that was set aside until the request is published.
    #[inline]
    pub fn keep(&mut self, saved: Option<Saved>) {
        self.saved.extend(saved);
    }

    /// The ring was published: what was set aside for its requests is not needed any more, and none of those on the
    /// control queue can come again.
    pub fn published(&mut self, desk: &mut Desk) {
        if let Some(journal) = &mut desk.ledger.journal {
            self.saved.drain(..).for_each(|saved| journal.release(saved));
        }
        if let Some(known) = &desk.ledger.known[self.device]
            && self.index == known.unit.control_queue()
            && let Some(vault) = known.unit.vault()
        {
            vault.settle();
        }
    }

    /// Takes what the driver made available, as far as its share goes. Returns how many chains.
    #[inline]
    pub fn burst<R: DeviceRing>(&mut self, ring: &mut R, desk: &mut Desk, env: &mut Env<'_>) -> usize {
        let Some(known) = &mut desk.ledger.known[self.device] else { return 0 };
        let mut account = self.account;
        account.begin(env.round, known.share.quantum(env.round));
        if self.index == known.unit.control_queue() {
            let taken = control(known, ring, env.epochs.view(), &mut account);
            env.throttled |= !account.may_spend() && ring.has_work();
            self.account = account;
            return taken;
        }
        let burst = account.burst(ring, |account, ring| self.take(account, ring, desk, env));
        self.account = account;
        let Some(known) = &desk.ledger.known[self.device] else { return burst.taken };
        let stats = self.stats(&known.unit);
        if burst.throttled {
            env.throttled = true;
            stats.throttled.add(1);
        }
        if burst.taken > 0 {
            stats.depth.record(u64::from(ring.in_flight()).max(burst.taken as u64));
        }
        burst.taken
    }

    /// Takes one chain. False when the burst must end: the ring is broken, or took the chain back.
    #[inline]
    fn take<R: DeviceRing>(
        &mut self,
        account: &mut Account,
        ring: &mut R,
        desk: &mut Desk,
        env: &mut Env<'_>,
    ) -> bool {
        let ledger = &mut desk.ledger;
        let Some(known) = &mut ledger.known[self.device] else { return false };
        let index = ledger.requests.take();
        let request = ledger.requests.at(index);
        let mem = env.epochs.view();
        if ring.next(mem, &mut request.chain).is_err() {
            ledger.requests.give(index);
            return false;
        }
        request.begin(env.slot, (self.device, self.index), env.now);
        let pieces = request.chain.readable().len() + request.chain.writable().len();
        let mut intake = Intake {
            unit: &known.unit,
            layout: known.unit.layout(),
            cache: &mut known.cache,
            journal: ledger.journal.as_mut(),
            place: (known.key, self.index),
            mem,
        };
        let accepted = intake.accept(request);
        if accepted.is_err() {
            // Whatever length it claims.
            request.bytes = 0;
        }
        account.spend(cost(request.weight(pieces as u64)));
        match accepted {
            Ok(accepted) if desk.is_small(index, &accepted) => {
                let saved = desk.run(index, accepted, mem, ring, env.worker);
                self.keep(saved);
            }
            Ok(accepted) => {
                desk.ledger.requests.at(index).epoch = Some(env.epochs.enter());
                desk.start(index, accepted, env.now);
            }
            Err(Refusal::Later) => {
                let back = ring.unfetch(&desk.ledger.requests.at(index).chain);
                debug_assert!(back, "it was the last one taken");
                desk.ledger.close(index);
                env.held_up = true;
                return false;
            }
            Err(refusal) => {
                let saved = desk.ledger.refuse(index, refusal, mem, ring, env.worker);
                self.keep(saved);
            }
        }
        true
    }
}

/// What a session costs its device, in bytes of a fast cipher: about as long as its keys take to be expanded and recorded.
const SESSION: u64 = 64 << 10;

/// Serves the control queue, as far as the device's share goes. Returns how many requests it had. All that come again after a
/// crash are taken before the first is published: from then on the vault takes an id that comes again for another request.
#[cold]
fn control<R: DeviceRing>(known: &Known, ring: &mut R, mem: &MemoryView, account: &mut Account) -> usize {
    let mut chain = Chain::new();
    let mut taken = 0;
    loop {
        for _ in 0..ring.fetch(BURST) {
            if ring.resubmissions() == 0 && !account.may_spend() {
                return taken;
            }
            if ring.next(mem, &mut chain).is_err() {
                return taken;
            }
            let written = ctrl::serve(&known.unit, &mut chain, mem);
            ring.complete(mem, &chain, written);
            account.spend(cost(SESSION));
            taken += 1;
        }
        if ring.resubmissions() == 0 || ring.broken().is_some() {
            return taken;
        }
    }
}
