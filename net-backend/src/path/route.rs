//! Where the frames of a burst go.

use memory::MemoryView;

use crate::frame::Gso;
use crate::port::Port;
use crate::switch::{Direction, Drop, MAX_PORTS, Mirror, PortId, Switch, To};

use super::burst::{Burst, ETHERNET, Entry, Frames, Key, each};
use super::deliver::header_len;

/// Bytes of the shortest IP header.
const IP_LEN: usize = 20;

/// Which frames of a burst go to which port.
pub(super) struct Targets {
    frames: Box<[Frames]>,
    /// The ports that have any.
    touched: Vec<PortId>,
}

impl Targets {
    pub fn new() -> Self {
        Self { frames: vec![0; MAX_PORTS].into(), touched: Vec::with_capacity(MAX_PORTS) }
    }

    #[inline]
    pub fn add(&mut self, port: PortId, place: usize) {
        let Some(frames) = self.frames.get_mut(port.index()) else { return };
        if *frames == 0 {
            self.touched.push(port);
        }
        *frames |= 1 << place;
    }

    /// One port and its frames.
    #[inline]
    pub fn pop(&mut self) -> Option<(PortId, Frames)> {
        let port = self.touched.pop()?;
        Some((port, std::mem::take(&mut self.frames[port.index()])))
    }
}

/// Asks the switch where the frames of a burst go.
pub(super) struct Router<'a> {
    switch: &'a mut Switch,
    from: PortId,
    link: bool,
    mtu: usize,
    /// Bytes of a frame that surely does not exceed the MTU.
    short: usize,
    targets: &'a mut Targets,
    now: u64,
    /// Frames with the addresses and the tag of the one before go where it went.
    steady: bool,
    /// The last frame that the switch was asked for, if others may follow it: its place, key and destination.
    last: Option<(u8, Key, PortId)>,
}

impl<'a> Router<'a> {
    pub fn new(switch: &'a mut Switch, port: &Port, targets: &'a mut Targets, now: u64) -> Self {
        let (from, link, mtu) = (port.id(), port.link_up(), usize::from(port.mtu()));
        let short = if mtu == 0 { usize::MAX } else { mtu + ETHERNET };
        let steady = switch.is_steady(from);
        Self { switch, from, link, mtu, short, targets, now, steady, last: None }
    }

    /// Whether a frame, or a segment of it, is longer than the port's guest was told it may be. The headers of segments are
    /// not known yet: they have an IP header at least.
    #[cold]
    fn exceeds_mtu(&self, entry: &Entry) -> bool {
        let payload = match entry.header.gso {
            Gso::None => entry.len - header_len(&entry.head).min(entry.len),
            _ => usize::from(entry.header.gso_size) + IP_LEN,
        };
        payload > self.mtu
    }

    #[inline]
    pub fn route(&mut self, entry: &mut Entry, place: usize) -> Result<(), Drop> {
        if entry.len > self.short && self.exceeds_mtu(entry) {
            return Err(Drop::TooLong);
        }
        match self.last {
            Some((leader, key, port)) if key == entry.key => {
                entry.leader = leader;
                self.targets.add(port, place);
                Ok(())
            }
            _ => self.ask(entry, place),
        }
    }

    #[inline(never)]
    fn ask(&mut self, entry: &mut Entry, place: usize) -> Result<(), Drop> {
        entry.parse(place)?;
        if !self.link {
            return Err(Drop::LinkDown);
        }
        entry.verdict = self.switch.ingress(self.from, &entry.meta, &entry.head, entry.len, self.now)?;
        self.last = None;
        match entry.verdict.to {
            To::Port(port) => {
                // A tag is behind what the key covers.
                let leads = self.steady && entry.meta.tag.is_none();
                self.last = leads.then_some((place as u8, entry.key, port));
                self.targets.add(port, place);
            }
            To::Flood(ports) => {
                ports.iter().for_each(|port| self.targets.add(port, place));
                if entry.header.gso != Gso::None {
                    let more = entry.len / usize::from(entry.header.gso_size.max(1));
                    self.switch.flooded_more(self.from, entry.meta.dst, more as u64, self.now);
                }
            }
            To::None(why) => return Err(why),
        }
        Ok(())
    }
}

/// Records what a port has sent, as it came, where that is asked for.
#[inline]
pub(super) fn record_sent(switch: &Switch, from: PortId, burst: &Burst, view: &MemoryView) {
    if let Some(Mirror::File(capture)) = switch.mirror(from, Direction::Out) {
        for place in each(burst.opened()) {
            capture.record(from, Direction::Out, &burst.frame(place, view).packet());
        }
    }
}
