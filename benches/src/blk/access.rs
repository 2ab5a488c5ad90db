//! Which block comes next: sequential or random, reads or writes.

/// A small fast generator (xorshift64*); enough for offsets and block contents, not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with its own sequence for each seed; a seed of 0 is fine.
    pub fn new(seed: u64) -> Self {
        // SplitMix64 spreads neighbouring seeds over the whole state space.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    /// The next 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, by multiplication instead of division.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }
}

/// Order in which blocks are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One after another, from the start again at the end.
    Sequential,
    /// Uniformly random with repetition, as fio with `norandommap`.
    Random,
}

/// Stream of block numbers of one queue, within the queue's own range of blocks.
#[derive(Clone, Debug)]
pub struct Blocks {
    order: Order,
    first: u64,
    count: u64,
    next: u64,
}

impl Blocks {
    /// Blocks `first..first + count`; `count` must not be 0.
    pub fn new(order: Order, first: u64, count: u64) -> Self {
        assert!(count > 0, "a queue needs at least one block");
        Self { order, first, count, next: 0 }
    }

    /// The next block number.
    #[inline]
    pub fn next(&mut self, random: &mut Random) -> u64 {
        match self.order {
            Order::Random => self.first + random.below(self.count),
            Order::Sequential => {
                let block = self.first + self.next;
                self.next += 1;
                if self.next == self.count {
                    self.next = 0;
                }
                block
            }
        }
    }

    /// First block and number of blocks.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_blocks_wrap_inside_their_range() {
        let (mut blocks, mut random) = (Blocks::new(Order::Sequential, 10, 3), Random::new(1));
        let seen: Vec<u64> = (0..7).map(|_| blocks.next(&mut random)).collect();
        assert_eq!(seen, [10, 11, 12, 10, 11, 12, 10]);
    }

    #[test]
    fn random_blocks_cover_the_whole_range_evenly_and_nothing_else() {
        let (mut blocks, mut random) = (Blocks::new(Order::Random, 100, 16), Random::new(7));
        let mut hits = [0u32; 16];
        for _ in 0..16_000 {
            hits[(blocks.next(&mut random) - 100) as usize] += 1;
        }
        assert!(hits.iter().all(|&n| (800..1200).contains(&n)), "{hits:?}");
    }

    #[test]
    fn seeds_give_different_but_repeatable_sequences() {
        let take = |seed| {
            let mut random = Random::new(seed);
            [random.bits(), random.bits(), random.bits()]
        };
        assert_eq!(take(0), take(0));
        assert_ne!(take(0), take(1));
        assert!(take(0).iter().all(|&n| n != 0));
    }
}
