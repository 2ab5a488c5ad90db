//! The inflight region (vhost-user "Inflight I/O tracking"): memory that the frontend keeps when a back-end dies, so
//! that its successor knows which requests were taken and not completed.
//!
//! The layouts are those of the specification, byte for byte, and of libvhost-user and DPDK in size; a successor may
//! be another implementation. A back-end can be killed between any two stores, and after each of them the region and
//! the ring together must say for every request either "in flight" or "completed". Stores that commit something are
//! release stores, so that neither compiler nor machine moves an earlier one behind them; a process that dies leaves
//! a prefix of its stores.
//!
//! What is read back at start was the frontend's to change: it is checked and copied once. While the ring runs nothing
//! is read from the region.

mod packed;
mod split;

pub(crate) use packed::PackedTracker;
pub(crate) use split::SplitTracker;

use std::sync::atomic::Ordering::Relaxed;

use memory::Area;

use crate::broken::SetupError;
use crate::setup::Format;

/// Each queue's region starts on a cache line, as with libvhost-user and DPDK.
const REGION_ALIGN: usize = 64;

/// `version` of an initialised region.
const VERSION: u16 = 1;

/// Offset of `features` in both headers.
const FEATURES: usize = 0;
/// Offset of `version` in both headers.
const VERSION_OFFSET: usize = 8;
/// Offset of `desc_num` in both headers.
const DESC_NUM: usize = 10;

/// Bytes of one queue's region, for GET_INFLIGHT_FD.
pub const fn region_size(format: Format, queue_size: u16) -> usize {
    let (header, entry) = match format {
        Format::Split => (split::HEADER_BYTES, split::ENTRY_BYTES),
        Format::Packed => (packed::HEADER_BYTES, packed::ENTRY_BYTES),
    };
    (header + entry * queue_size as usize).next_multiple_of(REGION_ALIGN)
}

/// One queue's part of the region of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Clone)]
pub struct QueueRegion {
    area: Area,
    format: Format,
    queue_size: u16,
}

impl QueueRegion {
    /// A region in `area`, which has [`region_size`] bytes or more; `queue_size` is the one of VhostUserInflight, which the
    /// ring's own size must not exceed.
    pub fn new(area: Area, format: Format, queue_size: u16) -> Result<Self, SetupError> {
        if area.len() < region_size(format, queue_size) {
            return Err(SetupError::BadInflight("too short"));
        }
        if !area.is_aligned(size_of::<u64>()) {
            return Err(SetupError::BadInflight("not aligned"));
        }
        Ok(Self { area, format, queue_size })
    }

    /// The region of queue `index` in the area of all queues.
    pub fn nth(whole: &Area, format: Format, queue_size: u16, index: u16) -> Result<Self, SetupError> {
        let size = region_size(format, queue_size);
        let area = whole.sub(usize::from(index) * size, size).ok_or(SetupError::BadInflight("too short"))?;
        Self::new(area, format, queue_size)
    }

    /// Whether no back-end has used the region yet.
    pub fn is_fresh(&self) -> bool {
        self.area.load_u16(VERSION_OFFSET, Relaxed) == 0
    }

    /// The memory.
    pub fn area(&self) -> &Area {
        &self.area
    }

    fn check(&self, format: Format, size: u16) -> Result<(), SetupError> {
        if self.format != format {
            return Err(SetupError::BadInflight("of the other ring format"));
        }
        if size > self.queue_size {
            return Err(SetupError::BadInflight("smaller than the ring"));
        }
        Ok(())
    }
}
