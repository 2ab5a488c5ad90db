//! The rings a worker owns: slots, memory epochs, and what control asks of them.
//!
//! A service embeds a [`Rings`], passes it every [`RingCommand`] it gets, serves the ready slots from its
//! [`poll_once`](crate::worker::Service::poll_once) by [`Rings::serve`], and ends that with [`Rings::settle`].
//!
//! Kicks are switched lazily: a ring's kicks go off when it has had work, and on again before the worker sleeps. A worker
//! that is woken for one of fifty rings pays for one, and an idle ring costs a polling worker one cached load.

mod command;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use memory::{Epochs, MemoryTable, MemoryView};
use virtqueue::{Broken, DeviceRing, Queue};

use crate::io::WatchId;
use crate::stats::QueueStats;
use crate::worker::Context;

pub use command::{Reply, RingCommand};

/// Most chains a service should take from one ring before it looks at the next one.
pub const BURST: u16 = 64;

/// How long a device is not served after its frontend has held the worker up, which then costs the other devices of the
/// worker 2 % of its time at most.
const DEAF_NS: u64 = 10_000_000_000;

/// What a worker does with a ring by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The driver's chains are work: the ring is polled, and its kicks wake the worker.
    Served,
    /// Its chains are only room for what comes from elsewhere (the receive rings of a network device). Nobody waits for
    /// more of them, so the ring is not polled, and its kicks are off and not watched.
    Sink,
}

/// A place among the rings of a worker; stable while the ring runs, given to another one after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// One ring and what goes with it.
pub struct Slot<T> {
    /// Where it is.
    pub id: SlotId,
    /// The device it belongs to.
    pub device: u32,
    /// Queue index within the device.
    pub index: u16,
    /// The queue.
    pub queue: Box<Queue>,
    /// The service's own state for it.
    pub state: T,
    /// Its counters.
    pub stats: Arc<QueueStats>,
    memory: usize,
    role: Role,
    watch: Option<WatchId>,
    kickless: bool,
    enabled: bool,
    paused: bool,
    /// Kicks are on.
    armed: bool,
    stopping: Option<Reply<Option<Box<Queue>>>>,
    was_broken: bool,
    /// The driver wanted an interrupt for what was shown early.
    owed: bool,
}

impl<T> Slot<T> {
    /// Whether the frontend has enabled the ring.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether the ring is being drained: nothing new is taken from it.
    pub fn stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Leaves the ring alone until [`resume`](Self::resume): the service cannot take more now, because of a rate limit
    /// ([`Context::wake_at`] brings the time to go on) or a full I/O queue. Without it, waiting work keeps the worker
    /// awake.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Whether the service has paused the ring.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// What the worker does with the ring by itself.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the service may put something into the ring: it is enabled, stays, and is in order.
    pub fn takes(&self) -> bool {
        self.enabled && self.stopping.is_none() && self.queue.ring.broken().is_none()
    }

    fn ready(&self) -> bool {
        self.enabled && self.role == Role::Served && !self.paused && self.stopping.is_none()
    }

    /// Publishes what was completed, interrupts the driver if it wants that, and counts both. Nothing to publish:
    /// nothing happens.
    #[inline]
    pub fn publish(&mut self, cx: &Context) {
        let shown = self.show();
        let owed = std::mem::take(&mut self.owed);
        if shown.is_some() || owed {
            self.notify(owed || shown == Some(true), cx);
        }
    }

    /// Shows the driver what was completed so far, for one that polls: it goes on while the worker does. One that sleeps is
    /// interrupted by the next [`publish`](Self::publish), which has to follow.
    #[inline]
    pub fn show_early(&mut self) {
        self.owed |= self.show() == Some(true);
    }

    /// The first half of [`publish`](Self::publish), for interrupts that may wait: shows the driver what was completed. True:
    /// it wants an interrupt, which is now owed to it. `None`: there was nothing to show.
    #[inline]
    #[must_use = "true means that the driver is waiting for an interrupt"]
    pub fn show(&mut self) -> Option<bool> {
        let completed = self.queue.ring.unpublished();
        if completed == 0 {
            return None;
        }
        self.stats.completions.add(completed.into());
        Some(self.queue.ring.publish())
    }

    /// The second half: interrupts the driver if it wants that, and counts it.
    #[inline]
    pub fn notify(&mut self, wanted: bool, cx: &Context) {
        if self.queue.notify(wanted) {
            self.stats.interrupts.add(1);
            cx.stats.interrupts.add(1);
            if self.queue.is_deaf() {
                self.note_broken();
            }
        } else {
            self.stats.interrupts_suppressed.add(1);
            cx.stats.interrupts_suppressed.add(1);
        }
    }

    /// Gives the ring up: counted and told once.
    pub fn break_ring(&mut self, why: Broken) {
        self.queue.break_ring(why);
        self.note_broken();
    }

    /// Counts and reports a ring that has latched itself as broken. The err eventfd is written by
    /// [`Queue::break_ring`], once.
    fn note_broken(&mut self) {
        let Some(why) = self.queue.ring.broken() else { return };
        if !std::mem::replace(&mut self.was_broken, true) {
            self.queue.break_ring(why);
            self.stats.broken.add(1);
            tracing::warn!(device = self.device, queue = self.index, %why, "The driver broke its ring");
        }
    }

    /// Counts a burst, and switches kicks off: while there is work the ring is polled.
    #[inline]
    fn had_work(&mut self, cx: &Context) {
        if self.armed {
            self.armed = false;
            self.queue.ring.suppress();
        } else {
            self.stats.kicks_suppressed.add(1);
            cx.stats.kicks_suppressed.add(1);
        }
    }
}

/// The memory of one device, as this worker sees it.
struct DeviceMemory {
    device: u32,
    epochs: Epochs,
    /// Until then no ring of the device is served: its frontend has held the worker up, and would do it again.
    deaf_until: u64,
}

/// All rings of a worker, with a `T` of the service's own for each.
pub struct Rings<T> {
    slots: Vec<Option<Slot<T>>>,
    memory: Vec<DeviceMemory>,
    /// Where the next round begins, so that the first ring is not always the first.
    first: usize,
    /// Rings being drained.
    stopping: usize,
    /// Rings without a kick eventfd: the frontend asked for polling.
    kickless: usize,
    /// Nothing new is taken from any ring.
    closed: bool,
}

impl<T> Default for Rings<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), memory: Vec::new(), first: 0, stopping: 0, kickless: 0, closed: false }
    }
}

impl<T> Rings<T> {
    /// No ring yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does what control asks. `state` makes the service's state for a queue that starts, which is then served.
    pub fn apply(
        &mut self,
        command: RingCommand,
        cx: &mut Context,
        state: impl FnOnce(u32, u16, &Queue) -> T,
    ) {
        self.apply_as(command, cx, |device, index, queue| (state(device, index, queue), Role::Served));
    }

    /// The same for a service that has sinks.
    pub fn apply_as(
        &mut self,
        command: RingCommand,
        cx: &mut Context,
        state: impl FnOnce(u32, u16, &Queue) -> (T, Role),
    ) {
        match command {
            RingCommand::Start { device, index, queue, stats, reply } => {
                let state = state(device, index, &queue);
                self.start(device, index, queue, state, stats, cx);
                reply.send(());
            }
            RingCommand::Stop { device, index, reply } => self.stop(device, index, reply, cx),
            RingCommand::Memory { device, table, reply } => {
                self.replace_memory(device, table, cx);
                reply.send(());
            }
            RingCommand::Log { device, log, reply } => {
                for slot in self.of_device(device) {
                    // A ring whose used ring is logged elsewhere is restarted by the session instead.
                    slot.queue.set_log(log.clone(), None);
                }
                reply.send(());
            }
            RingCommand::Call { device, index, call, reply } => {
                self.with(device, index, |slot| {
                    slot.queue.set_call(call);
                    slot.queue.interrupt();
                });
                reply.send(());
            }
            RingCommand::Err { device, index, err, reply } => {
                self.with(device, index, |slot| slot.queue.set_err(err));
                reply.send(());
            }
            RingCommand::Enable { device, index, enable, reply } => {
                // The round that follows looks at the ring, which serves as the kick.
                self.with(device, index, |slot| slot.enabled = enable);
                reply.send(());
            }
        }
    }

    /// Calls `serve` once for each ring that may be served and has work, beginning with another one each time; sums up
    /// what it returns (units of work, 0: nothing). It should take no more than [`BURST`] chains at a time.
    #[inline]
    pub fn serve(
        &mut self,
        cx: &mut Context,
        mut serve: impl FnMut(&mut Slot<T>, &mut Epochs, &mut Context) -> usize,
    ) -> usize {
        if self.closed {
            return 0;
        }
        let n = self.slots.len();
        let mut work = 0;
        for turn in 0..n {
            let place = if self.first + turn < n { self.first + turn } else { self.first + turn - n };
            let Some(slot) = &mut self.slots[place] else { continue };
            if !slot.ready() || !slot.queue.ring.has_work() {
                continue;
            }
            slot.had_work(cx);
            work += serve(slot, &mut self.memory[slot.memory].epochs, cx);
            slot.note_broken();
        }
        self.first = if self.first + 1 < n { self.first + 1 } else { 0 };
        work
    }

    /// As [`serve`](Self::serve), for a service that moves data from ring to ring: it gets all rings, and which of them is
    /// to be served. It says so when it breaks one.
    #[inline]
    pub fn serve_among(
        &mut self,
        cx: &mut Context,
        mut serve: impl FnMut(&mut Self, SlotId, &mut Context) -> usize,
    ) -> usize {
        if self.closed {
            return 0;
        }
        let n = self.slots.len();
        let mut work = 0;
        for turn in 0..n {
            let place = if self.first + turn < n { self.first + turn } else { self.first + turn - n };
            let Some(slot) = &mut self.slots[place] else { continue };
            if !slot.ready() || !slot.queue.ring.has_work() {
                continue;
            }
            slot.had_work(cx);
            work += serve(self, SlotId(place as u32), cx);
            if let Some(slot) = &mut self.slots[place] {
                slot.note_broken();
            }
        }
        self.first = if self.first + 1 < n { self.first + 1 } else { 0 };
        work
    }

    /// Calls `each` for every ring, whether it may take new work or not: to publish completions, or to go on with
    /// requests held back.
    pub fn for_each(
        &mut self,
        cx: &mut Context,
        mut each: impl FnMut(&mut Slot<T>, &mut Epochs, &mut Context),
    ) {
        for slot in self.slots.iter_mut().flatten() {
            each(slot, &mut self.memory[slot.memory].epochs, cx);
        }
    }

    /// One ring and its memory, for a completion.
    #[inline]
    pub fn slot(&mut self, id: SlotId) -> Option<(&mut Slot<T>, &mut Epochs)> {
        let slot = self.slots.get_mut(id.0 as usize)?.as_mut()?;
        let epochs = &mut self.memory[slot.memory].epochs;
        Some((slot, epochs))
    }

    /// One ring and its memory as it is now, for work that ends before the next message.
    #[inline]
    pub fn with_view(&mut self, id: SlotId) -> Option<(&mut Slot<T>, &MemoryView)> {
        let slot = self.slots.get_mut(id.0 as usize)?.as_mut()?;
        let view = self.memory[slot.memory].epochs.view();
        Some((slot, view))
    }

    /// Two rings and their memories. `None` when one is not there, or when they are the same.
    #[inline]
    pub fn pair(&mut self, a: SlotId, b: SlotId) -> Option<[(&mut Slot<T>, &MemoryView); 2]> {
        let [a, b] = self.slots.get_disjoint_mut([a.0 as usize, b.0 as usize]).ok()?;
        let (a, b) = (a.as_mut()?, b.as_mut()?);
        let view = |slot: &Slot<T>| self.memory[slot.memory].epochs.view();
        let views = (view(a), view(b));
        Some([(a, views.0), (b, views.1)])
    }

    /// All rings.
    pub fn iter(&self) -> impl Iterator<Item = &Slot<T>> {
        self.slots.iter().flatten()
    }

    /// Answers the stops whose rings are drained. Call it at the end of each round, after publishing.
    #[inline]
    pub fn settle(&mut self, cx: &mut Context) {
        if self.stopping > 0 {
            self.finish_stops(cx);
        }
    }

    /// Before sleep: kicks on wherever they are off. True when a ring has work already.
    pub fn arm(&mut self) -> bool {
        // A ring without kicks has to be polled for ever.
        let mut work = self.kickless > 0;
        if self.closed {
            return false;
        }
        // A ring that is not ready stays unarmed and is looked at when it becomes ready.
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.ready()) {
            if !slot.armed {
                slot.armed = true;
                work |= slot.queue.ring.arm();
            }
        }
        work
    }

    /// After sleep. Kicks go off ring by ring, as they turn out to have work.
    pub fn suppress(&mut self) {}

    /// The worker is to end: nothing new is taken from any ring.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// A watch has fired: counts the kick of the ring it belongs to.
    pub fn kicked(&mut self, watch: WatchId) {
        if let Some(slot) = self.slots.iter().flatten().find(|slot| slot.watch == Some(watch)) {
            slot.stats.kicks.add(1);
        }
    }

    /// Chains taken and not completed, over all rings.
    pub fn outstanding(&self) -> usize {
        self.slots.iter().flatten().map(|slot| usize::from(slot.queue.ring.in_flight())).sum()
    }

    /// How many rings there are.
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The service is lost: every ring is broken and its frontend told; drains that were waited for are given up.
    pub fn fail(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.stopping = None;
            slot.break_ring(Broken::Refused("the device has failed"));
        }
        self.stopping = 0;
    }

    fn start(
        &mut self,
        device: u32,
        index: u16,
        mut queue: Box<Queue>,
        (state, role): (T, Role),
        stats: Arc<QueueStats>,
        cx: &mut Context,
    ) {
        // A predecessor may have left kicks off. Work that is there already is found by the round that follows the
        // enabling, without a kick.
        let _work = queue.ring.arm();
        let sink = role == Role::Sink;
        if sink {
            queue.ring.suppress();
        }
        let kick = queue.kick_fd().filter(|_| !sink);
        let kick = kick.map(|kick| is_event(kick).and_then(|()| cx.watch(kick.as_raw_fd())));
        let kickless = kick.is_none() && !sink;
        let watch = kick.and_then(|watched| match watched {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(device, queue = index, %error, "The kick cannot be waited for");
                queue.break_ring(Broken::Refused("the kick is no eventfd"));
                None
            }
        });
        self.kickless += usize::from(kickless);
        let place = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let memory = self.memory_of(device);
        if cx.now_ns() < self.memory[memory].deaf_until {
            drop((queue.take_call(), queue.take_err()));
            queue.break_ring(Broken::Deaf);
        }
        queue.interrupt();
        let id = SlotId(place as u32);
        self.slots[place] = Some(Slot {
            id,
            device,
            index,
            queue,
            state,
            stats,
            memory,
            role,
            watch,
            kickless,
            enabled: false,
            paused: false,
            armed: !sink,
            stopping: None,
            was_broken: false,
            owed: false,
        });
    }

    fn stop(&mut self, device: u32, index: u16, reply: Reply<Option<Box<Queue>>>, cx: &mut Context) {
        let found = self.of_device(device).find(|slot| slot.index == index && slot.stopping.is_none());
        match found {
            Some(slot) => {
                slot.stopping = Some(reply);
                self.stopping += 1;
                self.settle(cx);
            }
            None => reply.send(None),
        }
    }

    #[cold]
    fn finish_stops(&mut self, cx: &mut Context) {
        for place in &mut self.slots {
            let drained = |slot: &Slot<T>| slot.stopping.is_some() && slot.queue.ring.in_flight() == 0;
            let Some(mut slot) = place.take_if(|slot| drained(slot)) else { continue };
            // Whatever was completed and not shown must be shown: the base that control reads next counts it.
            slot.publish(cx);
            self.stopping -= 1;
            self.kickless -= usize::from(slot.kickless);
            if slot.queue.is_deaf() {
                self.memory[slot.memory].deaf_until = cx.now_ns().saturating_add(DEAF_NS);
            }
            if let Some(watch) = slot.watch {
                cx.unwatch(watch);
            }
            if let Some(reply) = slot.stopping.take() {
                reply.send(Some(slot.queue));
            }
        }
    }

    fn replace_memory(&mut self, device: u32, table: Arc<MemoryTable>, cx: &mut Context) {
        let place = self.memory_of(device);
        self.memory[place].epochs.replace(table.clone());
        cx.io.register_memory(device, &table);
        for slot in self.of_device(device) {
            if let Err(error) = slot.queue.rebuild_after_memory_change(&table) {
                tracing::warn!(device, queue = slot.index, %error, "The new memory does not hold the ring");
                slot.break_ring(Broken::Refused("the new memory does not hold the ring"));
            }
        }
    }

    /// The place of a device's memory; empty memory for one that is not known yet.
    fn memory_of(&mut self, device: u32) -> usize {
        let known = self.memory.iter().position(|memory| memory.device == device);
        known.unwrap_or_else(|| {
            let epochs = Epochs::new(MemoryTable::empty());
            self.memory.push(DeviceMemory { device, epochs, deaf_until: 0 });
            self.memory.len() - 1
        })
    }

    fn of_device(&mut self, device: u32) -> impl Iterator<Item = &mut Slot<T>> {
        self.slots.iter_mut().flatten().filter(move |slot| slot.device == device)
    }

    fn with(&mut self, device: u32, index: u16, change: impl FnOnce(&mut Slot<T>)) {
        // A command for a ring that is not here (any more) has nothing to change.
        if let Some(slot) = self.of_device(device).find(|slot| slot.index == index) {
            change(slot);
        }
    }
}

/// Refuses a kick that is no eventfd: a pipe would fill up, since kicks are not read, and a file is always ready. What
/// passes is anything without a file type, which are the kernel's anonymous inodes.
fn is_event(kick: BorrowedFd<'_>) -> io::Result<()> {
    let mode = File::from(kick.try_clone_to_owned()?).metadata()?.mode();
    if mode & libc::S_IFMT == 0 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
