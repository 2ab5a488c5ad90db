//! The notification rule of EVENT_IDX (virtio 1.3 §2.7.10).

/// Whether the step of an index from `old` to `new` passes `event`, all modulo 2^16: notify then.
#[inline]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::need_event;

    #[test]
    fn an_event_is_due_exactly_when_the_index_steps_over_it() {
        // (event, old): stepping from `old` to `old + 3` uses entries old, old + 1, old + 2.
        for old in [0u16, 100, 65533, 65534, 65535] {
            for ahead in -3i16..6 {
                let event = old.wrapping_add_signed(ahead);
                assert_eq!(need_event(event, old.wrapping_add(3), old), (0..3).contains(&ahead));
            }
        }
    }

    #[test]
    fn no_step_is_no_event() {
        assert!((0..=u16::MAX).all(|event| !need_event(event, 7, 7)));
    }
}
