//! Which heads are in flight: one bit each.

/// A set of head indices or buffer ids. The device owns it; the driver cannot make it lie.
pub(crate) struct Heads {
    bits: Box<[u64]>,
}

impl Heads {
    /// An empty set of numbers below `limit`.
    pub fn new(limit: usize) -> Self {
        Self { bits: vec![0; limit.div_ceil(64)].into() }
    }

    /// Whether `head` is in the set. A head over the limit is not.
    pub fn contains(&self, head: u16) -> bool {
        self.bits.get(usize::from(head / 64)).is_some_and(|word| word & bit(head) != 0)
    }

    /// Puts `head` in; whether it was not in before.
    #[inline(always)]
    pub fn insert(&mut self, head: u16) -> bool {
        let Some(word) = self.bits.get_mut(usize::from(head / 64)) else { return false };
        let was_in = *word & bit(head) != 0;
        *word |= bit(head);
        !was_in
    }

    /// Takes `head` out; whether it was in.
    #[inline(always)]
    pub fn remove(&mut self, head: u16) -> bool {
        let Some(word) = self.bits.get_mut(usize::from(head / 64)) else { return false };
        let was_in = *word & bit(head) != 0;
        *word &= !bit(head);
        was_in
    }
}

#[inline(always)]
fn bit(head: u16) -> u64 {
    1 << (head % 64)
}
