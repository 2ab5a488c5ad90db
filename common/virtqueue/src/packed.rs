//! Device side; being filled in.
use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, MemoryTable, MemoryView};

use crate::broken::{Broken, SetupError};
use crate::chain::Chain;
use crate::device::DeviceRing;
use crate::setup::{Areas, RingSetup};

/// Device side.
pub struct Device {
    _areas: Areas,
}

impl Device {
    pub(crate) fn new(_setup: RingSetup<'_>) -> Result<Self, SetupError> {
        unreachable!()
    }
    pub(crate) fn base(&self) -> u32 {
        unreachable!()
    }
    pub(crate) fn remap(&mut self, _table: &MemoryTable) -> Result<(), SetupError> {
        unreachable!()
    }
    pub(crate) fn set_log(&mut self, _log: Option<Arc<DirtyLog>>, _used: Option<GuestAddr>) {}
}

impl DeviceRing for Device {
    fn fetch(&mut self, _max: u16) -> u16 {
        0
    }
    fn next(&mut self, _mem: &MemoryView, _chain: &mut Chain) -> Result<(), Broken> {
        Err(Broken::NothingFetched)
    }
    fn unfetch(&mut self, _chain: &Chain) -> bool {
        false
    }
    fn complete(&mut self, _mem: &MemoryView, _chain: &Chain, _written: u32) {}
    fn publish(&mut self) -> bool {
        false
    }
    fn unpublished(&self) -> u16 {
        0
    }
    fn arm(&mut self) -> bool {
        false
    }
    fn suppress(&mut self) {}
    fn has_work(&self) -> bool {
        false
    }
    fn in_flight(&self) -> u16 {
        0
    }
    fn broken(&self) -> Option<Broken> {
        None
    }
    fn break_with(&mut self, _why: Broken) {}
}
