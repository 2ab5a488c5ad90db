//! What control asks of a worker about its rings, and how it is answered.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use memory::{DirtyLog, MemoryTable};
use virtqueue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::stats::QueueStats;

/// Answers one command. Dropping it unanswered tells the waiting side that no answer will come.
#[derive(Debug)]
pub struct Reply<R>(SyncSender<R>);

impl<R> Reply<R> {
    /// A reply and where to wait for it.
    pub fn new() -> (Self, Receiver<R>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }

    /// Answers. The waiting side may have given up; that is its business.
    pub fn send(self, answer: R) {
        let _ = self.0.send(answer);
    }
}

/// What control asks of a worker about the rings of one device.
pub enum RingCommand {
    /// Own this queue from now on, and look at it at once. It starts disabled, as the vhost-user session has it.
    Start {
        /// The device.
        device: u32,
        /// Queue index within the device.
        index: u16,
        /// The queue.
        queue: Box<Queue>,
        /// Its counters, which outlive it.
        stats: Arc<QueueStats>,
        /// Answered when the queue is served.
        reply: Reply<()>,
    },
    /// Take no more chains, complete those in flight, publish, and give the queue back.
    Stop {
        /// The device.
        device: u32,
        /// Queue index within the device.
        index: u16,
        /// The drained queue; `None` when it was not running here.
        reply: Reply<Option<Box<Queue>>>,
    },
    /// Use this memory from now on. I/O in flight ends on the old one.
    Memory {
        /// The device.
        device: u32,
        /// The new table.
        table: Arc<MemoryTable>,
        /// Answered when no new access uses the old table.
        reply: Reply<()>,
    },
    /// Mark what is written in this log from now on.
    Log {
        /// The device.
        device: u32,
        /// The log; `None` ends logging.
        log: Option<Arc<DirtyLog>>,
        /// Answered when every write is logged (or none any more).
        reply: Reply<()>,
    },
    /// Interrupt the driver by this eventfd.
    Call {
        /// The device.
        device: u32,
        /// Queue index within the device.
        index: u16,
        /// The eventfd; `None`: the driver polls.
        call: Option<EventFd>,
        /// Answered when the old one is not used any more.
        reply: Reply<()>,
    },
    /// Report a broken ring by this eventfd.
    Err {
        /// The device.
        device: u32,
        /// Queue index within the device.
        index: u16,
        /// The eventfd.
        err: Option<EventFd>,
        /// Answered when the old one is not used any more.
        reply: Reply<()>,
    },
    /// Serve the ring or leave it alone. Enabling an enabled ring is a kick.
    Enable {
        /// The device.
        device: u32,
        /// Queue index within the device.
        index: u16,
        /// Whether to serve it.
        enable: bool,
        /// Answered when it holds.
        reply: Reply<()>,
    },
}
