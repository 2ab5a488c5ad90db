//! Which table the I/O in flight was translated with.

use std::sync::Arc;

use crate::table::MemoryTable;
use crate::view::MemoryView;

/// The table that one I/O in flight uses; [`Epochs::enter`] gives it and [`Epochs::leave`] takes it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Epoch(u32);

struct Generation {
    epoch: Epoch,
    view: MemoryView,
    in_flight: u32,
}

/// The tables one owner (a worker, for one device) uses: the current one, and replaced ones that I/O in flight still
/// refers to. Plain counters: nobody else looks at them.
///
/// A [`HostRange`](crate::HostRange) may be handed to the kernel while the epoch under which it was translated is held;
/// the memory cannot be unmapped before the epoch has been left.
pub struct Epochs {
    current: Generation,
    /// Each with I/O in flight, oldest first; nearly always empty.
    retired: Vec<Generation>,
}

impl Epochs {
    /// Starts with `table`.
    pub fn new(table: Arc<MemoryTable>) -> Self {
        let current = Generation { epoch: Epoch(0), view: MemoryView::new(table), in_flight: 0 };
        Self { current, retired: Vec::new() }
    }

    /// The current table.
    #[inline]
    pub fn view(&self) -> &MemoryView {
        &self.current.view
    }

    /// From now on `table` is the current one. The old one goes with the last I/O that uses it, or at once.
    pub fn replace(&mut self, table: Arc<MemoryTable>) {
        if Arc::ptr_eq(self.current.view.table(), &table) {
            return;
        }
        let epoch = Epoch(self.current.epoch.0.wrapping_add(1));
        let next = Generation { epoch, view: MemoryView::new(table), in_flight: 0 };
        let old = std::mem::replace(&mut self.current, next);
        if old.in_flight > 0 {
            self.retired.push(old);
        }
    }

    /// An I/O that uses the current table starts.
    #[inline]
    pub fn enter(&mut self) -> Epoch {
        self.current.in_flight += 1;
        self.current.epoch
    }

    /// An I/O has ended. Every [`enter`](Self::enter) is followed by exactly one of these.
    #[inline]
    pub fn leave(&mut self, epoch: Epoch) {
        if epoch == self.current.epoch {
            debug_assert!(self.current.in_flight > 0, "left more often than entered");
            self.current.in_flight = self.current.in_flight.saturating_sub(1);
        } else {
            self.leave_retired(epoch);
        }
    }

    /// The table an I/O in flight was translated with.
    #[inline]
    pub fn view_of(&self, epoch: Epoch) -> &MemoryView {
        if epoch == self.current.epoch {
            return &self.current.view;
        }
        let held = self.retired.iter().find(|generation| generation.epoch == epoch);
        debug_assert!(held.is_some(), "an epoch that is not held");
        &held.unwrap_or(&self.current).view
    }

    /// I/O in flight, over all tables.
    pub fn in_flight(&self) -> u32 {
        self.current.in_flight + self.retired.iter().map(|generation| generation.in_flight).sum::<u32>()
    }

    #[cold]
    fn leave_retired(&mut self, epoch: Epoch) {
        let place = self.retired.iter().position(|generation| generation.epoch == epoch);
        debug_assert!(place.is_some(), "left an epoch that is not held");
        let Some(place) = place else { return };
        self.retired[place].in_flight -= 1;
        if self.retired[place].in_flight == 0 {
            self.retired.remove(place);
        }
    }
}

impl std::fmt::Debug for Epochs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epochs")
            .field("generation", &self.view().table().generation())
            .field("retired", &self.retired.len())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{GuestAddr, UserAddr};
    use crate::table::RegionConfig;

    fn table(guest: u64) -> Arc<MemoryTable> {
        let config = RegionConfig { guest: GuestAddr(guest), len: 4096, user: UserAddr(0), mmap_offset: 0 };
        MemoryTable::anonymous(&[config]).expect("usable region")
    }

    #[test]
    fn a_replaced_table_goes_with_its_last_io() {
        let first = table(0);
        let held = Arc::downgrade(&first);
        let mut epochs = Epochs::new(first);
        let (one, two) = (epochs.enter(), epochs.enter());
        epochs.replace(table(0x1000));
        let three = epochs.enter();
        assert_eq!(epochs.in_flight(), 3);
        assert!(epochs.view_of(one).slice(GuestAddr(0), 1).is_ok());
        assert!(epochs.view_of(three).slice(GuestAddr(0), 1).is_err());
        assert!(epochs.view().slice(GuestAddr(0x1000), 1).is_ok());
        epochs.leave(two);
        assert!(held.upgrade().is_some());
        epochs.leave(one);
        assert!(held.upgrade().is_none());
        assert_eq!(epochs.in_flight(), 1);
        epochs.leave(three);
        assert_eq!(epochs.in_flight(), 0);
    }

    #[test]
    fn a_table_without_io_goes_at_once() {
        let first = table(0);
        let held = Arc::downgrade(&first);
        let mut epochs = Epochs::new(first);
        let epoch = epochs.enter();
        epochs.leave(epoch);
        epochs.replace(table(0x1000));
        assert!(held.upgrade().is_none());
    }

    #[test]
    fn tables_retire_independently_of_their_order() {
        let mut epochs = Epochs::new(table(0));
        let mut held = Vec::new();
        for generation in 1..=3 {
            held.push((epochs.enter(), Arc::downgrade(epochs.view().table())));
            epochs.replace(table(generation * 0x1000));
        }
        for index in [1, 0, 2] {
            assert!(held[index].1.upgrade().is_some());
            epochs.leave(held[index].0);
            assert!(held[index].1.upgrade().is_none());
        }
    }

    #[test]
    fn the_same_table_again_changes_nothing() {
        let same = table(0);
        let mut epochs = Epochs::new(Arc::clone(&same));
        let epoch = epochs.enter();
        epochs.replace(same);
        assert_eq!(epochs.enter(), epoch);
    }
}
