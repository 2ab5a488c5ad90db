//! When a worker process that has died is started again. Pure: times come in, a verdict comes out.

use std::time::Duration;

/// The policy. A worker that has served for a while is started again at once. One that dies as soon as it serves is started
/// again after pauses that double, and given up after a number of times; but not when it had served and was killed by
/// SIGKILL, which is nothing that it does to itself.
#[derive(Clone, Copy, Debug)]
pub struct Respawn {
    /// A worker that served for less than this has died at once.
    pub quick: Duration,
    /// The pause after the second quick death in a row; doubled after each further one.
    pub pause: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// Quick deaths in a row, of its own doing, after which the keeper gives up.
    pub limit: u32,
}

impl Default for Respawn {
    fn default() -> Self {
        Self {
            quick: Duration::from_millis(100),
            pause: Duration::from_millis(50),
            longest: Duration::from_secs(1),
            limit: 8,
        }
    }
}

/// What to do about a death.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Start another one after this time.
    After(Duration),
    /// It is of no use; so many have died.
    GiveUp(u32),
}

/// How a worker has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    /// How long it had served; `None` if it never got as far.
    pub served: Option<Duration>,
    /// By SIGKILL.
    pub killed: bool,
}

/// Remembers the deaths in a row.
#[derive(Debug)]
pub(crate) struct Deaths {
    policy: Respawn,
    quick: u32,
    /// Those of them that were of the worker's own doing.
    own: u32,
}

impl Deaths {
    pub fn new(policy: Respawn) -> Self {
        Self { policy, quick: 0, own: 0 }
    }

    /// A worker has died.
    pub fn died(&mut self, death: Death) -> Verdict {
        if death.served.is_some_and(|served| served >= self.policy.quick) {
            (self.quick, self.own) = (0, 0);
            return Verdict::After(Duration::ZERO);
        }
        self.quick += 1;
        self.own += u32::from(!death.killed || death.served.is_none());
        if self.own >= self.policy.limit {
            return Verdict::GiveUp(self.quick);
        }
        Verdict::After(match self.quick {
            1 => Duration::ZERO,
            n => self.policy.pause.saturating_mul(1 << (n - 2).min(20)).min(self.policy.longest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Death = Death { served: Some(Duration::from_secs(60)), killed: false };
    const SHORT: Death = Death { served: Some(Duration::from_millis(3)), killed: false };
    const NEVER: Death = Death { served: None, killed: true };
    const SHOT: Death = Death { killed: true, ..SHORT };

    fn verdicts(policy: Respawn, deaths: &[Death]) -> Vec<Verdict> {
        let mut history = Deaths::new(policy);
        deaths.iter().map(|death| history.died(*death)).collect()
    }

    fn ms(ms: u64) -> Verdict {
        Verdict::After(Duration::from_millis(ms))
    }

    #[test]
    fn a_worker_that_served_is_replaced_at_once_however_often() {
        assert!(verdicts(Respawn::default(), &[LONG; 100]).iter().all(|verdict| *verdict == ms(0)));
    }

    #[test]
    fn pauses_double_while_workers_die_at_once_and_then_it_is_given_up() {
        let policy = Respawn { limit: 6, ..Respawn::default() };
        let verdicts = verdicts(policy, &[NEVER, SHORT, NEVER, SHORT, NEVER, NEVER]);
        assert_eq!(verdicts, [ms(0), ms(50), ms(100), ms(200), ms(400), Verdict::GiveUp(6)]);
    }

    #[test]
    fn one_that_is_killed_while_it_serves_is_never_given_up() {
        let policy = Respawn { limit: 3, ..Respawn::default() };
        assert_eq!(verdicts(policy, &[SHOT; 60]).last(), Some(&Verdict::After(policy.longest)));
        let last = verdicts(policy, &[SHOT, SHORT, SHOT, NEVER, SHOT, SHORT]).pop();
        assert_eq!(last, Some(Verdict::GiveUp(6)));
    }

    #[test]
    fn one_that_served_makes_up_for_those_that_did_not() {
        let mut deaths = [SHORT; 7].to_vec();
        deaths.extend([LONG, SHORT]);
        assert_eq!(verdicts(Respawn::default(), &deaths)[7..], [ms(0), ms(0)]);
    }
}
