//! The engine: AES-CBC encryption, alone or as the cipher half of a chain.
#![expect(unsafe_code, reason = "implements the contract of Engine::submit")]

use super::{Kind, Machine, Request};
use crate::algorithm::ChainOrder;
use crate::engine::library::chain_digest;
use crate::engine::{Choice, Engine, Finished, Job, KeySpec, Outcome, Prepared, Work};
use crate::keys::NoMemory;

/// Collects encryptions at submission, and does them together at the poll after a flush, or when there are enough that
/// more would make none of them faster. Each one is delivered as soon as it is encrypted.
///
/// A request that is alone does not suffer: it takes no longer than in the library.
#[derive(Debug)]
pub struct MultiBuffer {
    machine: Machine,
    /// Shorter jobs are not taken.
    shortest: usize,
    /// Collected, not yet done; what will be said of each; and those of the jobs that are chains, by index.
    requests: Vec<Request>,
    outcomes: Vec<(u64, Outcome)>,
    chains: Vec<(usize, Job)>,
    /// Jobs that make no sense.
    refused: Vec<u64>,
    /// The next poll does what was collected.
    flushed: bool,
}

/// Jobs that are worth a start by themselves: several for each lane, so that lanes that fall idle at the end matter little.
const ENOUGH: usize = 256;

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
            requests: Vec::with_capacity(ENOUGH),
            outcomes: Vec::with_capacity(ENOUGH),
            chains: Vec::new(),
            refused: Vec::new(),
            flushed: false,
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
            return self.refused.push(job.tag);
        };
        if matches!(job.work, Work::Chain { .. }) {
            self.chains.push((self.requests.len(), *job));
        }
        self.outcomes.push((job.tag, Outcome::Done { written: request.remaining() as u32 }));
        self.requests.push(request);
    }

    /// Does what was collected.
    fn compute(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let Self { machine, requests, outcomes, chains, .. } = self;
        // SAFETY: the jobs are not delivered yet, so that all that they name is there, as `submit` was promised.
        unsafe {
            chains.iter().for_each(|(_, job)| digest(job, ChainOrder::HashThenCipher));
            machine.encrypt(requests, &mut |index| {
                if let Ok(chain) = chains.binary_search_by_key(&index, |chain| chain.0) {
                    digest(&chains[chain].1, ChainOrder::CipherThenHash);
                }
                let (tag, outcome) = outcomes[index];
                done(Finished::Done(tag, outcome));
            });
        }
        let count = requests.len();
        requests.clear();
        outcomes.clear();
        chains.clear();
        count
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
        }
        self.flushed |= self.requests.len() >= ENOUGH;
        jobs.len()
    }

    fn flush(&mut self) {
        self.flushed = true;
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let refused = self.refused.len();
        self.refused.drain(..).for_each(|tag| done(Finished::Done(tag, Outcome::Error)));
        if std::mem::take(&mut self.flushed) { refused + self.compute(done) } else { refused }
    }

    fn in_flight(&self) -> usize {
        self.requests.len() + self.refused.len()
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
