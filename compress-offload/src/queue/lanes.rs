//! What waits to be computed on a worker, and whose turn it is.
//!
//! Each ring has a lane, first come first served; lanes take turns by deficit round robin in bytes
//! ([`fair`](offload::fair)), so that a guest with a full ring of large requests holds another one up for one small quantum a
//! turn, whatever waits behind it.

use offload::fair::{Account, Share, cost};
use runtime::rings::SlotId;
use std::collections::VecDeque;

/// Quanta of [`fair`](offload::fair) are made for ciphers. A compressor takes four times as long for its bytes, and more.
const PART_OF_QUANTUM: i64 = 4;

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The request, by index.
    pub request: u32,
    /// Bytes to compute.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Lane {
    device: usize,
    entries: VecDeque<Waiting>,
    account: Account,
    /// The turn in which it was last given a quantum.
    turn: u64,
    /// It is among those that take turns.
    listed: bool,
}

/// The lanes of a worker.
#[derive(Debug, Default)]
pub struct Lanes {
    /// By slot.
    lanes: Vec<Lane>,
    /// By device.
    shares: Vec<Share>,
    /// Slots of lanes with requests, the next one first.
    order: VecDeque<u32>,
    turn: u64,
    waiting: usize,
    bytes: u64,
}

impl Lanes {
    /// Requests that wait.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Their bytes.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A request of the ring at `slot`, which belongs to the device at this place, waits behind the others.
    #[inline]
    pub fn push(&mut self, slot: SlotId, device: usize, waiting: Waiting) {
        self.lane(slot, device).entries.push_back(waiting);
        self.waiting += 1;
        self.bytes += waiting.bytes;
    }

    /// The same in front of the others: it had its turn before, and could not be begun then.
    pub fn push_front(&mut self, slot: SlotId, device: usize, waiting: Waiting) {
        self.lane(slot, device).entries.push_front(waiting);
        self.waiting += 1;
        self.bytes += waiting.bytes;
    }

    /// The next request.
    pub fn pop(&mut self) -> Option<Waiting> {
        loop {
            let slot = *self.order.front()?;
            let lane = &mut self.lanes[slot as usize];
            if lane.entries.is_empty() {
                lane.listed = false;
                self.order.pop_front();
                continue;
            }
            if lane.turn != self.turn {
                lane.turn = self.turn;
                let quantum = self.shares[lane.device].quantum(self.turn) / PART_OF_QUANTUM;
                lane.account.begin(self.turn, quantum.max(1));
            }
            if lane.account.may_spend() {
                let next = lane.entries.pop_front()?;
                lane.account.spend(cost(next.bytes));
                self.waiting -= 1;
                self.bytes -= next.bytes;
                return Some(next);
            }
            self.pass();
        }
    }

    /// The newest request of a ring, which is given up.
    pub fn pop_newest(&mut self, slot: SlotId) -> Option<Waiting> {
        let newest = self.lanes.get_mut(slot.0 as usize)?.entries.pop_back()?;
        self.waiting -= 1;
        self.bytes -= newest.bytes;
        Some(newest)
    }

    /// The lane in front has used up its share of the turn; when all have, the next turn begins.
    fn pass(&mut self) {
        self.order.rotate_left(1);
        if self.order.front().is_some_and(|&slot| self.lanes[slot as usize].turn == self.turn) {
            self.turn += 1;
        }
    }

    fn lane(&mut self, slot: SlotId, device: usize) -> &mut Lane {
        let place = slot.0 as usize;
        if self.lanes.len() <= place {
            self.lanes.resize_with(place + 1, Lane::default);
        }
        if self.shares.len() <= device {
            self.shares.resize_with(device + 1, Share::default);
        }
        let lane = &mut self.lanes[place];
        lane.device = device;
        if !std::mem::replace(&mut lane.listed, true) {
            self.order.push_back(slot.0);
        }
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;

    fn fill(lanes: &mut Lanes, slot: u32, device: usize, count: u32, bytes: u64) {
        for request in 0..count {
            lanes.push(SlotId(slot), device, Waiting { request: slot * 10_000 + request, bytes });
        }
    }

    #[test]
    fn a_lane_is_served_in_its_order() {
        let mut lanes = Lanes::default();
        fill(&mut lanes, 3, 0, 5, 100 * KIB);
        lanes.push_front(SlotId(3), 0, Waiting { request: 7, bytes: 1 });
        let order: Vec<_> = std::iter::from_fn(|| lanes.pop()).map(|waiting| waiting.request).collect();
        assert_eq!(order, [7, 30_000, 30_001, 30_002, 30_003, 30_004]);
        assert_eq!((lanes.waiting(), lanes.bytes(), lanes.pop()), (0, 0, None));
    }

    #[test]
    fn a_newcomer_waits_for_one_quantum_and_not_for_the_backlog() {
        let mut lanes = Lanes::default();
        fill(&mut lanes, 0, 0, 1000, 64 * KIB);
        (0..100).for_each(|_| assert!(lanes.pop().is_some()));
        fill(&mut lanes, 1, 1, 1, 64 * KIB);
        let before = std::iter::from_fn(|| lanes.pop()).position(|next| next.request == 10_000).unwrap();
        assert!(before <= 6, "{before} requests came first");
    }

    #[test]
    fn devices_get_the_same_bytes_whatever_their_sizes_and_rings() {
        let mut lanes = Lanes::default();
        fill(&mut lanes, 0, 0, 9000, 4 * KIB);
        (1..5).for_each(|slot| fill(&mut lanes, slot, 1, 100, 256 * KIB));
        fill(&mut lanes, 5, 2, 100, KIB * KIB);
        let mut bytes = [0; 3];
        for _ in 0..2000 {
            let next = lanes.pop().unwrap();
            bytes[[0, 1, 1, 1, 1, 2][next.request as usize / 10_000]] += next.bytes + 512;
        }
        let (least, most) = (*bytes.iter().min().unwrap(), *bytes.iter().max().unwrap());
        assert!(most - least < 3 * KIB * KIB, "{bytes:?}");
    }

    #[test]
    fn the_newest_is_given_up_first() {
        let mut lanes = Lanes::default();
        fill(&mut lanes, 2, 0, 3, 1);
        let newest: Vec<_> = (0..4).map(|_| lanes.pop_newest(SlotId(2)).map(|next| next.request)).collect();
        assert_eq!(newest, [Some(20_002), Some(20_001), Some(20_000), None]);
        assert_eq!((lanes.waiting(), lanes.bytes(), lanes.pop_newest(SlotId(9))), (0, 0, None));
        assert_eq!(lanes.pop(), None);
        fill(&mut lanes, 2, 0, 1, 1);
        assert!(lanes.pop().is_some(), "a lane that was emptied is served again");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            steps in proptest::collection::vec((0u32..6, 1u64..2_000_000, any::<bool>()), 1..300),
        ) {
            let mut lanes = Lanes::default();
            let mut expected = [const { VecDeque::new() }; 6];
            let check = |lanes: &mut Lanes, expected: &mut [VecDeque<u32>; 6]| {
                if let Some(next) = lanes.pop() {
                    let lane = expected.iter_mut().find(|lane| lane.front() == Some(&next.request));
                    lane.expect("the oldest of its lane").pop_front();
                    return true;
                }
                false
            };
            for (request, (slot, bytes, pop)) in (0..).zip(steps) {
                lanes.push(SlotId(slot), slot as usize / 2, Waiting { request, bytes });
                expected[slot as usize].push_back(request);
                if pop {
                    check(&mut lanes, &mut expected);
                }
                prop_assert_eq!(lanes.waiting(), expected.iter().map(VecDeque::len).sum::<usize>());
            }
            while check(&mut lanes, &mut expected) {}
            prop_assert!(expected.iter().all(VecDeque::is_empty));
        }
    }
}
