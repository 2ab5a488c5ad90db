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
