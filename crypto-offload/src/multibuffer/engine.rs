//! The engine: AES-CBC encryption, alone or as the cipher half of a chain.
#![expect(unsafe_code, reason = "implements the contract of Engine::submit")]

use super::{Kind, Machine, Request};
use crate::algorithm::ChainOrder;
use crate::engine::library::chain_digest;
use crate::engine::{Engine, Finished, Job, KeySpec, Outcome, Prepared, Work};
use crate::keys::NoMemory;

/// Collects encryptions at submission, and does them together: when it is flushed, or when there are enough that more
/// would make none of them faster.
///
/// A request that is alone does not suffer: it takes no longer than in the library.
#[derive(Debug)]
pub struct MultiBuffer {
    machine: Machine,
    /// Jobs not yet done, and for each its request. Requests lie together, as the machine wants them.
    jobs: Vec<Job>,
    requests: Vec<Request>,
    done: Vec<(u64, Outcome)>,
}

/// Jobs that are collected at most: several for each lane, so that lanes that fall idle at the end matter little.
const MOST: usize = 256;

impl MultiBuffer {
    /// With the fastest kernel of this CPU.
    pub fn new() -> Result<Self, NoMemory> {
        Self::with(Kind::detect())
    }

    /// With this kernel.
    ///
    /// # Panics
    /// If the CPU does not have its instructions.
    pub fn with(kind: Kind) -> Result<Self, NoMemory> {
        Ok(Self {
            machine: Machine::with(kind)?,
            jobs: Vec::with_capacity(MOST),
            requests: Vec::with_capacity(MOST),
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
    unsafe fn collect(&mut self, job: &Job) {
        // SAFETY: the caller's promise: key and lists are there until the job is delivered.
        match unsafe { request(job) } {
            Some(request) => {
                self.jobs.push(*job);
                self.requests.push(request);
            }
            None => self.done.push((job.tag, Outcome::Error)),
        }
    }

    /// Does what was collected.
    fn compute(&mut self) {
        // SAFETY: the jobs are not delivered yet, so that all that they name is there, as `submit` was promised.
        unsafe {
            self.jobs.iter().for_each(|job| digest(job, ChainOrder::HashThenCipher));
            self.machine.encrypt(&mut self.requests);
            self.jobs.iter().for_each(|job| digest(job, ChainOrder::CipherThenHash));
        }
        self.requests.clear();
        self.done.extend(self.jobs.drain(..).map(|job| (job.tag, Outcome::Done { written: written(&job) })));
    }
}

impl Engine for MultiBuffer {
    fn name(&self) -> &'static str {
        "multibuffer"
    }

    fn takes(&self, key: &Prepared, _len: usize) -> bool {
        key.cbc_encrypt_key().is_some()
    }

    unsafe fn submit(&mut self, jobs: &[Job]) -> usize {
        for job in jobs {
            // SAFETY: the caller's promise.
            unsafe { self.collect(job) };
            if self.jobs.len() == MOST {
                self.compute();
            }
        }
        jobs.len()
    }

    fn flush(&mut self) {
        if !self.jobs.is_empty() {
            self.compute();
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let count = self.done.len();
        self.done.drain(..).for_each(|(tag, outcome)| done(Finished::Done(tag, outcome)));
        count
    }

    fn in_flight(&self) -> usize {
        self.jobs.len() + self.done.len()
    }
}

/// The cipher's part of a job; `None` if the job makes no sense, which was checked before.
///
/// # Safety
/// As for [`Engine::submit`].
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
unsafe fn digest(job: &Job, when: ChainOrder) {
    if !matches!(job.work, Work::Chain { .. }) {
        return;
    }
    // SAFETY: the caller's promise.
    let key = unsafe { job.key.get() };
    if matches!(key.spec(), KeySpec::Chain { order, .. } if order == when) {
        // SAFETY: the caller's promise.
        unsafe { chain_digest(key, &job.work) };
    }
}

fn written(job: &Job) -> u32 {
    match &job.work {
        Work::Chain { cipher, .. } => cipher.len as u32,
        work => work.len() as u32,
    }
}
