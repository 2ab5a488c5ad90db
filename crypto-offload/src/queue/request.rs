//! A request from fetch to completion.

use crate::algorithm::Service;
use crate::engine::{Outcome, Prepared, Work};
use crate::journal::Saved;
use crate::session::SessionId;
use crate::stats::Algo;
use crate::wire::status::Status;
use memory::Epoch;
use runtime::rings::SlotId;
use std::sync::Arc;
use virtqueue::Chain;

/// Room for additional data that a request leaves to its successor in the same place.
const AAD_KEPT: usize = 4096;

/// Buffers that every request may have, and bytes for which it may have another: two for a page, source and destination.
const PIECES: u64 = 16;
const PIECE: u64 = 2048;
/// What each further buffer counts for: about the time that it takes to translate it and to walk over it.
const CRUMB: u64 = 64;

/// A request in flight. What engines hold pointers to lies on the heap behind it: the segments of the chain and the
/// additional data, neither of which changes before the request has ended.
pub struct Request {
    /// Its descriptors.
    pub chain: Chain,
    /// Its ring.
    pub slot: SlotId,
    /// Its device, by place among those that the worker knows.
    pub device: usize,
    /// The index of its ring within the device.
    pub queue: u16,
    /// Held while an engine or the pool has it.
    pub epoch: Option<Epoch>,
    /// The session it was begun with.
    pub session: Option<SessionId>,
    /// Keys it has brought itself.
    pub own: Option<Arc<Prepared>>,
    /// Its service.
    pub service: Service,
    /// Its algorithm.
    pub algo: Algo,
    /// What an engine is to do. Meaningless until it was accepted.
    pub work: Work,
    /// Bytes of source data.
    pub bytes: u64,
    /// Bytes of result that a success has written, or could have.
    pub reply: u32,
    /// When it was fetched.
    pub started: u64,
    /// Additional authenticated data.
    pub aad: Vec<u8>,
    /// Its source, set aside for a process that takes over.
    pub saved: Option<Saved>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            chain: Chain::new(),
            slot: SlotId(0),
            device: 0,
            queue: 0,
            epoch: None,
            session: None,
            own: None,
            service: Service::Cipher,
            algo: Algo::Other,
            work: Work::NONE,
            bytes: 0,
            reply: 0,
            started: 0,
            aad: Vec::new(),
            saved: None,
        }
    }
}

impl Request {
    /// Forgets the previous request, but not its allocations.
    #[inline]
    pub fn begin(&mut self, slot: SlotId, (device, queue): (usize, u16), now: u64) {
        (self.slot, self.device, self.queue, self.started) = (slot, device, queue, now);
        (self.service, self.algo) = (Service::Cipher, Algo::Other);
        (self.bytes, self.reply) = (0, 0);
        self.aad.clear();
    }

    /// What it is to its worker, in bytes: what is worked on, and what there is of its `pieces` beyond those that so many
    /// bytes take.
    #[inline]
    pub fn weight(&self, pieces: u64) -> u64 {
        let crumbs = pieces.saturating_sub(PIECES + self.bytes / PIECE);
        self.bytes + self.aad.len() as u64 + crumbs * CRUMB
    }

    /// Gives back what an unusual request has allocated.
    #[inline]
    pub fn end(&mut self) {
        self.own = None;
        self.chain.trim();
        if self.aad.capacity() > AAD_KEPT {
            self.aad = Vec::new();
        }
    }
}

/// The status of an outcome.
#[inline]
pub fn status_of(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Done { .. } => Status::Ok,
        Outcome::BadMessage => Status::BadMsg,
        Outcome::KeyRejected => Status::KeyRejected,
        Outcome::Error => Status::Err,
        Outcome::NotSupported => Status::NotSupp,
    }
}
