//! Large frames from the wire, read straight into the receive buffers of the one guest that they can be for.
//!
//! The kernel writes the payload where the guest will find it, before anybody has looked at the frame. So this is done only
//! when there is one guest beside the uplink and nothing that would keep a frame from it or change it: no VLANs, rules, limits,
//! mirrors or filters. Headers and head are read privately, decided on, and written last. A frame that is dropped all
//! the same leaves bytes in buffers that the guest is not told of; they were on its own wire. The rare one with segments of a
//! kind that the guest does not take is copied out again and goes the ordinary way.

use memory::{HostRange, MemoryView};
use runtime::rings::{Rings, SlotId};
use runtime::worker::Context;
use virtqueue::Broken;

use crate::frame::{Body, Gso, HEAD, Head, Meta, Offloads, parse};
use crate::port::Port;
use crate::switch::{Drop, PortId, PortPolicy, Switch, To, VlanMode};
use crate::uplink::{Arrival, Direct, UplinkQueue};

use super::deliver::{account, header_len};
use super::own::OwnFrame;
use super::receive::{Filling, Form};
use super::{Here, Path, RingState};

/// What reading in place needs besides.
#[derive(Default)]
pub(super) struct InPlace {
    head: Head,
    ranges: Vec<HostRange>,
    /// Where a frame is copied to that must be changed.
    spill: Option<OwnFrame>,
}

impl InPlace {
    /// Copies a frame out that was read in place.
    #[cold]
    fn copy_out(&mut self, mem: &MemoryView, arrival: Arrival) -> Option<(Arrival, HostRange)> {
        if self.spill.is_none() {
            self.spill = OwnFrame::new().ok();
        }
        let body = Body::new(mem, &self.ranges, 0, arrival.len - self.head.len());
        let frame = self.spill.as_ref()?.put(self.head.as_slice(), body)?;
        Some((arrival, frame))
    }
}

/// Whether a receiver takes segments of this kind uncut.
fn takes(can: Offloads, gso: Gso) -> bool {
    match gso {
        Gso::None => true,
        Gso::TcpV4 { ecn } => can.tso4 && (can.ecn || !ecn),
        Gso::TcpV6 { ecn } => can.tso6 && (can.ecn || !ecn),
        Gso::Udp => can.ufo,
        // Of which IP is told by the frame alone.
        Gso::UdpL4 => can.uso4 && can.uso6,
    }
}

/// Whether what `undone` says, but for kinds of UDP, is all taken: nearly all large frames are of TCP.
fn takes_tcp(can: Offloads, undone: Offloads) -> bool {
    let lacks = |wanted: bool, can: bool| wanted && !can;
    !(lacks(undone.csum, can.csum)
        || lacks(undone.tso4, can.tso4)
        || lacks(undone.tso6, can.tso6)
        || lacks(undone.ecn, can.ecn))
}

/// Frames and bytes that came in.
#[derive(Default)]
struct Came {
    frames: usize,
    bytes: u64,
}

/// A port at which every frame passes as it is.
fn is_plain(policy: &PortPolicy) -> bool {
    let nothing = PortPolicy::default();
    policy.vlan == VlanMode::Open
        && policy.filter.is_empty()
        && policy.addresses.is_empty()
        && policy.mirror.is_none()
        && policy.limits == nothing.limits
        && policy.storm == nothing.storm
        && !(policy.isolated || policy.loopback || policy.anti_spoof)
}

/// Whether `port` takes a frame that came in at `from`.
fn decide(
    switch: &mut Switch,
    (from, to): (PortId, &Port),
    head: &Head,
    arrival: &Arrival,
    now: u64,
) -> Result<(), Drop> {
    let meta: Meta = parse::l2(head).map_err(|_| Drop::Malformed)?;
    match switch.ingress(from, &meta, head, arrival.len, now)?.to {
        To::Port(port) if port != to.id() => return Err(Drop::NoRoute),
        To::Flood(ports) if !ports.contains(to.id()) => return Err(Drop::NoRoute),
        To::None(why) => return Err(why),
        To::Port(_) | To::Flood(_) => {}
    }
    let mtu = usize::from(to.mtu());
    let too_long = mtu != 0 && arrival.header.gso == Gso::None && arrival.len > mtu + header_len(head);
    if too_long { Err(Drop::TooLong) } else { Ok(()) }
}

impl Path {
    /// How frames of the uplink may be read in place at present, if they may.
    pub(super) fn in_place(&self, uplink: PortId, queue: &dyn UplinkQueue) -> Option<(PortId, Direct)> {
        let direct = queue.direct()?;
        let ports = self.switch.policy().ports();
        let guest = ports.keys().copied().find(|port| *port != uplink)?;
        let here = self.ports.get(guest.index())?.as_ref()?;
        let takes = takes_tcp(here.port.offloads(), direct.undone);
        let plain = ports.len() == 2 && ports.values().all(is_plain);
        let open = self.switch.fabric().receive_filter(guest).is_open();
        (plain && open && takes && here.port.mergeable() && here.steering.is_none())
            .then_some((guest, direct))
    }

    /// Reads up to `most` frames into the buffers of `ring`, of the port `to`; returns how many there were. `None`: it has too
    /// few buffers for the longest frame, so nothing was tried.
    pub(super) fn receive_in_place(
        &mut self,
        rings: &mut Rings<RingState>,
        (from, queue): (PortId, &mut (dyn UplinkQueue + 'static)),
        (to, ring, direct): (PortId, SlotId, Direct),
        most: usize,
        cx: &mut Context,
    ) -> Option<usize> {
        let now = cx.now_ns();
        let Self { ports, switch, intake, in_place, filled, crossing, .. } = self;
        let here = |port: PortId| ports.get(port.index()).and_then(Option::as_ref);
        let (Some(source), Some(Here { port, .. })) = (here(from), here(to)) else { return None };
        let (slot, mem) = rings.with_view(ring)?;
        if mem.table().failed() {
            slot.break_ring(Broken::Refused("guest memory is shorter than announced"));
            return None;
        }
        let (lane, out) = (source.port.stats.lane(crossing.worker()), port.stats.lane(crossing.worker()));
        let form = Form { header: port.header_size(), mergeable: true };
        let mut filling = Filling::begin(&mut slot.queue.ring, mem, intake, form, 1);
        let mut came = Came::default();
        let can = port.offloads();
        let mut spilled = None;
        let mut room = true;
        while came.frames < most {
            room = filling.lay_out(HEAD, direct.longest, &mut in_place.ranges);
            if !room {
                break;
            }
            let InPlace { head, ranges, .. } = in_place;
            let Some(arrival) = queue.receive_into(mem, ranges, head) else { break };
            if !takes(can, arrival.header.gso) {
                spilled = in_place.copy_out(mem, arrival);
                break;
            }
            came.frames += 1;
            came.bytes += arrival.len as u64;
            match decide(switch, (from, port), head, &arrival, now) {
                Ok(()) => {
                    if let Err(why) = filling.put_in_place(arrival.header, head.as_slice(), arrival.len) {
                        out.drop_out(why, 1);
                    }
                }
                Err(why) => lane.drop_in(why),
            }
        }
        let tally = filling.end();
        lane.received.add(came.frames as u64, came.bytes);
        account(slot, port, out, tally);
        if tally.frames > 0 && !std::mem::replace(&mut slot.state.unpublished, true) {
            filled.push(ring);
        }
        match spilled {
            Some((arrival, frame)) => {
                Some(came.frames + self.switch_spilled(rings, from, arrival, frame, cx))
            }
            None => (room || came.frames > 0).then_some(came.frames),
        }
    }

    /// Switches a frame that was copied out.
    #[cold]
    fn switch_spilled(
        &mut self,
        rings: &mut Rings<RingState>,
        from: PortId,
        arrival: Arrival,
        frame: HostRange,
        cx: &mut Context,
    ) -> usize {
        let Some(spill) = self.in_place.spill.take() else { return 0 };
        self.burst.clear();
        if self.burst.push(&spill.view, arrival.header, &[frame]).is_ok() {
            self.switch_own(rings, &spill.view, from, cx);
        }
        self.in_place.spill = Some(spill);
        1
    }
}
