//! The jobs that a worker collected and has not yet submitted, grouped by algorithm, direction and key size: an engine
//! that works on several requests at once needs them to be alike.

use crate::engine::{Group, Job};

/// The collected jobs of one worker.
pub struct Batch {
    /// By [`Group::index`]. The vectors keep their room.
    groups: Box<[Vec<Job>]>,
    /// Groups with jobs, in the order of their first one.
    active: Vec<u16>,
    jobs: usize,
    bytes: u64,
    since: u64,
}

impl Default for Batch {
    fn default() -> Self {
        let groups = (0..Group::COUNT).map(|_| Vec::new()).collect();
        Self { groups, active: Vec::new(), jobs: 0, bytes: 0, since: 0 }
    }
}

impl Batch {
    /// Nothing collected.
    pub fn new() -> Self {
        Self::default()
    }

    /// Collects a job, which came at `now`.
    #[inline(always)]
    pub fn push(&mut self, group: Group, job: Job, now: u64) {
        if self.jobs == 0 {
            self.since = now;
        }
        self.jobs += 1;
        self.bytes += job.work.len() as u64;
        let jobs = &mut self.groups[group.index()];
        if jobs.is_empty() {
            self.active.push(group.index() as u16);
        }
        jobs.push(job);
    }

    /// Hands each group to `submit` and is empty afterwards.
    pub fn drain(&mut self, mut submit: impl FnMut(&[Job])) {
        for group in self.active.drain(..) {
            let jobs = &mut self.groups[usize::from(group)];
            submit(jobs);
            jobs.clear();
        }
        (self.jobs, self.bytes) = (0, 0);
    }

    /// Jobs collected.
    #[inline]
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// Their bytes.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long the oldest has waited.
    #[inline]
    pub fn age_ns(&self, now: u64) -> u64 {
        if self.jobs == 0 { 0 } else { now.saturating_sub(self.since) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Cipher, Direction};
    use crate::engine::{Iv, KeyRef, KeySpec, Prepared, Ranges, Work};
    use std::sync::Arc;

    fn key(len: usize, direction: Direction) -> Arc<Prepared> {
        Prepared::new(&KeySpec::Cipher { cipher: Cipher::AesCbc, direction, key: &[7; 32][..len] }).unwrap()
    }

    fn job(tag: u64, key: &Prepared) -> Job {
        let work = Work::Cipher { iv: Iv::EMPTY, src: Ranges::EMPTY, dst: Ranges::EMPTY };
        Job { tag, key: KeyRef::from(key), work }
    }

    #[test]
    fn jobs_are_grouped_by_direction_and_key_size_in_the_order_they_came() {
        let keys = [
            key(16, Direction::Encrypt),
            key(32, Direction::Encrypt),
            key(16, Direction::Decrypt),
            key(16, Direction::Encrypt),
        ];
        let mut batch = Batch::new();
        for tag in 0..8 {
            let key = &keys[tag % 4];
            batch.push(key.group(), job(tag as u64, key), 100 + tag as u64);
        }
        assert_eq!((batch.jobs(), batch.age_ns(150)), (8, 50));
        let mut groups = Vec::new();
        batch.drain(|jobs| groups.push(jobs.iter().map(|job| job.tag).collect::<Vec<_>>()));
        assert_eq!(groups, [vec![0, 3, 4, 7], vec![1, 5], vec![2, 6]]);
        assert_eq!((batch.jobs(), batch.bytes(), batch.age_ns(999)), (0, 0, 0));
        batch.drain(|_| panic!("nothing is left"));
    }
}
