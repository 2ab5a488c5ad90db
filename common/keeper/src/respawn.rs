//! When a worker process that has died is started again. Pure: times come in, a verdict comes out.

use std::time::Duration;

/// The policy. A worker that has served for a while is started again at once. One that dies as soon as it starts is started
/// again after pauses that double, and given up after a number of times.
#[derive(Clone, Copy, Debug)]
pub struct Respawn {
    /// A worker that served for less than this has died at once.
    pub quick: Duration,
    /// The pause after the second quick death in a row; doubled after each further one.
    pub pause: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// Quick deaths in a row after which the keeper gives up.
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

/// Remembers the deaths in a row.
#[derive(Debug)]
pub(crate) struct Deaths {
    policy: Respawn,
    quick: u32,
}

impl Deaths {
    pub fn new(policy: Respawn) -> Self {
        Self { policy, quick: 0 }
    }

    /// A worker has died that served for this time; `None` if it never got as far.
    pub fn died(&mut self, served: Option<Duration>) -> Verdict {
        if served.is_some_and(|served| served >= self.policy.quick) {
            self.quick = 0;
            return Verdict::After(Duration::ZERO);
        }
        self.quick += 1;
        if self.quick >= self.policy.limit {
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

    const LONG: Option<Duration> = Some(Duration::from_secs(60));
    const SHORT: Option<Duration> = Some(Duration::from_millis(3));

    fn pauses(policy: Respawn, lives: &[Option<Duration>]) -> Vec<Verdict> {
        let mut deaths = Deaths::new(policy);
        lives.iter().map(|life| deaths.died(*life)).collect()
    }

    fn ms(ms: u64) -> Verdict {
        Verdict::After(Duration::from_millis(ms))
    }

    #[test]
    fn a_worker_that_served_is_replaced_at_once_however_often() {
        assert!(pauses(Respawn::default(), &[LONG; 100]).iter().all(|verdict| *verdict == ms(0)));
    }

    #[test]
    fn pauses_double_while_workers_die_at_once_and_then_it_is_given_up() {
        let verdicts =
            pauses(Respawn { limit: 6, ..Respawn::default() }, &[None, SHORT, None, SHORT, None, None]);
        assert_eq!(verdicts, [ms(0), ms(50), ms(100), ms(200), ms(400), Verdict::GiveUp(6)]);
    }

    #[test]
    fn pauses_have_a_limit() {
        let policy = Respawn { limit: 100, ..Respawn::default() };
        assert_eq!(pauses(policy, &[None; 60]).last(), Some(&Verdict::After(policy.longest)));
    }

    #[test]
    fn one_that_served_makes_up_for_those_that_did_not() {
        let mut lives = [SHORT; 7].to_vec();
        lives.extend([LONG, SHORT]);
        assert_eq!(pauses(Respawn::default(), &lives)[7..], [ms(0), ms(0)]);
    }
}
