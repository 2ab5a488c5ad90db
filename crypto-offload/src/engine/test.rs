//! A test engine: asynchronous, out of order, and able to fail. The model for a hardware engine.
//!
//! [`Delayed`] has a queue of a few places, as a device has a ring. What it took is worked on some polls later, the
//! newest first, and may turn out to have failed. A binding of a real device differs in where the work is done.

#![expect(unsafe_code, reason = "implements the contract of Engine::submit")]

use super::library::Library;
use super::{Engine, Finished, Job, KeyId, Outcome, Prepared};
use std::collections::HashSet;

/// How a [`Delayed`] behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// Jobs it has room for.
    pub room: usize,
    /// Polls that a job waits for after the flush that started it.
    pub delay: u32,
    /// Every so many-th job fails in the engine; 0: none.
    pub fail_every: u64,
    /// Requests shorter than this it leaves to others.
    pub shortest: usize,
}

impl Default for Behaviour {
    /// Room for 64 jobs, two polls late, never failing.
    fn default() -> Self {
        Self { room: 64, delay: 2, fail_every: 0, shortest: 0 }
    }
}

struct Waiting {
    job: Job,
    /// Polls to go; `None` until a flush.
    polls: Option<u32>,
    fails: bool,
}

/// An engine that takes its time.
pub struct Delayed {
    behaviour: Behaviour,
    library: Library,
    waiting: Vec<Waiting>,
    taken: u64,
    sessions: HashSet<KeyId>,
}

impl Delayed {
    /// An engine that behaves like this.
    pub fn new(behaviour: Behaviour) -> Self {
        let waiting = Vec::with_capacity(behaviour.room);
        Self { behaviour, library: Library::new(), waiting, taken: 0, sessions: HashSet::new() }
    }

    /// The keys it has seen and was not told to forget: what a device would hold sessions for.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn finish(&mut self, waiting: &Waiting) -> Finished {
        if waiting.fails {
            return Finished::Failed(waiting.job);
        }
        // SAFETY: the job was not delivered yet, so that the promise of whoever submitted it holds.
        let outcome: Outcome = unsafe { self.library.run(&waiting.job) };
        Finished::Done(waiting.job.tag, outcome)
    }
}

impl Engine for Delayed {
    fn name(&self) -> &'static str {
        "delayed"
    }

    fn takes(&self, _key: &Prepared, len: usize) -> bool {
        len >= self.behaviour.shortest
    }

    unsafe fn submit(&mut self, jobs: &[Job]) -> usize {
        let room = self.behaviour.room - self.waiting.len();
        let taken = jobs.len().min(room);
        for job in &jobs[..taken] {
            // SAFETY: the caller promises that the key is there.
            self.sessions.insert(unsafe { job.key.get() }.id());
            self.taken += 1;
            let every = self.behaviour.fail_every;
            let fails = every > 0 && self.taken.is_multiple_of(every);
            self.waiting.push(Waiting { job: *job, polls: None, fails });
        }
        taken
    }

    fn flush(&mut self) {
        for waiting in &mut self.waiting {
            waiting.polls.get_or_insert(self.behaviour.delay);
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let mut delivered = 0;
        for place in (0..self.waiting.len()).rev() {
            match &mut self.waiting[place].polls {
                Some(0) => {
                    let waiting = self.waiting.swap_remove(place);
                    done(self.finish(&waiting));
                    delivered += 1;
                }
                Some(polls) => *polls -= 1,
                None => {}
            }
        }
        delivered
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn forget(&mut self, key: KeyId) {
        self.sessions.remove(&key);
    }
}
