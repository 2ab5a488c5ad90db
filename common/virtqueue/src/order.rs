//! IN_ORDER on the device side: completions wait until all chains taken before them are complete.

use crate::chain::Token;

/// Completed chains that may not be shown yet.
pub(crate) struct Order {
    /// By serial number, modulo the length.
    held: Box<[Held]>,
    /// Serial number of the oldest chain that is not used yet.
    next: u32,
}

#[derive(Clone, Copy, Default)]
struct Held {
    token: Token,
    written: u32,
    done: bool,
}

impl Order {
    /// For at most `size` chains taken and not released.
    pub fn new(size: u16) -> Self {
        Self { held: vec![Held::default(); usize::from(size).next_power_of_two()].into(), next: 0 }
    }

    /// Notes a completion. False when the chain has been completed before.
    #[inline]
    pub fn hold(&mut self, token: Token, written: u32) -> bool {
        let early = token.serial.wrapping_sub(self.next) as usize;
        let place = self.place(token.serial);
        if early >= self.held.len() || self.held[place].done {
            return false;
        }
        self.held[place] = Held { token, written, done: true };
        true
    }

    /// Whether a completion needs no holding: it is the oldest, and the one after it is still to come. It counts as released
    /// then.
    #[inline(always)]
    pub fn pass(&mut self, token: Token) -> bool {
        let following = self.place(self.next.wrapping_add(1));
        let passes = token.serial == self.next && !self.held[following].done;
        self.next = self.next.wrapping_add(u32::from(passes));
        passes
    }

    /// The next completion in the order taken, if it is there.
    #[inline]
    pub fn release(&mut self) -> Option<(Token, u32)> {
        let place = self.place(self.next);
        let held = &mut self.held[place];
        if !held.done {
            return None;
        }
        held.done = false;
        self.next = self.next.wrapping_add(1);
        Some((held.token, held.written))
    }

    #[inline]
    fn place(&self, serial: u32) -> usize {
        serial as usize & (self.held.len() - 1)
    }
}
