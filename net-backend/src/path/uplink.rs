//! The worker's queue of the uplink: frames from the wire, and waiting for a guest that has no room for them.
//!
//! With one port beside the uplink, the guest at that port is the only receiver, and nobody else is held up when it is slow: its
//! frames stay in the kernel until it has buffers, instead of being dropped here. Its receive ring, which wakes nobody
//! otherwise, is armed for that time.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use memory::MemoryView;
use runtime::io::WatchId;
use runtime::rings::{Rings, Role, Slot, SlotId};
use runtime::worker::Context;
use virtqueue::DeviceRing;

use crate::port::Port;
use crate::switch::{Drop, PortId};
use crate::uplink::UplinkQueue;

use super::burst::{Burst, Frames, STRIDE};
use super::deliver::{Egress, Place};
use super::{BURST, Path, RingState};

/// Buffers of common size that the largest frame fills, and one.
const LARGEST: u16 = 44;
/// How long a guest that has some buffers, but few, is waited for: it may never add to them.
const PATIENCE_NS: u64 = 100_000_000;
/// How often it is looked at meanwhile. It sends no kick that could be relied on before all buffers are used.
const STEP_NS: u64 = 200_000;

/// The worker's queue of the uplink.
pub(super) struct UplinkHere {
    pub port: PortId,
    pub queue: Box<dyn UplinkQueue>,
    watch: WatchId,
    /// Its descriptor was readable, and nobody has found it empty since.
    ready: bool,
    /// Something was sent that is not flushed.
    unflushed: bool,
    /// The receiver has no room.
    wait: Option<Wait>,
    /// Kicks of the receiver that was waited for last. Kept from one wait to the next: kicks are not read, so that a descriptor
    /// with an old one is ready as soon as it is watched.
    kicks: Option<Kicks>,
    /// Since when it has had some, but little.
    short_since: Option<u64>,
}

/// The kicks of a receive ring.
struct Kicks {
    watch: WatchId,
    /// The watch's own descriptor: the ring may be gone before the watch is.
    _kick: OwnedFd,
    ring: SlotId,
    /// Rings, ports or policy have changed: it may be another ring by now.
    stale: bool,
}

/// Waiting for the receiver to add buffers.
enum Wait {
    /// It has none: until its kick, or until rings, ports or policy change.
    Kick { over: bool },
    /// It has some: until then.
    Until(u64),
}

/// How many frames the receivers have room for.
enum Room {
    /// This many; what they have no room for is dropped.
    For(usize),
    /// The only receiver has little.
    Short,
    /// The only receiver has none in this ring.
    None(SlotId),
}

impl UplinkHere {
    /// Whether the uplink has frames to be taken now: the worker must not sleep.
    pub fn arm(&mut self) -> bool {
        match &self.wait {
            Some(Wait::Kick { over }) => *over,
            // It sleeps until then.
            Some(Wait::Until(_)) => false,
            None => self.ready || self.queue.arm(),
        }
    }

    /// Sends frames of a burst to the wire.
    pub fn send(&mut self, egress: &mut Egress<'_>, burst: &Burst, view: &MemoryView, frames: Frames) {
        let can = self.queue.offloads();
        let tally = egress.by(burst, view, frames, can, |packet| self.queue.send(packet));
        self.unflushed = true;
        egress.lane.sent.add(tally.frames, tally.bytes);
    }

    /// Gives up the watches.
    pub fn close(mut self, cx: &mut Context) {
        self.forget_kicks(cx);
        cx.unwatch(self.watch);
    }

    fn forget_kicks(&mut self, cx: &mut Context) {
        if let Some(kicks) = self.kicks.take() {
            cx.unwatch(kicks.watch);
        }
    }

    /// Has the kicks of a ring watched; false when it has none that can be.
    fn watch_kicks(&mut self, slot: &Slot<RingState>, cx: &mut Context) -> bool {
        if self.kicks.as_ref().is_some_and(|kicks| kicks.ring == slot.id && !kicks.stale) {
            return true;
        }
        self.forget_kicks(cx);
        let kick = slot.queue.kick_fd().and_then(|kick| kick.try_clone_to_owned().ok());
        let watched = kick.and_then(|kick| Some((cx.watch(kick.as_raw_fd()).ok()?, kick)));
        let kicks = |(watch, kick)| Kicks { watch, _kick: kick, ring: slot.id, stale: false };
        self.kicks = watched.map(kicks);
        self.kicks.is_some()
    }

    /// Whether frames may be taken now.
    #[inline]
    fn may_receive(&mut self, rings: &mut Rings<RingState>, cx: &mut Context) -> bool {
        let settled = self.wait.is_none() && self.kicks.as_ref().is_none_or(|kicks| !kicks.stale);
        (settled || self.end_wait(rings, cx)) && (self.ready || self.queue.has_work())
    }

    /// Ends a wait that is over.
    #[cold]
    fn end_wait(&mut self, rings: &mut Rings<RingState>, cx: &mut Context) -> bool {
        match &self.wait {
            None | Some(Wait::Kick { over: true }) => {}
            Some(Wait::Until(until)) if *until <= cx.now_ns() => {}
            Some(Wait::Until(until)) => {
                cx.wake_at(*until);
                return false;
            }
            Some(Wait::Kick { .. }) => return false,
        }
        self.wait = None;
        let Some(Kicks { ring, stale, .. }) = self.kicks else { return true };
        // Kicks of a ring that is served are not for this one to switch off.
        if let Some((slot, _)) = rings.with_view(ring).filter(|(slot, _)| slot.role() == Role::Sink) {
            slot.queue.ring.suppress();
        }
        if stale {
            self.forget_kicks(cx);
        }
        true
    }
}

impl Path {
    pub(crate) fn set_uplink(
        &mut self,
        port: Arc<Port>,
        queue: Box<dyn UplinkQueue>,
        cx: &mut Context,
    ) -> io::Result<()> {
        let watch = cx.watch(queue.watch_fd())?;
        let id = port.id();
        // Workers without a queue of the uplink send to those that have one.
        port.set_receiving(self.crossing.worker() as u16, true);
        self.add_port(u32::MAX, port, None);
        let (wait, kicks, short_since) = (None, None, None);
        let (ready, unflushed) = (true, false);
        self.uplink = Some(UplinkHere { port: id, queue, watch, ready, unflushed, wait, kicks, short_since });
        Ok(())
    }

    /// A watched descriptor is readable; true when it was the uplink's, or the kick that it waits for.
    pub(crate) fn ready(&mut self, watch: WatchId) -> bool {
        let Some(uplink) = &mut self.uplink else { return false };
        if uplink.watch == watch {
            uplink.ready = true;
            return true;
        }
        if uplink.kicks.as_ref().is_none_or(|kicks| kicks.watch != watch) {
            return false;
        }
        if let Some(Wait::Kick { over }) = &mut uplink.wait {
            *over = true;
        }
        true
    }

    /// Rings, ports or policy have changed: who had no room may have some, or not be the only receiver any more.
    pub(super) fn resume_uplink(&mut self) {
        let Some(UplinkHere { wait, kicks, .. }) = &mut self.uplink else { return };
        if let Some(Wait::Kick { over }) = wait {
            *over = true;
        }
        if let Some(kicks) = kicks {
            kicks.stale = true;
        }
    }

    pub(super) fn flush_uplink(&mut self) {
        if let Some(uplink) = self.uplink.as_mut().filter(|uplink| uplink.unflushed) {
            uplink.unflushed = false;
            let refused = uplink.queue.flush();
            if let Some(Some(here)) = self.ports.get(uplink.port.index()) {
                let lane = here.port.stats.lane(self.crossing.worker());
                lane.drop_out(Drop::UplinkFull, refused as u64);
            }
            self.show_uplink_counters();
        }
    }

    /// Copies what the queue has counted to where others can read it.
    fn show_uplink_counters(&self) {
        if let Some(uplink) = &self.uplink
            && let Some(Some(here)) = self.ports.get(uplink.port.index())
        {
            let (counters, lane) = (uplink.queue.counters(), here.port.stats.lane(self.crossing.worker()));
            lane.wire_calls.set(counters.calls);
            lane.wire_lost.set(counters.dropped);
        }
    }

    /// Takes frames from the wire and delivers them; returns how many.
    pub(crate) fn serve_uplink(&mut self, rings: &mut Rings<RingState>, cx: &mut Context) -> usize {
        let Some(uplink) = &mut self.uplink else { return 0 };
        if !uplink.may_receive(rings, cx) {
            return 0;
        }
        // Taken out: its memory is read while the rest of the path is changed. No frame goes back to it.
        let Some(mut uplink) = self.uplink.take() else { return 0 };
        let mut frames = 0;
        while frames < usize::from(BURST) {
            let room = match self.room(rings, &uplink) {
                Room::For(room) => {
                    uplink.short_since = None;
                    room
                }
                Room::Short if self.patient(&mut uplink, cx) => break,
                Room::Short => 1,
                Room::None(ring) if self.wait(rings, &mut uplink, ring, cx) => break,
                Room::None(_) => continue,
            };
            let received = self.receive(rings, &mut uplink, room, cx);
            frames += received;
            // A queue that had less than it was asked for is empty, unless it knows better.
            uplink.ready = received >= room || received > 0 && uplink.queue.has_work();
            if !uplink.ready {
                break;
            }
        }
        self.publish(rings, cx);
        self.uplink = Some(uplink);
        self.show_uplink_counters();
        frames
    }

    /// Takes up to `room` frames and delivers them.
    fn receive(
        &mut self,
        rings: &mut Rings<RingState>,
        uplink: &mut UplinkHere,
        room: usize,
        cx: &mut Context,
    ) -> usize {
        let mut room = room;
        if let Some((to, direct)) = self.in_place(uplink.port, &*uplink.queue)
            && let Some(ring) = self.only_receiver(uplink.port)
        {
            let from = (uplink.port, &mut *uplink.queue);
            if let Some(received) = self.receive_in_place(rings, from, (to, ring, direct), room, cx) {
                return received;
            }
            // The next frame may be shorter than the longest.
            room = 1;
        }
        self.burst.clear_for(room);
        let received = uplink.queue.receive(&mut self.burst);
        if received > 0 {
            self.switch_own(rings, uplink.queue.view(), uplink.port, cx);
            uplink.queue.release();
        }
        received
    }

    /// How many frames the next burst may have.
    fn room(&self, rings: &mut Rings<RingState>, uplink: &UplinkHere) -> Room {
        let Some(ring) = self.only_receiver(uplink.port) else { return Room::For(STRIDE) };
        let Some((slot, _)) = rings.with_view(ring) else { return Room::For(STRIDE) };
        let queue = &mut slot.queue;
        let there = queue.ring.fetch(BURST);
        if queue.ring.broken().is_some() {
            return Room::For(STRIDE);
        }
        // Never more than a guest keeps in the ring that adds buffers when half or three quarters of them are used.
        let frame = if uplink.queue.bulk() { LARGEST.min(queue.size() / 4).max(1) } else { 1 };
        match (there, there / frame) {
            (0, _) => Room::None(ring),
            (_, 0) => Room::Short,
            (_, room) => Room::For(STRIDE.min(room.into())),
        }
    }

    /// The ring that all frames of the uplink go to, if there is no other: one port beside it, with one ring.
    fn only_receiver(&self, uplink: PortId) -> Option<SlotId> {
        let ports = self.switch.policy().ports();
        if ports.len() != 2 {
            return None;
        }
        let guest = ports.keys().copied().find(|port| *port != uplink)?;
        let here = self.ports.get(guest.index())?.as_ref().filter(|here| here.port.link_up())?;
        match here.receive.only(&here.port, self.crossing.workers())? {
            Place::Here(ring) => Some(ring),
            _ => None,
        }
    }

    /// Gives a receiver with little room some time.
    #[cold]
    fn patient(&self, uplink: &mut UplinkHere, cx: &mut Context) -> bool {
        let now = cx.now_ns();
        let since = *uplink.short_since.get_or_insert(now);
        if now - since >= PATIENCE_NS {
            // The next frame is waited for anew.
            uplink.short_since = None;
            return false;
        }
        uplink.wait = Some(Wait::Until(now + STEP_NS));
        cx.wake_at(now + STEP_NS);
        true
    }

    /// Waits until the driver adds buffers. False when it has done so just now.
    #[cold]
    fn wait(
        &mut self,
        rings: &mut Rings<RingState>,
        uplink: &mut UplinkHere,
        ring: SlotId,
        cx: &mut Context,
    ) -> bool {
        let Some((slot, _)) = rings.with_view(ring) else { return true };
        if !uplink.watch_kicks(slot, cx) {
            // Nothing to wait for: it is looked at.
            let until = cx.now_ns() + STEP_NS;
            uplink.wait = Some(Wait::Until(until));
            cx.wake_at(until);
            return true;
        }
        if slot.queue.ring.arm() {
            slot.queue.ring.suppress();
            return false;
        }
        uplink.wait = Some(Wait::Kick { over: false });
        true
    }
}
