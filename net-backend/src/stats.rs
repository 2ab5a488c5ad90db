//! Counters of the ports: each written by one worker, read by anybody.
//!
//! A port has a [`Lane`] for each worker, because frames reach a port from every worker; the figures of a port are the sums.
//! What happens on its rings (chains, kicks, interrupts) is counted by `runtime` for each queue, and the frames of each queue
//! by [`Traffic`] here.

use crossbeam_utils::CachePadded;
use runtime::stats::Counter;

use crate::switch::{DROPS, Drop};

/// Frames and their bytes, without virtio-net headers.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Frames.
    pub frames: Counter,
    /// Bytes.
    pub bytes: Counter,
}

impl Traffic {
    /// Counts a burst.
    #[inline]
    pub fn add(&self, frames: u64, bytes: u64) {
        self.frames.add(frames);
        self.bytes.add(bytes);
    }

    /// Frames and bytes so far.
    pub fn get(&self) -> (u64, u64) {
        (self.frames.get(), self.bytes.get())
    }
}

/// What one worker counts of one port. "In" is from the port into the switch, "out" from the switch to the port.
#[derive(Debug)]
pub struct Lane {
    /// From the port into the switch, dropped ones included.
    pub received: Traffic,
    /// Delivered to the port.
    pub sent: Traffic,
    /// Frames in, by what was wrong with them.
    pub in_drops: [Counter; DROPS],
    /// Frames out, by why they were not delivered.
    pub out_drops: [Counter; DROPS],
    /// Frames in that went to more than one port.
    pub flooded: Counter,
    /// Frames out whose checksum was completed here.
    pub checksummed: Counter,
    /// Frames in that were segmented here for some receiver.
    pub segmented: Counter,
    /// Frames out that came from another worker.
    pub crossed: Counter,
    /// Of an uplink: system calls for its frames, as its queue counts them.
    pub wire_calls: Counter,
    /// Of an uplink: frames lost between here and the wire, as its queue counts them.
    pub wire_lost: Counter,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            received: Traffic::default(),
            sent: Traffic::default(),
            in_drops: std::array::from_fn(|_| Counter::default()),
            out_drops: std::array::from_fn(|_| Counter::default()),
            flooded: Counter::default(),
            checksummed: Counter::default(),
            segmented: Counter::default(),
            crossed: Counter::default(),
            wire_calls: Counter::default(),
            wire_lost: Counter::default(),
        }
    }
}

impl Lane {
    /// Counts a frame from the port that goes nowhere.
    #[inline]
    pub fn drop_in(&self, why: Drop) {
        self.in_drops[why as usize].add(1);
    }

    /// Counts `frames` that the port does not get.
    #[inline]
    pub fn drop_out(&self, why: Drop, frames: u64) {
        self.out_drops[why as usize].add(frames);
    }
}

/// All counters of a port.
#[derive(Debug)]
pub struct PortStats {
    lanes: Box<[CachePadded<Lane>]>,
    queues: Box<[CachePadded<Traffic>]>,
}

impl PortStats {
    /// Zeros, for this many workers and queue pairs.
    pub fn new(workers: usize, pairs: u16) -> Self {
        Self {
            lanes: (0..workers.max(1)).map(|_| CachePadded::default()).collect(),
            queues: (0..2 * pairs).map(|_| CachePadded::default()).collect(),
        }
    }

    /// What worker `worker` counts.
    ///
    /// # Panics
    /// When there are not so many workers.
    #[inline]
    pub fn lane(&self, worker: usize) -> &Lane {
        &self.lanes[worker]
    }

    /// One for each worker.
    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().map(|lane| &**lane)
    }

    /// The frames of queue `index`: even ones are receive queues of the guest. `None` for the control queue.
    #[inline]
    pub fn queue(&self, index: u16) -> Option<&Traffic> {
        self.queues.get(usize::from(index)).map(|traffic| &**traffic)
    }

    /// The sums over all workers.
    pub fn snapshot(&self) -> PortSnapshot {
        let mut sum = PortSnapshot::default();
        for lane in self.lanes() {
            sum.add(lane);
        }
        sum
    }
}

/// The counters of a port at one moment; see [`Lane`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSnapshot {
    /// Frames from the port, dropped ones included.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames delivered to the port.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Drops of frames from the port, by [`Drop`].
    pub in_drops: [u64; DROPS],
    /// Drops of frames for the port, by [`Drop`].
    pub out_drops: [u64; DROPS],
    /// Frames in that went to more than one port.
    pub flooded: u64,
    /// Frames out whose checksum was completed here.
    pub checksummed: u64,
    /// Frames in that were segmented here.
    pub segmented: u64,
    /// Frames out that came from another worker.
    pub crossed: u64,
    /// System calls for frames of an uplink.
    pub wire_calls: u64,
    /// Frames lost between an uplink and the wire.
    pub wire_lost: u64,
}

impl Default for PortSnapshot {
    fn default() -> Self {
        Self {
            received_frames: 0,
            received_bytes: 0,
            sent_frames: 0,
            sent_bytes: 0,
            in_drops: [0; DROPS],
            out_drops: [0; DROPS],
            flooded: 0,
            checksummed: 0,
            segmented: 0,
            crossed: 0,
            wire_calls: 0,
            wire_lost: 0,
        }
    }
}

impl PortSnapshot {
    fn add(&mut self, lane: &Lane) {
        let ((received, received_bytes), (sent, sent_bytes)) = (lane.received.get(), lane.sent.get());
        self.received_frames += received;
        self.received_bytes += received_bytes;
        self.sent_frames += sent;
        self.sent_bytes += sent_bytes;
        for why in 0..DROPS {
            self.in_drops[why] += lane.in_drops[why].get();
            self.out_drops[why] += lane.out_drops[why].get();
        }
        self.flooded += lane.flooded.get();
        self.checksummed += lane.checksummed.get();
        self.segmented += lane.segmented.get();
        self.crossed += lane.crossed.get();
        self.wire_calls += lane.wire_calls.get();
        self.wire_lost += lane.wire_lost.get();
    }

    /// All drops of frames from the port.
    pub fn dropped_in(&self) -> u64 {
        self.in_drops.iter().sum()
    }

    /// All drops of frames for the port.
    pub fn dropped_out(&self) -> u64 {
        self.out_drops.iter().sum()
    }
}
