//! The notification rule of EVENT_IDX (virtio 1.3 §2.7.10).

/// Whether the step of an index from `old` to `new` passes `event`, all modulo 2^16: notify then.
#[inline]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
