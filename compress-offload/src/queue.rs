//! The data path of one ring: from chains to requests that wait, and back to responses.
//!
//! A [`Desk`] takes what the driver made available, as far as the ring's share of the round goes: each chain's header is
//! copied and checked ([`accept`]), small requests are answered at once, the others are collected for a batch. A batch that is
//! submitted goes to the [`lanes`], from which the worker computes one request after the other, between looks at its rings; what
//! it can spare it packs into tasks for others (`share.rs`). A request that waits has no private memory: its source is copied
//! when it is computed or packed, and its epoch keeps the guest's memory mapped until then.
//!
//! Chains are completed in whatever order requests end, and shown to the driver once a round.

pub mod accept;
pub mod desk;
pub mod lanes;
pub mod request;
mod share;

use crate::queue::accept::{Accepted, Intake, Now, Refusal};
use crate::queue::desk::Desk;
use crate::queue::lanes::Waiting;
use crate::unit::Unit;
use compress_protocol::{Response, Status};
use offload::fair::{Account, cost};
use offload::flush::Reason;
use offload::service::Env;
use runtime::cpu::monotonic_ns;
use runtime::rings::SlotId;
use virtqueue::DeviceRing;

/// A ring on its worker.
#[derive(Debug)]
pub struct QueueState {
    /// Its device, by place among those that the worker knows.
    device: usize,
    index: u16,
    account: Account,
}

impl QueueState {
    /// Ring `index` of the device at `device` among those that the worker knows; `None` when it has no such ring.
    pub fn new(device: usize, index: u16, unit: &Unit) -> Option<Self> {
        if index >= unit.queues() {
            return None;
        }
        unit.streams(index).begin();
        Some(Self { device, index, account: Account::default() })
    }
}

/// A request that was collected, and where it will wait.
#[derive(Clone, Copy, Debug)]
pub struct Collected {
    /// Its ring.
    pub slot: SlotId,
    /// Its device, by place.
    pub device: usize,
    /// The request.
    pub waiting: Waiting,
}

impl Desk {
    /// Takes a burst from one ring.
    #[inline]
    pub(crate) fn take_burst<R: DeviceRing>(
        &mut self,
        queue: &mut QueueState,
        ring: &mut R,
        env: &mut Env<'_>,
    ) -> usize {
        let QueueState { device, index, .. } = *queue;
        let Some(known) = &mut self.known[device] else { return 0 };
        known.refresh();
        queue.account.begin(env.round, known.share.quantum(env.round));
        let burst = queue.account.burst(ring, |account, ring| self.take((device, index), account, ring, env));
        env.throttled = burst.throttled;
        if burst.taken > 0
            && let Some(known) = &self.known[device]
        {
            let stats = known.stats(index);
            stats.depth.record(u64::from(ring.in_flight()).max(burst.taken as u64));
            if burst.throttled {
                stats.throttled.add(1);
            }
        }
        burst.taken
    }

    /// Takes one chain and pays for it. False when there was none: the ring is broken.
    #[inline]
    fn take<R: DeviceRing>(
        &mut self,
        place: (usize, u16),
        account: &mut Account,
        ring: &mut R,
        env: &mut Env<'_>,
    ) -> bool {
        let Some(known) = &mut self.known[place.0] else { return false };
        let index = self.requests.take();
        let request = self.requests.at(index);
        let mem = env.epochs.view();
        if ring.next(mem, &mut request.chain).is_err() {
            self.requests.give(index);
            return false;
        }
        request.begin(env.slot, place, env.now);
        let mut intake = Intake {
            unit: &known.unit,
            rules: &known.rules,
            features: known.features,
            verifiable: &mut known.verifiable,
            mem,
        };
        let accepted = intake.accept(request);
        account.spend(cost(request.weight()));
        match accepted {
            Ok(Accepted::Job) => self.start(index, ring, env),
            Ok(Accepted::Now(asked)) => {
                let response = self.at_once(index, asked, env);
                self.end(index, response, env.epochs.view(), ring, (env.now, env.worker));
            }
            Err(Refusal::Status(status)) => {
                self.end(index, Response::bare(status, 0), env.epochs.view(), ring, (env.now, env.worker));
            }
            Err(Refusal::NoResponse) => self.drop_malformed(index, env.epochs.view(), ring),
        }
        true
    }

    /// A request has something to compute: at once when it is small, else with others.
    #[inline]
    fn start<R: DeviceRing>(&mut self, index: u32, ring: &mut R, env: &mut Env<'_>) {
        let request = self.requests.at(index);
        let bytes = request.job.weight();
        if request.job.stream().is_none() && self.collector.is_small(bytes as usize) {
            let mem = env.epochs.view();
            let response = self.compute_here(index, None, mem);
            self.count(index, |stats| stats.inline.add(1));
            return self.end(index, response, mem, ring, (monotonic_ns(), env.worker));
        }
        request.epoch = Some(env.epochs.enter());
        let (slot, device, group) = (request.slot, request.device, request.group());
        let collected = Collected { slot, device, waiting: Waiting { request: index, bytes } };
        if self.collector.collect(group, collected, bytes, env.now) {
            self.submit(Reason::Full);
        }
    }

    /// What needs no computing.
    #[cold]
    fn at_once(&mut self, index: u32, asked: Now, env: &mut Env<'_>) -> Response {
        let request = self.requests.at(index);
        let Some(known) = &self.known[request.device] else { return Response::bare(Status::Error, 0) };
        match asked {
            Now::GetConfig => {
                let config = known.rules.config.encode();
                match request.chain.write_at(env.epochs.view(), 0, &config) {
                    Ok(()) => Response { produced: config.len() as u32, ..Response::bare(Status::Ok, 0) },
                    Err(_) => Response::bare(Status::Error, 0),
                }
            }
            Now::Open(direction, params) => known.open_stream(request.queue, direction, &params),
            Now::Close(id) => match known.unit.streams(request.queue).close(id) {
                true => Response::bare(Status::Ok, 0),
                false => Response::bare(Status::BadStream, 0),
            },
        }
    }
}

#[cfg(test)]
mod tests;
