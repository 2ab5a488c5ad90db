//! The requests of one queue, and whether what came back is right.

use super::algorithm::Algorithm;
use super::client::{Completion, Queue, Setup};
use super::library::{Keys, LibraryError};
use super::options::Load;
use super::sample::{Sample, Samples};
use super::wire::status;
use crate::guest::{Finished, Ring, RingError, Verified, Workload};

/// One queue's part of a load: its slots belong to its jobs in turn.
pub struct Requests {
    queue: Queue,
    name: String,
    /// Bytes that a request counts for.
    bytes: u64,
    /// By job, with `--verify`.
    samples: Vec<Samples>,
    /// By slot, with `--verify`.
    in_flight: Vec<Sample>,
    result: Vec<u8>,
    verified: Verified,
    /// The library failed where it cannot.
    failure: Option<LibraryError>,
}

impl Requests {
    /// Queue `index` with the keys and sessions of its jobs.
    pub fn new(
        index: u16,
        queue: Queue,
        setup: &Setup,
        load: &Load,
        jobs: &[(Keys, Option<u64>)],
    ) -> Result<Self, LibraryError> {
        let mut samples = Vec::new();
        for (job, (keys, _)) in jobs.iter().enumerate() {
            let seed = load.seed ^ (u64::from(index) << 32) ^ (job as u64 + 1) << 40;
            samples.push(Samples::new(setup.algorithm, setup.direction, setup.size, keys, seed)?);
        }
        let sizes = setup.algorithm.sizes(setup.direction, setup.size);
        let heads = jobs.iter().map(|(keys, session)| setup.task(keys).head(sizes, *session, setup.format));
        let heads: Vec<Vec<u8>> = heads.collect();
        for slot in 0..queue.depth() {
            let job = usize::from(slot) % jobs.len();
            queue.set_head(slot, &heads[job]);
            let sample = samples[job].make()?;
            queue.set_data(slot, &sample.iv, &sample.src);
        }
        Ok(Self {
            name: setup.algorithm.to_string(),
            bytes: counted_bytes(setup),
            in_flight: if load.verify { vec![Sample::default(); queue.depth().into()] } else { Vec::new() },
            samples: if load.verify { samples } else { Vec::new() },
            queue,
            result: Vec::new(),
            verified: Verified::default(),
            failure: None,
        })
    }

    /// The queue, for an orderly detach, and what was verified.
    pub fn into_parts(self) -> Result<(Queue, Verified), LibraryError> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok((self.queue, self.verified)),
        }
    }

    fn samples_of(&mut self, slot: u16) -> &mut Samples {
        let job = usize::from(slot) % self.samples.len();
        &mut self.samples[job]
    }

    #[cold]
    fn prepare(&mut self, slot: u16) -> bool {
        match self.samples_of(slot).make() {
            Ok(sample) => {
                self.queue.set_data(slot, &sample.iv, &sample.src);
                self.in_flight[usize::from(slot)] = sample;
                true
            }
            Err(failure) => {
                self.failure = Some(failure);
                false
            }
        }
    }

    #[cold]
    fn check(&mut self, completion: Completion) {
        let Completion { slot, written, .. } = completion;
        let mut result = std::mem::take(&mut self.result);
        self.queue.result(slot, &mut result);
        let sample = std::mem::take(&mut self.in_flight[usize::from(slot)]);
        // The status is the last byte.
        let right = self.samples_of(slot).is_right(&sample, &result, written.saturating_sub(1) as usize);
        self.verified.note(right, || mismatch(&self.name, &sample, &result));
        self.result = result;
    }
}

/// Public-key operations count no bytes: they are numbers, not data.
fn counted_bytes(setup: &Setup) -> u64 {
    match setup.algorithm {
        Algorithm::Rsa(_) | Algorithm::Ecdsa(_) => 0,
        _ => setup.size as u64,
    }
}

/// Where a result differs.
fn mismatch(name: &str, sample: &Sample, result: &[u8]) -> String {
    let Some(expected) = &sample.expected else { return format!("{name}: the signature is not valid") };
    let at = expected.iter().zip(result).position(|(left, right)| left != right);
    let at = at.unwrap_or(expected.len().min(result.len()));
    let byte = |bytes: &[u8]| bytes.get(at).map_or("-".to_owned(), |byte| format!("{byte:#04x}"));
    format!(
        "{name}, {} bytes: byte {at} of the result is {} instead of {}",
        sample.src.len(),
        byte(result),
        byte(expected)
    )
}

impl Workload for Requests {
    fn ring(&mut self) -> &mut Ring {
        &mut self.queue.requests.ring
    }

    fn depth(&self) -> u16 {
        self.queue.depth()
    }

    #[inline]
    fn submit(&mut self, slot: u16) -> bool {
        if !self.samples.is_empty() && !self.prepare(slot) {
            return false;
        }
        self.queue.submit(slot);
        true
    }

    #[inline]
    fn harvest(&mut self) -> Result<Option<Finished>, RingError> {
        let Some(completion) = self.queue.harvest()? else { return Ok(None) };
        let error = (completion.status != status::OK).then_some(completion.status);
        if !self.samples.is_empty() && error.is_none() {
            self.check(completion);
        }
        Ok(Some(Finished { slot: completion.slot, bytes: self.bytes, error }))
    }
}
