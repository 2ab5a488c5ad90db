//! As much of DER as RSA keys need: sequences of numbers.

/// The tag of a number.
const INTEGER: u8 = 0x02;
/// The tag of an octet string.
pub(super) const OCTET_STRING: u8 = 0x04;
/// The tag of a sequence.
const SEQUENCE: u8 = 0x30;

/// Bytes to be read from the front.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// All of these.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The contents of the next element, which must have this tag.
    pub(super) fn element(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&first, rest) = self.0.split_first()?;
        let (&len, mut rest) = rest.split_first()?;
        let len = match len {
            0..=0x7f => usize::from(len),
            // Lengths of one to three bytes; none of our keys is longer.
            0x81..=0x83 => {
                let (bytes, behind) = rest.split_at_checked(usize::from(len & 0x7f))?;
                rest = behind;
                bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte))
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        (first == tag).then_some(contents)
    }

    /// The contents of the next sequence.
    pub(super) fn sequence(&mut self) -> Option<Self> {
        self.element(SEQUENCE).map(Self)
    }

    /// The next number, big-endian, without leading zeros: empty for 0. One whose first bit is set is negative by the
    /// letter; the numbers of RSA keys never are, and some writers (the self-test of Linux) leave out the zero that
    /// would say so.
    pub(super) fn number(&mut self) -> Option<&'a [u8]> {
        let bytes = self.element(INTEGER).filter(|bytes| !bytes.is_empty())?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Some(&bytes[zeros..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lose_their_leading_zeros() {
        let mut reader = Reader::new(&[2, 1, 0, 2, 3, 0, 0x80, 1, 2, 1, 7]);
        assert_eq!(reader.number(), Some(&[][..]));
        assert_eq!(reader.number(), Some(&[0x80, 1][..]));
        assert_eq!(reader.number(), Some(&[7][..]));
        assert!(reader.is_empty());
        assert_eq!(reader.number(), None);
    }

    #[test]
    fn long_lengths_are_understood() {
        let contents = vec![1; 300];
        let der = [&[0x30, 0x82, 1, 44][..], &contents].concat();
        assert_eq!(Reader::new(&der).sequence().map(|inner| inner.0.len()), Some(300));
    }

    #[test]
    fn what_ends_early_or_is_something_else_is_nothing() {
        for der in [
            &[][..],
            &[0x30],
            &[0x30, 5, 0],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x84, 0, 0, 0, 1, 0],
            &[0x30, 0x82, 1],
        ] {
            assert!(Reader::new(der).sequence().is_none(), "{der:x?}");
        }
        assert_eq!(Reader::new(&[2, 1, 0x80]).number(), Some(&[0x80][..]), "never negative");
        assert_eq!(Reader::new(&[2, 0]).number(), None, "no number at all");
        assert_eq!(Reader::new(&[4, 1, 1]).number(), None, "another element");
    }
}
