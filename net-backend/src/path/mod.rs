//! The way of a frame: from a transmit ring, an uplink or another worker, through the switch, into receive rings.
//!
//! ```text
//! serve -> Burst::take -> open (private copy) -> route (the switch) -> deliver, for each destination -> give back -> publish
//! ```
//!
//! A burst of a transmit ring is what is there, up to [`BURST`] chains or a quarter of the ring, in strides of 32. The payload
//! goes from the sender's buffers straight into the receivers'. The source is published once, then every destination. A
//! destination without buffers costs its own frames and nobody's time. Nothing here allocates after warm-up, locks, counts
//! references or calls the kernel for a frame; interrupts are one eventfd write for each published ring.

mod burst;
mod coalesce;
mod cross;
mod deliver;
mod direct;
mod own;
mod receive;
mod route;
mod uplink;

use memory::MemoryView;
use runtime::rings::{Rings, Slot, SlotId};
use runtime::worker::Context;
use std::sync::Arc;
use virtqueue::{Broken, DeviceRing, Ring};

use crate::frame::{Body, NetHeader};
use crate::port::Port;
use crate::service::{ControlQueue, Steering};
use crate::switch::{Direction, Drop, MAX_PORTS, Mirror, Policy, PortId, Switch};

pub use burst::{Burst, MAX_FRAME};
pub use cross::{Crossing, crossings};

use burst::{Frames, STRIDE, each};
use coalesce::Owing;
use deliver::{Egress, Place, ReceiveRings, Source, Tools, with_ends, with_source};
use direct::InPlace;
use own::OwnFrame;
use receive::Intake;
use route::{Router, Targets, record_sent};
use uplink::UplinkHere;

/// Most chains of one transmit ring between two looks at the others.
pub const BURST: u16 = 256;

/// Most chains of a burst of a ring with `size` entries. A quarter: while it is on its way, the driver fills what is left.
/// With all of a ring of 256 the two take turns, which costs a third of the frames.
fn most_of(size: u16) -> u16 {
    (size / 4).clamp(1, BURST)
}

/// What a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From the guest.
    Transmit,
    /// To the guest.
    Receive,
    /// Commands.
    Control,
    /// Of no known port.
    Foreign,
}

/// What the path keeps beside a ring.
pub(crate) struct RingState {
    pub(crate) port: PortId,
    pub(crate) kind: Kind,
    /// Something was put in that is not published.
    unpublished: bool,
}

/// A port as one worker has it.
struct Here {
    port: Arc<Port>,
    device: u32,
    receive: ReceiveRings,
    steering: Option<Arc<Steering>>,
    control: Option<Box<dyn ControlQueue>>,
}

/// Everything between the rings of one worker.
pub(crate) struct Path {
    ports: Box<[Option<Here>]>,
    switch: Switch,
    crossing: Crossing,
    uplink: Option<UplinkHere>,
    burst: Burst,
    intake: Intake,
    targets: Targets,
    /// Copies for mirror ports.
    copies: Vec<(PortId, Frames)>,
    /// Rings that were filled and not published.
    filled: Vec<SlotId>,
    /// Ports of frames from other workers.
    crossed: Vec<PortId>,
    /// Rings held back by a rate limit, and until when.
    held: Vec<(SlotId, u64)>,
    /// Interrupts that wait.
    owing: Owing,
    in_place: InPlace,
    tools: Tools,
    /// For frames of our own making.
    own: Option<OwnFrame>,
}

impl Path {
    pub(crate) fn new(switch: Switch, crossing: Crossing) -> Self {
        Self {
            ports: (0..MAX_PORTS).map(|_| None).collect(),
            switch,
            crossing,
            uplink: None,
            burst: Burst::new(),
            intake: Intake::default(),
            targets: Targets::new(),
            copies: Vec::with_capacity(MAX_PORTS),
            filled: Vec::with_capacity(MAX_PORTS),
            crossed: Vec::with_capacity(STRIDE),
            held: Vec::new(),
            owing: Owing::default(),
            in_place: InPlace::default(),
            tools: Tools::new(),
            own: None,
        }
    }

    pub(crate) fn set_policy(&mut self, policy: Arc<Policy>) {
        self.switch.set_policy(policy);
        self.resume_uplink();
    }

    pub(crate) fn crossing(&mut self) -> &mut Crossing {
        &mut self.crossing
    }

    pub(crate) fn add_port(&mut self, device: u32, port: Arc<Port>, control: Option<Box<dyn ControlQueue>>) {
        let place = port.id().index();
        if let Some(place) = self.ports.get_mut(place) {
            *place = Some(Here { port, device, receive: ReceiveRings::default(), steering: None, control });
        }
    }

    pub(crate) fn remove_port(&mut self, id: PortId, cx: &mut Context) {
        if let Some(place) = self.ports.get_mut(id.index()) {
            *place = None;
        }
        match self.uplink.take_if(|uplink| uplink.port == id) {
            Some(uplink) => uplink.close(cx),
            None => self.resume_uplink(),
        }
    }

    pub(crate) fn set_steering(&mut self, id: PortId, steering: Option<Arc<Steering>>) {
        if let Some(Some(here)) = self.ports.get_mut(id.index()) {
            here.steering = steering;
        }
    }

    /// What queue `index` of a device is.
    pub(crate) fn state_of(&self, device: u32, index: u16) -> RingState {
        let here = self.ports.iter().flatten().find(|here| here.device == device);
        let Some(here) = here else {
            return RingState { port: PortId(u16::MAX), kind: Kind::Foreign, unpublished: false };
        };
        let kind = match index {
            _ if index >= 2 * here.port.pairs() => Kind::Control,
            _ if index.is_multiple_of(2) => Kind::Receive,
            _ => Kind::Transmit,
        };
        RingState { port: here.port.id(), kind, unpublished: false }
    }

    /// The rings of a device have changed.
    pub(crate) fn refresh(&mut self, rings: &mut Rings<RingState>, device: u32) {
        self.resume_uplink();
        let (worker, workers) = (self.crossing.worker(), self.crossing.workers());
        for here in self.ports.iter_mut().flatten().filter(|here| here.device == device) {
            here.receive.refresh(rings, here.port.id());
            let pairs = here.receive.pairs();
            for pair in (0..here.port.pairs()).filter(|pair| usize::from(*pair) % workers == worker) {
                here.port.set_receiving(pair, pairs >> pair & 1 == 1);
            }
        }
        self.held.retain(|(id, _)| rings.slot(*id).is_some_and(|(slot, _)| slot.paused()));
    }

    /// The worker is about to sleep; true when there is work.
    pub(crate) fn arm(&mut self) -> bool {
        let uplink = self.uplink.as_mut().is_some_and(UplinkHere::arm);
        self.crossing.arm() || uplink
    }

    /// Ends rate limits' holds that are over, or all of them.
    pub(crate) fn release_held(&mut self, rings: &mut Rings<RingState>, cx: &mut Context, all: bool) {
        if self.held.is_empty() {
            return;
        }
        let now = cx.now_ns();
        self.held.retain(|&(id, until)| {
            let over = all || until <= now;
            match rings.slot(id) {
                Some((slot, _)) if over => slot.resume(),
                _ => cx.wake_at(until),
            }
            !over
        });
    }

    /// Sends the interrupts that have waited long enough, or all of them.
    pub(crate) fn settle_owed(&mut self, rings: &mut Rings<RingState>, cx: &mut Context, all: bool) {
        self.owing.settle(rings, cx, all);
    }

    /// Serves one ring that has work; returns how many chains.
    pub(crate) fn serve(&mut self, rings: &mut Rings<RingState>, id: SlotId, cx: &mut Context) -> usize {
        let Some((slot, view)) = rings.with_view(id) else { return 0 };
        if view.table().failed() {
            slot.break_ring(Broken::Refused("guest memory is shorter than announced"));
            return 0;
        }
        match slot.state.kind {
            Kind::Transmit => self.transmit(rings, id, cx),
            Kind::Control => self.control(rings, id, cx),
            Kind::Receive => 0,
            Kind::Foreign => {
                slot.break_ring(Broken::Refused("the port is not there"));
                0
            }
        }
    }

    fn control(&mut self, rings: &mut Rings<RingState>, id: SlotId, cx: &mut Context) -> usize {
        let Some((slot, view)) = rings.with_view(id) else { return 0 };
        let here = self.ports.get_mut(slot.state.port.index()).and_then(Option::as_mut);
        let Some(Here { port, control: Some(control), .. }) = here else {
            slot.break_ring(Broken::Refused("the port has no control queue"));
            return 0;
        };
        let served = control.serve(&mut slot.queue.ring, view, port);
        slot.stats.requests.add(served as u64);
        slot.publish(cx);
        served
    }

    /// Takes a burst from a transmit ring and delivers it.
    fn transmit(&mut self, rings: &mut Rings<RingState>, id: SlotId, cx: &mut Context) -> usize {
        let Some((slot, _)) = rings.with_view(id) else { return 0 };
        let from = slot.state.port;
        let most = most_of(slot.queue.size());
        let fetched = usize::from(slot.queue.ring.fetch(most));
        let now = cx.now_ns();
        let mut done = 0;
        while done < fetched {
            let wanted = (fetched - done).min(STRIDE);
            let taken = self.take(rings, id, wanted, now, cx);
            self.open_and_route(rings, id, now);
            self.deliver_all(rings, Source::Ring(id), from, now);
            self.give_back(rings, id);
            done += taken;
            // Who makes that much work of few frames goes on when the others have had their turn.
            if taken < wanted || self.tools.has_cut_finely() {
                break;
            }
        }
        self.flush_uplink();
        // Before the receivers' rings: a process killed in between loses a burst, and repeats none.
        if let Some((slot, _)) = rings.with_view(id) {
            slot.stats.requests.add(done as u64);
            slot.stats.batch.record(done as u64);
            show(&self.ports, &mut self.owing, slot, cx);
        }
        self.publish(rings, cx);
        cx.stats.requests.add(done as u64);
        cx.stats.batch.record(done as u64);
        done
    }

    /// Takes chains into the burst, as far as the port's rate limit lets it.
    fn take(
        &mut self,
        rings: &mut Rings<RingState>,
        id: SlotId,
        wanted: usize,
        now: u64,
        cx: &mut Context,
    ) -> usize {
        let Some((slot, view)) = rings.with_view(id) else { return 0 };
        let port = slot.state.port;
        let (burst, switch) = (&mut self.burst, &mut self.switch);
        if !switch.has_admission(port) {
            return match &mut slot.queue.ring {
                Ring::Split(ring) => burst.take(ring, view, wanted),
                Ring::Packed(ring) => burst.take(ring, view, wanted),
            };
        }
        let mut until = None;
        let admit = |len: u64| {
            until = switch.admit(port, len.min(MAX_FRAME as u64) as usize, now).err();
            until.is_none()
        };
        let taken = burst.take_admitted(&mut slot.queue.ring, view, wanted, admit);
        if let Some(until) = until {
            slot.pause();
            cx.wake_at(until);
            self.held.push((id, until));
        }
        taken
    }

    /// Copies the heads of the burst and asks the switch where each frame goes.
    fn open_and_route(&mut self, rings: &mut Rings<RingState>, id: SlotId, now: u64) {
        let Self { ports, switch, burst, targets, crossing, .. } = self;
        let Some((slot, view)) = rings.with_view(id) else { return };
        let from = slot.state.port;
        let Some(Some(Here { port, .. })) = ports.get(from.index()) else { return };
        let size = port.header_size();
        let lane = port.stats.lane(crossing.worker());
        let mut router = Router::new(switch, port, targets, now);
        let mut bytes = 0;
        for place in 0..burst.len() {
            let routed = burst.open(place, view, size).and_then(|()| {
                bytes += burst.entry(place).len as u64;
                router.route(burst.entry_mut(place), place)
            });
            if let Err(why) = routed {
                lane.drop_in(why);
            }
        }
        lane.received.add(burst.len() as u64, bytes);
        if let Some(traffic) = port.stats.queue(slot.index) {
            traffic.add(burst.len() as u64, bytes);
        }
        record_sent(switch, from, burst, view);
    }

    /// Delivers every frame that was routed, and the copies of mirrors.
    fn deliver_all(&mut self, rings: &mut Rings<RingState>, source: Source<'_>, from: PortId, now: u64) {
        self.tools.begin_stride();
        if let Some(Mirror::Port(port)) = self.switch.mirror(from, Direction::Out) {
            self.copies.push((*port, self.burst.opened()));
        }
        while let Some((port, frames)) = self.targets.pop() {
            self.deliver(rings, source, port, frames, now, false);
        }
        while let Some((port, frames)) = self.copies.pop() {
            self.deliver(rings, source, port, frames, now, true);
        }
    }

    /// Delivers frames of the burst to one port.
    fn deliver(
        &mut self,
        rings: &mut Rings<RingState>,
        source: Source<'_>,
        dest: PortId,
        frames: Frames,
        now: u64,
        admitted: bool,
    ) {
        let Self { ports, switch, crossing, uplink, burst, intake, tools, copies, filled, .. } = self;
        let Some(Some(here)) = ports.get(dest.index()) else { return };
        let (worker, workers) = (crossing.worker(), crossing.workers());
        let lane = here.port.stats.lane(worker);
        if !here.port.link_up() {
            lane.drop_out(Drop::LinkDown, frames.count_ones().into());
            return;
        }
        let steering = here.steering.as_deref();
        let port = &*here.port;
        let mut egress = Egress { dest, port, lane, steering, switch, tools, now, admitted };
        if !admitted && egress.switch.mirror(dest, Direction::In).is_some() {
            let copy = with_source(rings, source, |view| egress.mirror(burst, view, frames));
            copies.extend(copy.flatten().map(|port| (port, frames)));
        }
        if let Some(uplink) = uplink.as_mut().filter(|uplink| uplink.port == dest) {
            with_source(rings, source, |view| uplink.send(&mut egress, burst, view, frames));
            return;
        }
        let mut left = frames;
        while left != 0 {
            let (place, group) = match here.receive.only(&here.port, workers) {
                Some(place) => (place, left),
                None => group(left, |frame| {
                    let flow = (&burst.entry(frame).head, &burst.leader(frame).meta);
                    here.receive.choose(&here.port, steering, flow, workers)
                }),
            };
            left &= !group;
            match place {
                Place::Here(to) => {
                    let fresh = with_ends(rings, source, to, |view, slot, mem| {
                        egress.fill_ring(burst, view, group, (slot, mem), intake);
                        !std::mem::replace(&mut slot.state.unpublished, true)
                    });
                    if fresh == Some(true) {
                        filled.push(to);
                    }
                }
                Place::Worker(worker) => match crossing.sender(worker) {
                    Some(sender) => {
                        with_source(rings, source, |view| egress.cross(burst, view, group, sender));
                    }
                    None => lane.drop_out(Drop::LinkDown, group.count_ones().into()),
                },
                Place::Nowhere => lane.drop_out(Drop::LinkDown, group.count_ones().into()),
            }
        }
    }

    /// Hands the chains of the burst back to their ring.
    fn give_back(&mut self, rings: &mut Rings<RingState>, id: SlotId) {
        let Some((slot, view)) = rings.with_view(id) else { return };
        match &mut slot.queue.ring {
            Ring::Split(ring) => self.burst.give_back(ring, view),
            Ring::Packed(ring) => self.burst.give_back(ring, view),
        }
    }

    /// Shows the destinations what they got.
    fn publish(&mut self, rings: &mut Rings<RingState>, cx: &mut Context) {
        // Frames on their way to the wire may still lie in the sender's buffers, which it gets back after this.
        self.flush_uplink();
        for id in self.filled.drain(..) {
            if let Some((slot, _)) = rings.with_view(id) {
                slot.state.unpublished = false;
                show(&self.ports, &mut self.owing, slot, cx);
            }
        }
        self.crossing.flush();
    }

    /// Switches the frames of a burst that lies in memory of our own.
    fn switch_own(
        &mut self,
        rings: &mut Rings<RingState>,
        view: &MemoryView,
        from: PortId,
        cx: &mut Context,
    ) {
        let now = cx.now_ns();
        let Self { ports, switch, burst, targets, crossing, .. } = self;
        let Some(Some(Here { port, .. })) = ports.get(from.index()) else { return };
        let lane = port.stats.lane(crossing.worker());
        let mut router = Router::new(switch, port, targets, now);
        let mut bytes = 0;
        for place in 0..burst.len() {
            bytes += burst.entry(place).len as u64;
            if let Err(why) = router.route(burst.entry_mut(place), place) {
                lane.drop_in(why);
            }
        }
        lane.received.add(burst.len() as u64, bytes);
        record_sent(switch, from, burst, view);
        self.deliver_all(rings, Source::Own(view), from, now);
    }

    /// Delivers what other workers have sent; returns how many frames.
    pub(crate) fn take_crossed(&mut self, rings: &mut Rings<RingState>, cx: &mut Context) -> usize {
        let mut frames = 0;
        for queue in 0..self.crossing.queues() {
            let Some(mut receiver) = self.crossing.lend(queue) else { continue };
            let now = cx.now_ns();
            self.tools.begin_stride();
            receiver.receive(&mut self.burst, &mut self.crossed);
            for (place, port) in self.crossed.iter().enumerate() {
                self.targets.add(*port, place);
            }
            while let Some((port, frames)) = self.targets.pop() {
                self.deliver(rings, Source::Own(&receiver.view), port, frames, now, true);
            }
            self.flush_uplink();
            receiver.release();
            self.crossing.put_back(queue, receiver);
            // A record that was no frame is work, too: there may be more behind it.
            frames += self.crossed.len().max(1);
        }
        if frames > 0 {
            self.publish(rings, cx);
        }
        frames
    }

    /// Switches a frame of our own making as if `from` had sent it.
    pub(crate) fn inject(
        &mut self,
        rings: &mut Rings<RingState>,
        from: PortId,
        frame: &[u8],
        cx: &mut Context,
    ) {
        let own = match self.own.take() {
            Some(own) => own,
            None => match OwnFrame::new() {
                Ok(own) => own,
                Err(error) => return tracing::warn!(%error, "No memory for a frame of our own"),
            },
        };
        self.burst.clear();
        if let Some(range) = own.put(frame, Body::empty(&own.view))
            && self.burst.push(&own.view, NetHeader::PLAIN, &[range]).is_ok()
        {
            self.switch_own(rings, &own.view, from, cx);
        }
        self.own = Some(own);
        self.publish(rings, cx);
    }
}

/// Shows a driver what was completed on its ring, and interrupts it now or, if it wants that, later.
#[inline]
fn show(ports: &[Option<Here>], owing: &mut Owing, slot: &mut Slot<RingState>, cx: &mut Context) {
    let here = ports.get(slot.state.port.index()).and_then(Option::as_ref);
    match here.and_then(|here| here.port.coalescing(slot.index)) {
        None => slot.publish(cx),
        Some(wanted) => owing.publish(slot, wanted, cx),
    }
}

/// The frames of `all` that go to the same place as the first one, and that place.
#[cold]
fn group(all: Frames, choose: impl Fn(usize) -> Place) -> (Place, Frames) {
    let first = choose(all.trailing_zeros() as usize);
    let same = each(all).filter(|frame| choose(*frame) == first);
    (first, same.fold(0, |set, frame| set | 1 << frame))
}
