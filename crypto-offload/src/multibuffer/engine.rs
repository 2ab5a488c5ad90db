//! The engine: AES-CBC encryption, alone or as the cipher half of a chain.
#![expect(unsafe_code, reason = "implements the contract of Engine::submit")]

use super::{Kind, Machine, Request};
use crate::algorithm::ChainOrder;
use crate::engine::library::chain_digest;
use crate::engine::{Choice, Engine, Finished, Job, KeySpec, Outcome, Prepared, Work};
use crate::keys::NoMemory;

/// Collects encryptions at submission, and does them together: when it is flushed, or when there are enough that more
/// would make none of them faster.
///
/// A request that is alone does not suffer: it takes no longer than in the library.
#[derive(Debug)]
pub struct MultiBuffer {
    machine: Machine,
    /// Shorter jobs are not taken.
    shortest: usize,
    /// Collected, not yet done; what will be said of each; and those of the jobs that are chains.
    requests: Vec<Request>,
    outcomes: Vec<(u64, Outcome)>,
    chains: Vec<Job>,
    /// To be delivered.
    done: Vec<(u64, Outcome)>,
}

/// Jobs that are collected at most: several for each lane, so that lanes that fall idle at the end matter little.
const MOST: usize = 256;

/// Below, the library is faster at every depth: what a request costs besides its blocks counts for more than these.
const SHORTEST: usize = 128;

impl MultiBuffer {
    /// With the fastest kernel of this CPU. [`Choice::MultiBuffer`] takes encryptions of every length.
    pub fn new(choice: Choice) -> Result<Self, NoMemory> {
        let shortest = if choice == Choice::MultiBuffer { 0 } else { SHORTEST };
        Ok(Self { shortest, ..Self::with(Kind::detect())? })
    }

    /// With this kernel, for encryptions of every length.
    ///
    /// # Panics
    /// If the CPU does not have its instructions.
    pub fn with(kind: Kind) -> Result<Self, NoMemory> {
        Ok(Self {
            machine: Machine::with(kind)?,
            shortest: 0,
            requests: Vec::with_capacity(MOST),
            outcomes: Vec::with_capacity(MOST),
            chains: Vec::new(),
            done: Vec::with_capacity(MOST),
        })
    }

    /// What it is on this machine; `None` where it is not faster than the library.
    pub fn describe() -> Option<String> {
        let kind = Kind::detect();
        (kind != Kind::Portable).then(|| format!("{} lanes, {kind}", kind.lanes()))
    }

    /// # Safety
    /// As for [`Engine::submit`].
    #[inline]
    unsafe fn collect(&mut self, job: &Job) {
        // SAFETY: the caller's promise: key and lists are there until the job is delivered.
        let Some(request) = (unsafe { request(job) }) else {
            return self.done.push((job.tag, Outcome::Error));
        };
        self.outcomes.push((job.tag, Outcome::Done { written: request.remaining() as u32 }));
        self.requests.push(request);
        if matches!(job.work, Work::Chain { .. }) {
            self.chains.push(*job);
        }
    }

    /// Does what was collected.
    fn compute(&mut self) {
        // SAFETY: the jobs are not delivered yet, so that all that they name is there, as `submit` was promised.
        unsafe {
            self.chains.iter().for_each(|job| digest(job, ChainOrder::HashThenCipher));
            self.machine.encrypt(&mut self.requests);
            self.chains.iter().for_each(|job| digest(job, ChainOrder::CipherThenHash));
        }
        self.requests.clear();
        self.chains.clear();
        if self.done.is_empty() {
            std::mem::swap(&mut self.done, &mut self.outcomes);
        } else {
            self.done.append(&mut self.outcomes);
        }
    }
}

impl Engine for MultiBuffer {
    fn name(&self) -> &'static str {
        "multibuffer"
    }

    fn takes(&self, key: &Prepared, len: usize) -> bool {
        len >= self.shortest && key.cbc_encrypt_key().is_some()
    }

    unsafe fn submit(&mut self, jobs: &[Job]) -> usize {
        for job in jobs {
            // SAFETY: the caller's promise.
            unsafe { self.collect(job) };
            if self.requests.len() == MOST {
                self.compute();
            }
        }
        jobs.len()
    }

    fn flush(&mut self) {
        if !self.requests.is_empty() {
            self.compute();
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let count = self.done.len();
        self.done.drain(..).for_each(|(tag, outcome)| done(Finished::Done(tag, outcome)));
        count
    }

    fn in_flight(&self) -> usize {
        self.requests.len() + self.done.len()
    }
}

/// The cipher's part of a job; `None` if the job makes no sense, which was checked before.
///
/// # Safety
/// As for [`Engine::submit`].
#[inline]
unsafe fn request(job: &Job) -> Option<Request> {
    // SAFETY: the caller's promise.
    let key = unsafe { job.key.get() }.cbc_encrypt_key()?;
    let (iv, src, dst) = match &job.work {
        Work::Cipher { iv, src, dst } => (iv, *src, dst),
        Work::Chain { iv, src, cipher, dst, .. } => (iv, src.sub(cipher.start, cipher.len)?, dst),
        _ => return None,
    };
    // SAFETY: the caller's promise, for the key and for the lists of the ranges.
    unsafe { Request::new(key, iv.block(), &src, dst) }
}

/// The hash half of a chain, if its order is this one.
///
/// # Safety
/// As for [`Engine::submit`].
unsafe fn digest(chain: &Job, when: ChainOrder) {
    // SAFETY: the caller's promise.
    let key = unsafe { chain.key.get() };
    if matches!(key.spec(), KeySpec::Chain { order, .. } if order == when) {
        // SAFETY: the caller's promise.
        unsafe { chain_digest(key, &chain.work) };
    }
}
