//! The jobs that a worker collected and has not yet submitted, grouped: an engine that works on several requests at once needs
//! them to be alike.

/// The collected jobs of one worker.
#[derive(Debug)]
pub struct Batch<J> {
    /// The vectors keep their room.
    groups: Box<[Vec<J>]>,
    /// Groups with jobs, in the order of their first one.
    active: Vec<u16>,
    jobs: usize,
    bytes: u64,
    since: u64,
}

impl<J> Batch<J> {
    /// Nothing collected, in so many groups.
    pub fn new(groups: usize) -> Self {
        let groups = (0..groups.max(1)).map(|_| Vec::new()).collect();
        Self { groups, active: Vec::new(), jobs: 0, bytes: 0, since: 0 }
    }

    /// Collects a job of so many bytes, which came at `now`.
    ///
    /// # Panics
    ///
    /// When there is no such group.
    #[inline(always)]
    pub fn push(&mut self, group: usize, job: J, bytes: u64, now: u64) {
        if self.jobs == 0 {
            self.since = now;
        }
        self.jobs += 1;
        self.bytes += bytes;
        let jobs = &mut self.groups[group];
        if jobs.is_empty() {
            self.active.push(group as u16);
        }
        jobs.push(job);
    }

    /// Hands each group to `submit` and is empty afterwards; what `submit` leaves of a group is dropped.
    pub fn drain(&mut self, mut submit: impl FnMut(&mut Vec<J>)) {
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

    #[test]
    fn jobs_are_grouped_in_the_order_they_came() {
        let mut batch = Batch::new(8);
        for (tag, group) in [7, 2, 0, 7, 7, 2, 0, 7].into_iter().enumerate() {
            batch.push(group, tag, 16, 100 + tag as u64);
        }
        assert_eq!((batch.jobs(), batch.bytes(), batch.age_ns(150)), (8, 128, 50));
        let mut groups = Vec::new();
        batch.drain(|jobs| groups.push(jobs.clone()));
        assert_eq!(groups, [vec![0, 3, 4, 7], vec![1, 5], vec![2, 6]]);
        assert_eq!((batch.jobs(), batch.bytes(), batch.age_ns(999)), (0, 0, 0));
        batch.drain(|_| panic!("nothing is left"));
    }
}
