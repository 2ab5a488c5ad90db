//! What a worker thread runs: the queues of any number of disks.

use crate::bounce::BouncePool;
use crate::disk::Disk;
use crate::queue::{Env, QueueState};
use memory::Epochs;
use runtime::io::FileSlot;
use runtime::rings::{Reply, RingCommand, Rings, Slot, SlotId};
use runtime::worker::{Context, Service};
use std::io;
use std::sync::Arc;
use virtqueue::{Broken, Ring};

/// Bits of the user data of an operation that name the request; the ring's slot is above them.
const ENTRY_BITS: u32 = 16;

/// What control tells a worker.
pub enum Message {
    /// About the rings of one disk.
    Rings(RingCommand),
    /// From now on rings of this disk may be started.
    Add {
        /// Number of the device.
        device: u32,
        /// The disk.
        disk: Arc<Disk>,
        /// Answered when the worker can do I/O on it.
        reply: Reply<io::Result<()>>,
    },
    /// The rings of this disk are gone for good.
    Remove {
        /// Number of the device.
        device: u32,
        /// Answered when the worker has let go of the disk.
        reply: Reply<()>,
    },
    /// Are you there?
    Ping {
        /// Answered at once.
        reply: Reply<()>,
    },
    /// The rate limits of this disk have changed: ask them again.
    Limits {
        /// Number of the device.
        device: u32,
    },
}

impl From<RingCommand> for Message {
    fn from(command: RingCommand) -> Self {
        Self::Rings(command)
    }
}

/// A disk as one worker knows it.
struct Known {
    device: u32,
    disk: Arc<Disk>,
    file: Option<FileSlot>,
}

/// The service of one worker.
#[derive(Default)]
pub struct BlkService {
    rings: Rings<Option<QueueState>>,
    disks: Vec<Known>,
    pool: BouncePool,
    /// Something was completed since the rings were last published, or a ring waits for something other than
    /// the driver.
    attention: bool,
}

impl BlkService {
    /// A service without disks.
    pub fn new() -> Self {
        Self::default()
    }

    fn add(&mut self, device: u32, disk: Arc<Disk>, cx: &mut Context) -> io::Result<()> {
        let file = disk.backend().file().map(|file| cx.io.add_file(file.file())).transpose()?;
        self.disks.push(Known { device, disk, file });
        Ok(())
    }

    fn remove(&mut self, device: u32, cx: &mut Context) {
        for known in self.disks.extract_if(.., |known| known.device == device) {
            if let Some(file) = known.file {
                cx.io.remove_file(file);
            }
        }
    }

    fn rings(&mut self, command: RingCommand, cx: &mut Context) {
        let disks = &self.disks;
        self.rings.apply(command, cx, |device, index, _| {
            let known = disks.iter().find(|known| known.device == device)?;
            let exists = usize::from(index) < known.disk.queue_stats().len();
            exists.then(|| QueueState::new(known.disk.clone(), index, known.file))
        });
    }

    fn limits_changed(&mut self, device: u32, cx: &mut Context) {
        self.attention = true;
        self.rings.for_each(cx, |slot, _, _| {
            if slot.device == device
                && let Some(state) = &mut slot.state
            {
                state.release_hold();
            }
        });
    }

    /// Publishes completions and goes on with rings that wait for something. Returns requests that moved.
    fn attend(&mut self, cx: &mut Context) -> usize {
        let (mut moved, mut attention) = (0, false);
        let pool = &mut self.pool;
        self.rings.for_each(cx, |slot, epochs, cx| {
            let Some(state) = &mut slot.state else { return };
            if state.has_waiting() {
                let mut env = env(slot.id, pool, epochs, cx);
                moved += match &mut slot.queue.ring {
                    Ring::Split(ring) => state.resume(ring, &mut env),
                    Ring::Packed(ring) => state.resume(ring, &mut env),
                };
            }
            slot.publish(cx);
            attention |= settle_pause(slot, cx);
        });
        self.attention = attention;
        moved
    }
}

/// What a queue may use of its worker.
fn env<'a>(id: SlotId, pool: &'a mut BouncePool, epochs: &'a mut Epochs, cx: &'a mut Context) -> Env<'a> {
    let now = cx.now_ns();
    Env { io: &mut cx.io, epochs, pool, now, key: u64::from(id.0) << ENTRY_BITS, stats: &cx.stats }
}

/// Takes a burst from one ring and publishes what ended in it.
fn serve(
    slot: &mut Slot<Option<QueueState>>,
    epochs: &mut Epochs,
    pool: &mut BouncePool,
    cx: &mut Context,
) -> usize {
    let Some(state) = &mut slot.state else {
        slot.break_ring(Broken::Refused("the disk is not there"));
        return 0;
    };
    if epochs.view().table().failed() {
        slot.break_ring(Broken::Refused("guest memory is shorter than announced"));
        return 0;
    }
    let mut env = env(slot.id, pool, epochs, cx);
    let moved = match &mut slot.queue.ring {
        Ring::Split(ring) => state.burst(ring, &mut env),
        Ring::Packed(ring) => state.burst(ring, &mut env),
    };
    if moved > 0 {
        slot.stats.requests.add(moved as u64);
        slot.stats.batch.record(moved as u64);
        cx.stats.batch.record(moved as u64);
    }
    slot.publish(cx);
    moved
}

/// Pauses a ring that cannot take more now, resumes one that can. True while something other than the driver
/// must wake it.
fn settle_pause(slot: &mut Slot<Option<QueueState>>, cx: &mut Context) -> bool {
    let Some(state) = &mut slot.state else { return false };
    if let Some(until) = state.held_until() {
        if cx.now_ns() < until {
            cx.wake_at(until);
        } else {
            state.release_hold();
        }
    }
    let stalled = state.stalled(&cx.io);
    let waits = stalled || state.has_waiting();
    if stalled != slot.paused() {
        if stalled { slot.pause() } else { slot.resume() }
    }
    waits
}

impl Service for BlkService {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Context) {
        match message {
            Message::Rings(command) => self.rings(command, cx),
            Message::Add { device, disk, reply } => {
                let added = self.add(device, disk, cx);
                reply.send(added);
            }
            Message::Remove { device, reply } => {
                self.remove(device, cx);
                reply.send(());
            }
            Message::Ping { reply } => reply.send(()),
            Message::Limits { device } => self.limits_changed(device, cx),
        }
    }

    #[inline]
    fn poll_once(&mut self, cx: &mut Context) -> usize {
        let mut work = if self.attention { self.attend(cx) } else { 0 };
        let Self { rings, pool, attention, .. } = self;
        work += rings.serve(cx, |slot, epochs, cx| {
            let moved = serve(slot, epochs, pool, cx);
            *attention |= settle_pause(slot, cx);
            moved
        });
        rings.settle(cx);
        work
    }

    fn completed(&mut self, user_data: u64, result: i32, cx: &mut Context) {
        let (id, entry) = (SlotId((user_data >> ENTRY_BITS) as u32), user_data as u16);
        let Some((slot, epochs)) = self.rings.slot(id) else { return };
        let Some(state) = &mut slot.state else { return };
        let mut env = env(id, &mut self.pool, epochs, cx);
        match &mut slot.queue.ring {
            Ring::Split(ring) => state.completed(ring, entry, result, &mut env),
            Ring::Packed(ring) => state.completed(ring, entry, result, &mut env),
        }
        self.attention = true;
    }

    fn ready(&mut self, watch: runtime::io::WatchId, _: &mut Context) {
        self.rings.kicked(watch);
    }

    fn arm(&mut self) -> bool {
        self.rings.arm()
    }

    fn suppress(&mut self) {
        self.rings.suppress();
    }

    fn outstanding(&self) -> usize {
        self.rings.outstanding()
    }

    fn close(&mut self) {
        self.rings.close();
    }

    fn panicked(&mut self) {
        self.rings.fail();
    }
}
