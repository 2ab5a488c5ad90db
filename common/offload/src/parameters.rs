//! The mode and the numbers of [`flush`](crate::flush) as the operator gives them, and changes them while workers run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use daemon::Failure;
use daemon::cli::{MOST_POLL_US, Poll, WorkerArgs, poll_policy};
use daemon::control::RpcError;
use daemon::device::{BadValue, check_range};
use daemon::workers::{Polling, Workers};
use serde_json::{Map, Value, json};

use crate::flush::{Mode, Policy, Thresholds};
use crate::service::Message;
use crate::spec::Spin;

/// What is asked to be different; what is not given stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// How workers wait.
    pub mode: Option<Mode>,
    /// Requests of a full batch.
    pub batch: Option<u16>,
    /// Results of other threads that are gathered.
    pub answers: Option<u16>,
    /// Longest wait for company, in microseconds.
    pub deadline_us: Option<u32>,
    /// Length of a request that is answered at once.
    pub inline_bytes: Option<u32>,
}

impl Change {
    /// `present` with what is given changed.
    pub fn of(&self, present: Policy) -> Policy {
        let now = present.thresholds;
        Policy {
            mode: self.mode.unwrap_or(present.mode),
            thresholds: Thresholds {
                batch: self.batch.unwrap_or(now.batch),
                answers: self.answers.unwrap_or(now.answers),
                deadline_us: self.deadline_us.unwrap_or(now.deadline_us),
                inline_bytes: self.inline_bytes.unwrap_or(now.inline_bytes),
            },
        }
    }
}

/// Refuses numbers with which nothing sensible would happen.
pub fn check(policy: &Policy) -> Result<(), BadValue> {
    let thresholds = policy.thresholds;
    check_range("batch", thresholds.batch.into(), 1, 1024)?;
    check_range("deadline-us", thresholds.deadline_us, 1, 1_000_000)?;
    check_range("inline-bytes", thresholds.inline_bytes, 0, 64 << 10)
}

/// Refuses `--poll`, which every daemon has, where `--mode` says the same and more.
pub fn check_poll(workers: &WorkerArgs) -> Result<(), Failure> {
    let (poll, mode) = match workers.poll {
        Poll::Adaptive => return Ok(()),
        Poll::Off => ("off", "interrupt"),
        Poll::Always => ("always", "busy"),
    };
    Err(Failure::usage(format!("How workers wait is said by --mode, not by --poll {poll}"))
        .hint(format!("use --mode {mode}")))
}

/// How the workers of a process wait and submit now.
#[derive(Debug)]
pub struct Pace {
    /// The rule, and how the mode `heuristic` polls.
    held: Mutex<(Policy, Polling)>,
}

impl Pace {
    /// As the operator wants it at the start.
    pub fn new(policy: Policy, workers: &WorkerArgs) -> Self {
        Self { held: Mutex::new((policy, Polling::of(workers))) }
    }

    fn lock(&self) -> MutexGuard<'_, (Policy, Polling)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule in force.
    pub fn policy(&self) -> Policy {
        self.lock().0
    }

    /// Tells the workers, which have just started.
    pub fn start<U: Send + Sync + 'static>(&self, workers: &Workers<Message<U>>) -> Result<(), Failure> {
        let (policy, adaptive) = *self.lock();
        tell(workers, policy, adaptive)
    }

    /// Changes the rule, and how the mode `heuristic` polls; all workers hear of it before this returns. `check` may refuse.
    pub fn change<U: Send + Sync + 'static>(
        &self,
        workers: &Workers<Message<U>>,
        change: &Change,
        Spin { max_us, preset }: Spin,
        check: impl FnOnce(&Policy) -> Result<(), BadValue>,
    ) -> Result<(), RpcError> {
        if max_us.is_some_and(|us| us > MOST_POLL_US) {
            return Err(RpcError::invalid_params(format!("max-us is at most {MOST_POLL_US}")));
        }
        let mut held = self.lock();
        let (policy, adaptive) = *held;
        let policy = change.of(policy);
        check(&policy)?;
        let adaptive = Polling {
            max_us: max_us.unwrap_or(adaptive.max_us),
            preset: preset.unwrap_or(adaptive.preset),
            ..adaptive
        };
        tell(workers, policy, adaptive)?;
        *held = (policy, adaptive);
        Ok(())
    }

    /// What holds now, in the words of the command line.
    pub fn show(&self) -> Map<String, Value> {
        let (policy, adaptive) = *self.lock();
        let thresholds = policy.thresholds;
        let shown = [
            ("mode", json!(policy.mode.to_string())),
            ("batch", json!(thresholds.batch)),
            ("deadline-us", json!(thresholds.deadline_us)),
            ("inline-bytes", json!(thresholds.inline_bytes)),
            ("max-us", json!(adaptive.max_us)),
            ("preset", json!(adaptive.preset)),
        ];
        shown.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Tells all workers how to wait, and when to submit.
fn tell<U: Send + Sync + 'static>(
    workers: &Workers<Message<U>>,
    policy: Policy,
    adaptive: Polling,
) -> Result<(), Failure> {
    let adaptive = poll_policy(Poll::Adaptive, adaptive.preset, adaptive.max_us);
    for worker in workers.handles() {
        worker.set_poll(policy.mode.poll_policy(adaptive)).map_err(Failure::runtime)?;
        worker.send(Message::Policy(policy)).map_err(Failure::runtime)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let present = Policy::default();
        assert_eq!(Change::default().of(present), present);
        let change = Change { mode: Some(Mode::Busy), batch: Some(8), ..Change::default() };
        let changed = change.of(present);
        assert_eq!((changed.mode, changed.thresholds.batch), (Mode::Busy, 8));
        assert_eq!(changed.thresholds.deadline_us, present.thresholds.deadline_us);
    }

    #[test]
    fn thresholds_that_make_no_sense_are_refused() {
        let with = |change: Change| check(&change.of(Policy::default())).map_err(|error| error.to_string());
        assert_eq!(with(Change::default()), Ok(()));
        for change in [
            Change { batch: Some(1025), ..Change::default() },
            Change { deadline_us: Some(0), ..Change::default() },
            Change { inline_bytes: Some(65537), ..Change::default() },
        ] {
            assert!(with(change).is_err(), "{change:?}");
        }
        let batch = with(Change { batch: Some(0), ..Change::default() });
        assert_eq!(batch, Err("The value 0 for batch is not between 1 and 1024".to_owned()));
    }
}
