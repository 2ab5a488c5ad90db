//! Where one side is in a packed ring.

use crate::layout::{DESC_AVAIL, DESC_USED, WRAP_BIT};

/// A slot and the wrap counter that goes with it (virtio 1.3 §2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub index: u16,
    pub wrap: bool,
}

impl Position {
    /// Where both sides start.
    pub const START: Self = Self { index: 0, wrap: true };

    /// From the 16 bits used in `off_wrap` and SET_VRING_BASE: `None` when the ring has no such slot.
    pub fn from_bits(bits: u16, size: u16) -> Option<Self> {
        let index = bits & !WRAP_BIT;
        (index < size).then_some(Self { index, wrap: bits & WRAP_BIT != 0 })
    }

    /// To those 16 bits.
    #[inline]
    pub fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP_BIT } else { 0 }
    }

    /// `slots` further, at most once around.
    #[inline]
    pub fn advance(&mut self, slots: u16, size: u16) {
        let index = u32::from(self.index) + u32::from(slots);
        if index >= u32::from(size) {
            self.index = (index - u32::from(size)) as u16;
            self.wrap = !self.wrap;
        } else {
            self.index = index as u16;
        }
    }

    /// `slots` back, at most once around.
    pub fn retreat(&mut self, slots: u16, size: u16) {
        if self.index >= slots {
            self.index -= slots;
        } else {
            self.index = (u32::from(self.index) + u32::from(size) - u32::from(slots)) as u16;
            self.wrap = !self.wrap;
        }
    }

    /// Slots from here to `ahead`, 0 to `size`.
    pub fn distance(self, ahead: Self, size: u16) -> u16 {
        if self.wrap == ahead.wrap {
            ahead.index.wrapping_sub(self.index)
        } else {
            size - self.index + ahead.index
        }
    }

    /// Flags of a slot here that the driver made available: AVAIL is the wrap counter, USED its inverse.
    #[inline]
    pub fn available_flags(self) -> u16 {
        if self.wrap { DESC_AVAIL } else { DESC_USED }
    }

    /// Flags of a slot here that the device used: both are the wrap counter.
    #[inline]
    pub fn used_flags(self) -> u16 {
        if self.wrap { DESC_AVAIL | DESC_USED } else { 0 }
    }

    /// Whether the flags of the slot here say that it is available.
    #[inline]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (DESC_AVAIL | DESC_USED) == self.available_flags()
    }

    /// Whether the flags of the slot here say that it is used.
    #[inline]
    pub fn is_used(self, flags: u16) -> bool {
        flags & (DESC_AVAIL | DESC_USED) == self.used_flags()
    }
}

#[cfg(test)]
mod tests {
    use super::Position;

    #[test]
    fn a_step_there_and_back_is_no_step_and_the_distance_is_its_length() {
        for size in [1, 2, 5, 8, 32768] {
            for index in [0, size / 2, size - 1] {
                for wrap in [false, true] {
                    for slots in [0, 1, size / 2, size] {
                        let start = Position { index, wrap };
                        let mut at = start;
                        at.advance(slots, size);
                        assert_eq!(start.distance(at, size), slots);
                        assert!(at.index < size);
                        at.retreat(slots, size);
                        assert_eq!(at, start);
                    }
                }
            }
        }
    }

    #[test]
    fn flags_of_this_round_mean_nothing_in_the_next() {
        let (now, next) = (Position::START, Position { index: 0, wrap: false });
        for (at, other) in [(now, next), (next, now)] {
            assert!(at.is_available(at.available_flags()) && at.is_used(at.used_flags()));
            assert!(!at.is_available(at.used_flags()) && !at.is_used(at.available_flags()));
            assert!(!at.is_available(other.available_flags()) && !at.is_used(other.used_flags()));
        }
    }
}
