//! Interrupts that wait, because the driver wants them gathered (NOTF_COAL, virtio 1.3 §5.1.6.5.9).
//!
//! What was completed is shown at once, to a driver that polls as well. Only the interrupt waits: until as many frames have been
//! shown as the driver has set, or its time is over.

use runtime::rings::{Rings, Slot, SlotId};
use runtime::worker::Context;
use virtqueue::DeviceRing;

use crate::port::Coalescing;

use super::RingState;

/// Longest wait, whatever the driver has set: it may change its mind, and does not get back what waits already.
const LONGEST_US: u32 = 1_000_000;

/// An interrupt that is owed.
struct Owed {
    ring: SlotId,
    /// Frames shown since it is.
    frames: u32,
    /// When it is due at the latest.
    until: u64,
}

/// The interrupts that one worker owes.
#[derive(Default)]
pub(super) struct Owing(Vec<Owed>);

impl Owing {
    /// Shows what was completed on a ring, and interrupts its driver when it is time.
    pub fn publish(&mut self, slot: &mut Slot<RingState>, wanted: Coalescing, cx: &mut Context) {
        let shown = slot.queue.ring.unpublished().into();
        let Some(due) = slot.show() else { return };
        let place = match self.0.iter().position(|owed| owed.ring == slot.id) {
            Some(place) => place,
            None if !due => return slot.notify(false, cx),
            None => {
                let until = cx.now_ns() + 1000 * u64::from(wanted.usecs.min(LONGEST_US));
                self.0.push(Owed { ring: slot.id, frames: 0, until });
                self.0.len() - 1
            }
        };
        let owed = &mut self.0[place];
        owed.frames = owed.frames.saturating_add(shown);
        if wanted.frames != 0 && owed.frames >= wanted.frames {
            self.0.swap_remove(place);
            slot.notify(true, cx);
        } else {
            cx.wake_at(owed.until);
        }
    }

    /// Sends the interrupts whose time has come, or all of them.
    pub fn settle(&mut self, rings: &mut Rings<RingState>, cx: &mut Context, all: bool) {
        if self.0.is_empty() {
            return;
        }
        let now = cx.now_ns();
        self.0.retain(|owed| {
            let waits = !all && owed.until > now;
            match rings.slot(owed.ring) {
                _ if waits => cx.wake_at(owed.until),
                Some((slot, _)) => slot.notify(true, cx),
                None => {}
            }
            waits
        });
    }
}
