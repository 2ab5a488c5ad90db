//! The Internet checksum (RFC 1071) over pieces of any length.

use memory::GuestSlice;

/// A ones' complement sum of bytes that come in pieces, of odd lengths too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Congruent modulo 0xffff to the sum of the words as they are in memory (native order; RFC 1071 section 2 B).
    sum: u64,
    /// An odd number of bytes so far: the next byte is the second one of its word.
    odd: bool,
}

impl Sum {
    /// Adds private bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_partial(memory::checksum(bytes), bytes.len());
    }

    /// Adds bytes that are not ours.
    #[inline]
    pub fn add_slice(&mut self, slice: GuestSlice<'_>) {
        self.add_partial(slice.checksum(0, slice.len()), slice.len());
    }

    /// Adds a sum over bytes that follow.
    #[inline]
    pub fn add_sum(&mut self, other: Self) {
        self.add_partial(other.sum, usize::from(other.odd));
    }

    /// Adds one word of the pseudo header, or a field that was left out. The bytes so far must be even in number.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        debug_assert!(!self.odd, "a word in the middle of a word");
        self.add_partial(u64::from(word.to_be()), 2);
    }

    #[inline]
    fn add_partial(&mut self, sum: u64, len: usize) {
        // RFC 1071 section 2 B: bytes at odd places count as if swapped, which a rotation by 8 bits does modulo 0xffff.
        let sum = if self.odd { fold(sum).swap_bytes().into() } else { sum };
        let (total, carry) = self.sum.overflowing_add(sum);
        self.sum = total + u64::from(carry);
        self.odd ^= len % 2 == 1;
    }

    /// The sum as 16 bits in host order: what a partial checksum field holds.
    #[inline]
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.sum))
    }

    /// The checksum in host order: the complement of the sum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum where 0 means that there is none (UDP, RFC 768): 0 becomes 0xffff, which is the same number. TCP
    /// receivers take it too.
    #[inline]
    pub fn nonzero_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// 16 bits that are congruent modulo 0xffff, and 0 only for 0.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_the_rfc_sums_up() {
        // RFC 1071 section 3.
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), !0xddf2);
        let mut words = Sum::default();
        [0x0001, 0xf203, 0xf4f5, 0xf6f7].into_iter().for_each(|word| words.add_word(word));
        assert_eq!(words.folded(), 0xddf2);
    }

    #[test]
    fn a_checksum_of_zero_has_another_name() {
        let mut sum = Sum::default();
        sum.add(&[0xff, 0xff]);
        assert_eq!((sum.checksum(), sum.nonzero_checksum()), (0, 0xffff));
        sum.add(&[0, 1]);
        assert_eq!((sum.checksum(), sum.nonzero_checksum()), (0xfffe, 0xfffe));
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_sum_up_to_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            cuts in proptest::collection::vec(0..100_usize, 0..8),
        ) {
            let mut whole = Sum::default();
            whole.add(&bytes);
            let (mut pieces, mut rest) = (Sum::default(), &bytes[..]);
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                let mut piece = Sum::default();
                piece.add(now);
                if cut % 2 == 0 { pieces.add_sum(piece) } else { pieces.add(now) }
                rest = later;
            }
            pieces.add(rest);
            prop_assert_eq!(pieces.folded(), whole.folded());
        }
    }
}
