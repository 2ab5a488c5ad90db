//! The inflight region (vhost-user "Inflight I/O tracking"); being filled in.
use memory::Area;

use crate::broken::SetupError;
use crate::setup::Format;

/// Bytes of one queue's region.
pub const fn region_size(format: Format, queue_size: u16) -> usize {
    let bytes = match format {
        Format::Split => 16 + 16 * queue_size as usize,
        Format::Packed => 32 + 32 * queue_size as usize,
    };
    bytes.next_multiple_of(64)
}

/// One queue's part of the region of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub struct QueueRegion {
    area: Area,
}

impl QueueRegion {
    /// The region of queue `index` in the whole area; `queue_size` is the one of VhostUserInflight.
    pub fn nth(whole: &Area, format: Format, queue_size: u16, index: u16) -> Result<Self, SetupError> {
        let size = region_size(format, queue_size);
        let area = whole.sub(usize::from(index) * size, size).ok_or(SetupError::BadInflight("too short"))?;
        Ok(Self { area })
    }

    /// The memory.
    pub fn area(&self) -> &Area {
        &self.area
    }
}
