//! Frames on their way to the kernel, joined where they are of one flow: each system call costs as much as many frames.

use super::link::HEADER;
use crate::frame::{Offer, Packet, Place, Train};

/// Flows that are gathered at the same time.
const LANES: usize = 4;

/// The trains of one queue. None is kept longer than a burst.
pub(super) struct Trains {
    lanes: [Train; LANES],
    /// Which one goes when there is none for another flow.
    next: usize,
    used: bool,
}

impl Trains {
    pub fn new() -> Self {
        Self { lanes: std::array::from_fn(|_| Train::new(HEADER)), next: 0, used: false }
    }

    /// Puts a frame behind those of its flow. Trains that must go first are given to `write`.
    #[inline]
    pub fn put(&mut self, packet: &Packet<'_>, place: Place, mut write: impl FnMut(&mut Train)) {
        self.used = true;
        let mut lane = None;
        for (index, train) in self.lanes.iter_mut().enumerate() {
            match train.offer(packet, place) {
                Offer::Joined => return,
                Offer::Next => {
                    lane = Some(index);
                    break;
                }
                Offer::Other if train.frames() == 0 => lane = lane.or(Some(index)),
                Offer::Other => {}
            }
        }
        let lane = lane.unwrap_or_else(|| {
            self.next = (self.next + 1) % LANES;
            self.next
        });
        let train = &mut self.lanes[lane];
        leave(train, &mut write);
        train.start(packet, place);
    }

    /// Gives all trains to `write`.
    #[inline]
    pub fn flush(&mut self, mut write: impl FnMut(&mut Train)) {
        if std::mem::take(&mut self.used) {
            self.lanes.iter_mut().for_each(|train| leave(train, &mut write));
        }
    }
}

fn leave(train: &mut Train, write: &mut impl FnMut(&mut Train)) {
    if train.frames() > 0 {
        write(train);
        train.clear();
    }
}
