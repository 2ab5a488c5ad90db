//! The device's accesses to shared memory: an [`Area`] whose stores the tests can cut short.

use std::ops::Deref;
use std::sync::atomic::Ordering;

use memory::Area;
use zerocopy::IntoBytes;

/// An area that the device side writes. In tests every store counts down a fuse, so that a test can end the device
/// between any two stores as SIGKILL would.
pub(crate) struct Shared(Area);

impl Shared {
    pub fn new(area: Area) -> Self {
        Self(area)
    }

    #[inline(always)]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        #[cfg(test)]
        fuse::burn();
        self.0.store_u16(offset, value, order);
    }

    #[inline(always)]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        #[cfg(test)]
        fuse::burn();
        self.0.store_u32(offset, value, order);
    }

    #[inline(always)]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        #[cfg(test)]
        fuse::burn();
        self.0.store_u64(offset, value, order);
    }

    #[inline(always)]
    pub fn write<T: IntoBytes>(&self, offset: usize, value: T) {
        #[cfg(test)]
        fuse::burn();
        self.0.write(offset, value);
    }
}

/// Loads are the area's own.
impl Deref for Shared {
    type Target = Area;

    #[inline(always)]
    fn deref(&self) -> &Area {
        &self.0
    }
}

/// Ends the device before a chosen store.
#[cfg(test)]
pub(crate) mod fuse {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// The panic payload of a burnt fuse.
    pub struct Killed;

    /// Lets `stores` more stores of this thread pass; `None` for all.
    pub fn set(stores: Option<u32>) {
        LEFT.set(stores);
    }

    pub fn burn() {
        match LEFT.get() {
            None => {}
            Some(0) => {
                LEFT.set(None);
                std::panic::resume_unwind(Box::new(Killed));
            }
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }
}
