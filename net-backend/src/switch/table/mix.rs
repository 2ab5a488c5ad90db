//! A keyed permutation of the 60 bits of (VLAN, address): its low bits choose the bucket, so an entry needs to hold
//! the rest only, and the key comes back for listings. The key is random: a guest cannot choose addresses that meet in
//! one bucket.

use std::hash::{BuildHasher, Hasher, RandomState};

/// VLAN (12 bits) over address (48).
pub(super) const KEY_BITS: u32 = 60;
const MASK: u64 = (1 << KEY_BITS) - 1;
/// Half the width: the shift of an xor that undoes itself.
const HALF: u32 = KEY_BITS / 2;

/// The permutation and its inverse.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    salt: u64,
    multipliers: [u64; 2],
    inverses: [u64; 2],
}

/// The inverse of an odd number modulo 2^64, by Newton: each step doubles the number of right bits, 3 to begin with.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut step = 0;
    while step < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

impl Mix {
    pub(super) fn random() -> Self {
        let state = RandomState::new();
        Self::new([0, 1, 2].map(|n: u8| {
            let mut hasher = state.build_hasher();
            hasher.write_u8(n);
            hasher.finish()
        }))
    }

    /// Any seed will do; multipliers that keep the upper bits busy are made of it.
    pub(super) fn new([salt, a, b]: [u64; 3]) -> Self {
        let multipliers = [a, b].map(|n| n | 1 | 1 << (KEY_BITS - 1));
        Self { salt: salt & MASK, multipliers, inverses: multipliers.map(inverse) }
    }

    #[inline]
    pub(super) fn mix(&self, key: u64) -> u64 {
        let [a, b] = self.multipliers;
        let x = (key ^ self.salt).wrapping_mul(a) & MASK;
        let x = (x ^ x >> HALF).wrapping_mul(b) & MASK;
        x ^ x >> HALF
    }

    pub(super) fn unmix(&self, mixed: u64) -> u64 {
        let [a, b] = self.inverses;
        let x = (mixed ^ mixed >> HALF).wrapping_mul(b) & MASK;
        let x = (x ^ x >> HALF).wrapping_mul(a) & MASK;
        x ^ self.salt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_key_comes_back(seed: [u64; 3], key in 0..=MASK) {
            let mix = Mix::new(seed);
            prop_assert!(mix.mix(key) <= MASK);
            prop_assert_eq!(mix.unmix(mix.mix(key)), key);
        }
    }

    #[test]
    fn addresses_that_count_upwards_spread_over_the_buckets() {
        for mix in [Mix::random(), Mix::new([0, 0, 0])] {
            let mut used = [0u32; 1024];
            (0..10_240u64).for_each(|n| used[(mix.mix(0x5254_0000_0000 + n) & 1023) as usize] += 1);
            assert!(used.iter().all(|n| *n < 60), "{:?}", used.iter().max());
        }
    }
}
