//! Fair share between devices and queues: deficit round robin, in bytes.
//!
//! Every round in which a ring has work it may spend its share of the device's quantum, and what it overspends (nobody
//! knows the cost of a request before it is parsed) is a debt that the next rounds pay off. So over time two devices
//! with enough work get the same number of bytes from the worker, whatever the sizes of their requests and however many
//! queues they have; and a ring of large requests holds the others up for one quantum and one request a round.
//!
//! Rounds are counted, not timed.

use runtime::rings::BURST;
use virtqueue::DeviceRing;

/// What one device may spend in a round, in bytes: 64 requests of 16 KiB, which fill the lanes of a multi-buffer engine four
/// times, and less than a millisecond of the slowest cipher. A compressor takes a few milliseconds for it.
pub const QUANTUM: i64 = 64 * ((16 << 10) + OVERHEAD);

/// What a request costs beside its bytes: about the time that parsing and completing it take, in bytes of a fast cipher.
const OVERHEAD: i64 = 512;

/// Most chains of one ring in a round, however small: they take about as long as a quantum of bytes.
const MOST: usize = 512;

/// What a request of so many bytes costs.
#[inline]
pub fn cost(bytes: u64) -> i64 {
    OVERHEAD.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// The account of a device on one worker: how many of its rings share a quantum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    round: u64,
    /// Rings with work in the present round, and in the one before.
    active: u32,
    before: u32,
}

impl Share {
    /// One of the device's rings has work in this round; returns what that ring may spend in it.
    #[inline]
    pub fn quantum(&mut self, round: u64) -> i64 {
        if self.round != round {
            self.before = if self.round + 1 == round { self.active } else { 0 };
            (self.round, self.active) = (round, 0);
        }
        self.active += 1;
        QUANTUM / i64::from(self.active.max(self.before))
    }
}

/// The account of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    round: u64,
    /// What it may still spend; below zero: what it owes.
    deficit: i64,
}

impl Account {
    /// The ring has work in this round and is given `quantum`. What a ring has not spent it keeps for the next round only
    /// while it has work without a break, so that nobody saves up for a burst; a debt of a ring that paused is forgotten
    /// as well, because nobody was kept waiting for it.
    #[inline]
    pub fn begin(&mut self, round: u64, quantum: i64) {
        if self.round + 1 != round {
            self.deficit = 0;
        }
        self.round = round;
        self.deficit = self.deficit.saturating_add(quantum).min(quantum);
    }

    /// Whether another request may be taken in this round.
    #[inline]
    pub fn may_spend(&self) -> bool {
        self.deficit > 0
    }

    /// Pays for a request.
    #[inline]
    pub fn spend(&mut self, cost: i64) {
        self.deficit = self.deficit.saturating_sub(cost);
    }

    /// Takes what the driver made available, as far as the ring's share goes: `take` takes one chain and pays for it; false:
    /// the burst must end, and no chain was taken.
    #[inline]
    pub fn burst<R: DeviceRing>(
        &mut self,
        ring: &mut R,
        mut take: impl FnMut(&mut Self, &mut R) -> bool,
    ) -> Burst {
        let mut taken = 0;
        while taken < MOST && self.may_spend() {
            let available = ring.fetch(BURST);
            let here = (0..available).take_while(|_| self.may_spend() && take(self, ring)).count();
            taken += here;
            if here < usize::from(available) || available == 0 {
                break;
            }
        }
        Burst { taken, throttled: !self.may_spend() && ring.has_work() }
    }
}

/// What a ring gave in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burst {
    /// Chains.
    pub taken: usize,
    /// There are more, but its share is used up.
    pub throttled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A device whose queues always have work, all requests of one size.
    struct Busy {
        share: Share,
        queues: Vec<Account>,
        size: u64,
        served: u64,
        requests: u64,
    }

    impl Busy {
        fn new(queues: usize, size: u64) -> Self {
            let queues = vec![Account::default(); queues];
            Self { share: Share::default(), queues, size, served: 0, requests: 0 }
        }

        fn round(&mut self, round: u64) {
            for account in &mut self.queues {
                account.begin(round, self.share.quantum(round));
                while account.may_spend() {
                    account.spend(cost(self.size));
                    self.served += self.size + OVERHEAD as u64;
                    self.requests += 1;
                }
            }
        }
    }

    fn compete(devices: &mut [Busy], rounds: u64) {
        for round in 1..=rounds {
            devices.iter_mut().for_each(|device| device.round(round));
        }
    }

    #[test]
    fn devices_get_the_same_bytes_whatever_their_sizes_and_queues() {
        let mut devices = [Busy::new(1, 16), Busy::new(1, 4096), Busy::new(8, 1 << 20), Busy::new(3, 65536)];
        compete(&mut devices, 1000);
        let served: Vec<_> = devices.iter().map(|device| device.served as f64).collect();
        let most = served.iter().copied().fold(0.0, f64::max);
        assert!(served.iter().all(|served| most / served < 1.05), "{served:?}");
    }

    #[test]
    fn queues_of_a_device_share_its_quantum() {
        let mut one = [Busy::new(4, 4096)];
        compete(&mut one, 100);
        let per_round = one[0].served / 100;
        assert!(per_round < QUANTUM as u64 * 11 / 10, "{per_round} bytes a round");
    }

    #[test]
    fn a_large_request_is_paid_off_before_the_next_one() {
        let mut account = Account::default();
        let rounds: Vec<bool> = (1..=8)
            .map(|round| {
                account.begin(round, 1000);
                let may = account.may_spend();
                if may {
                    account.spend(2500);
                }
                may
            })
            .collect();
        assert_eq!(rounds, [true, false, true, false, false, true, false, true]);
    }

    #[test]
    fn a_break_forgets_credit_and_debt() {
        let mut account = Account::default();
        account.begin(1, 100);
        account.spend(10_000);
        account.begin(3, 100);
        assert!(account.may_spend(), "it had no work in round 2");
        let mut saver = Account::default();
        (1..=50).for_each(|round| saver.begin(round, 100));
        saver.spend(100);
        assert!(!saver.may_spend(), "unspent shares do not add up");
    }

    proptest! {
        /// Between any two devices that always have work the difference never exceeds what one quantum and one request
        /// of each can make.
        #[test]
        fn nobody_gets_ahead_by_more_than_a_quantum_and_a_request(
            a in (1usize..9, 1u64..2_000_000), b in (1usize..9, 1u64..2_000_000), rounds in 1u64..200,
        ) {
            let mut devices = [Busy::new(a.0, a.1), Busy::new(b.0, b.1)];
            compete(&mut devices, rounds);
            let difference = devices[0].served.abs_diff(devices[1].served);
            let slack = |(queues, size): (usize, u64)| QUANTUM as u64 * 3 + queues as u64 * (size + 512);
            prop_assert!(difference <= slack(a) + slack(b));
        }
    }
}
