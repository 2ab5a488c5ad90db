//! Where one side is in a packed ring.

use crate::layout::{DESC_AVAIL, DESC_USED, WRAP_BIT};

/// A slot and the wrap counter that goes with it (virtio 1.3 §2.8.1): 16 bits as in `off_wrap` and SET_VRING_BASE.
///
/// They are kept in 32: two short fields side by side would be stored one by one and loaded together, and the processor
/// cannot forward two stores to one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position(u32);

impl Position {
    /// Where both sides start.
    pub const START: Self = Self(WRAP_BIT as u32);

    /// Slot `index` in a round of wrap counter `wrap`.
    #[inline(always)]
    pub fn new(index: u16, wrap: bool) -> Self {
        Self(u32::from(index) | if wrap { u32::from(WRAP_BIT) } else { 0 })
    }

    /// From the 16 bits used in `off_wrap` and SET_VRING_BASE: `None` when the ring has no such slot.
    pub fn from_bits(bits: u16, size: u16) -> Option<Self> {
        (bits & !WRAP_BIT < size).then_some(Self(bits.into()))
    }

    /// To those 16 bits.
    #[inline(always)]
    pub fn bits(self) -> u16 {
        self.0 as u16
    }

    /// The slot.
    #[inline(always)]
    pub fn index(self) -> u16 {
        self.bits() & !WRAP_BIT
    }

    /// The wrap counter.
    #[inline(always)]
    pub fn wrap(self) -> bool {
        self.bits() & WRAP_BIT != 0
    }

    /// `slots` further, at most once around.
    #[inline(always)]
    pub fn advance(&mut self, slots: u16, size: u16) {
        let index = u32::from(self.index()) + u32::from(slots);
        *self = if index >= u32::from(size) {
            Self::new((index - u32::from(size)) as u16, !self.wrap())
        } else {
            Self::new(index as u16, self.wrap())
        };
    }

    /// `slots` back, at most once around.
    pub fn retreat(&mut self, slots: u16, size: u16) {
        *self = match self.index().checked_sub(slots) {
            Some(index) => Self::new(index, self.wrap()),
            None => {
                let index = u32::from(self.index()) + u32::from(size) - u32::from(slots);
                Self::new(index as u16, !self.wrap())
            }
        };
    }

    /// Slots from here to `ahead`, 0 to `size`.
    pub fn distance(self, ahead: Self, size: u16) -> u16 {
        if self.wrap() == ahead.wrap() {
            ahead.index().wrapping_sub(self.index())
        } else {
            size - self.index() + ahead.index()
        }
    }

    /// Flags of a slot here that the driver made available: AVAIL is the wrap counter, USED its inverse.
    #[inline(always)]
    pub fn available_flags(self) -> u16 {
        if self.wrap() { DESC_AVAIL } else { DESC_USED }
    }

    /// Flags of a slot here that the device used: both are the wrap counter.
    #[inline(always)]
    pub fn used_flags(self) -> u16 {
        if self.wrap() { DESC_AVAIL | DESC_USED } else { 0 }
    }

    /// Whether the flags of the slot here say that it is available.
    #[inline(always)]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (DESC_AVAIL | DESC_USED) == self.available_flags()
    }

    /// Whether the flags of the slot here say that it is used.
    #[inline(always)]
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
                        let start = Position::new(index, wrap);
                        let mut at = start;
                        at.advance(slots, size);
                        assert_eq!(start.distance(at, size), slots);
                        assert!(at.index() < size);
                        at.retreat(slots, size);
                        assert_eq!(at, start);
                    }
                }
            }
        }
    }

    #[test]
    fn flags_of_this_round_mean_nothing_in_the_next() {
        let (now, next) = (Position::START, Position::new(0, false));
        for (at, other) in [(now, next), (next, now)] {
            assert!(at.is_available(at.available_flags()) && at.is_used(at.used_flags()));
            assert!(!at.is_available(at.used_flags()) && !at.is_used(at.available_flags()));
            assert!(!at.is_available(other.available_flags()) && !at.is_used(other.used_flags()));
        }
    }
}
