//! A hostile guest beside two good ones on one switch: whatever it writes, the others keep talking, and nothing of theirs is
//! read or written that is not meant to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use memory::{GuestAddr, MemoryTable, RegionConfig, UserAddr};
use net_backend::frame::MacAddr;
use net_backend::path::crossings;
use net_backend::port::{Identity, Port};
use net_backend::service::{Message, NetService};
use net_backend::switch::{Fabric, Policy, PortId, PortPolicy, SwitchOptions};
use runtime::rings::{Reply, RingCommand};
use runtime::worker::{Context, Service};
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};

use crate::guest::Guest;
use crate::input::Input;

const SIZE: u16 = 16;
const BASE: u64 = 0x1_0000;
/// Both rings of a port, then its buffers.
const RINGS: u64 = 0x1000;
const BUFFER: u32 = 1024;
const RX_BUFFERS: u64 = BASE + 2 * RINGS;
const TX_BUFFERS: u64 = RX_BUFFERS + SIZE as u64 * BUFFER as u64;
const LEN: u64 = 0x8000;

const MRG_RXBUF: u64 = 1 << 15;
const VERSION_1: u64 = 1 << 32;

/// Runs one input to its end.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.talk(1, 2);
    world.talk(2, 1);
}

/// A guest with its two rings.
struct Side {
    guest: Guest,
    header: usize,
    rings: [DriverRing; 2],
    /// Receive buffers that are not posted.
    free: Vec<u32>,
    sent: u64,
}

struct World {
    service: NetService,
    cx: Context,
    sides: Vec<Side>,
}

fn mac(port: usize) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, port as u8])
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let policy = |port: usize| PortPolicy { macs: vec![mac(port)], ..PortPolicy::default() };
        let ports: BTreeMap<_, _> = (0..3).map(|port| (PortId(port as u16), policy(port))).collect();
        let policy = Policy::new(SwitchOptions::default(), ports).expect("a good policy");
        let fabric = Arc::new(Fabric::new(64));
        fabric.adopt(&policy).expect("room for three addresses");
        let mut cx = Context::detached().expect("a context");
        let crossing = crossings(1).expect("one worker").remove(0);
        let mut service = NetService::new(crossing, fabric, Arc::new(policy), &mut cx);
        let sides = (0..3).map(|port| Side::new(port, input, &mut service, &mut cx)).collect();
        let mut world = Self { service, cx, sides };
        (1..3).for_each(|port| world.sides[port].post());
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0..3 => self.poke(input),
            3..6 => self.offer(input),
            6 => {
                self.poll();
                self.drain();
            }
            _ => {
                self.talk(1, 2);
                self.talk(2, 1);
            }
        }
    }

    fn poll(&mut self) {
        while self.service.poll_once(&mut self.cx) > 0 {}
        let _ = self.service.arm();
        self.service.suppress();
    }

    /// The hostile guest writes anything into its memory, mostly into its rings.
    fn poke(&mut self, input: &mut Input<'_>) {
        let at = match input.below(4) {
            0 => BASE + u64::from(input.u16()) % LEN,
            _ => BASE + u64::from(input.u16()) % (2 * RINGS),
        };
        let len = 1 + input.below(16);
        self.sides[0].guest.poke(at, input.take(len));
    }

    /// The hostile guest sends a frame, or offers a buffer, of any form.
    fn offer(&mut self, input: &mut Input<'_>) {
        let ring = usize::from(!input.flag());
        let side = &mut self.sides[0];
        let mut segments = Vec::new();
        let mut at = if ring == 0 { RX_BUFFERS } else { TX_BUFFERS };
        let mut bytes = input.take(side.header).to_vec();
        if input.flag() {
            bytes.fill(0);
        }
        bytes.extend_from_slice(&input.choose(&[mac(1), mac(2), mac(0), MacAddr([0xff; 6])]).0);
        let rest = input.below(64);
        bytes.extend_from_slice(input.take(rest));
        side.guest.poke(at, &bytes);
        for _ in 0..=input.below(4) {
            let len = match input.below(8) {
                0 => input.u32() % 0x2_0000,
                1..4 => u32::from(input.u8()),
                _ => bytes.len() as u32,
            };
            segments.push(Segment { addr: GuestAddr(at), len });
            at = if input.below(8) == 0 { side.guest.address(input) } else { at + u64::from(len) };
        }
        let writable = input.below(segments.len() + 1);
        let (readable, writable) = match ring {
            0 => segments.split_at(segments.len() - writable.max(1)),
            _ => segments.split_at(segments.len() - writable),
        };
        let _full = side.rings[ring].add(readable, writable, 0);
        let _kick = side.rings[ring].publish();
        if input.flag() {
            self.poll();
            self.drain();
        }
    }

    /// The good guests take what has come for them; nothing else of their memory has changed.
    fn drain(&mut self) {
        for port in 1..3 {
            let side = &mut self.sides[port];
            side.received();
            side.rings[1].pop();
            side.post();
        }
        while self.sides[0].rings[1].pop().is_some() {}
    }

    /// One good guest says something to the other, who hears exactly that.
    fn talk(&mut self, from: usize, to: usize) {
        self.poll();
        self.drain();
        let side = &mut self.sides[from];
        side.sent += 1;
        let len = 60 + (side.sent as usize * 37) % 3000;
        let mut frame = [mac(to).0, mac(from).0].concat();
        frame.extend_from_slice(&[0x88, 0xb5]);
        frame.extend((frame.len()..len).map(|at| (at as u64 * 7 + side.sent) as u8));
        let header = side.header;
        side.guest.poke(TX_BUFFERS, &vec![0; header]);
        side.guest.poke(TX_BUFFERS + header as u64, &frame);
        let whole = Segment { addr: GuestAddr(TX_BUFFERS), len: (header + len) as u32 };
        side.rings[1].add(&[whole], &[], 0).expect("room for one");
        let _kick = side.rings[1].publish();
        self.sides.iter_mut().for_each(|side| side.guest.remember());
        self.poll();
        assert!(self.sides[from].rings[1].pop().is_some(), "the frame was taken");
        let used = [BASE..RX_BUFFERS];
        self.sides[from].guest.assert_only(&used, "the switch, at the sender's,");
        let filled = [BASE..TX_BUFFERS];
        self.sides[to].guest.assert_only(&filled, "the switch, at the receiver's,");
        let received = self.sides[to].received();
        assert_eq!(received, [frame], "from {from} to {to}");
        self.sides[to].post();
    }
}

impl Side {
    fn new(port: usize, input: &mut Input<'_>, service: &mut NetService, cx: &mut Context) -> Self {
        let region = RegionConfig { guest: GuestAddr(BASE), len: LEN, user: UserAddr(0), mmap_offset: 0 };
        let guest = Guest::with(vec![region]);
        let bits = input.u8();
        let features = RingFeatures {
            event_idx: bits & 1 != 0,
            in_order: bits & 2 != 0,
            packed: bits & 4 != 0,
            indirect: bits & 8 != 0,
        };
        // The good ones take frames larger than a buffer.
        let negotiated = match port {
            0 => u64::from(bits >> 4 & 1) * MRG_RXBUF | u64::from(bits >> 5 & 1) * VERSION_1,
            _ => MRG_RXBUF | VERSION_1,
        };
        let identity =
            Identity { id: PortId(port as u16), name: format!("port{port}"), pairs: 1, workers: 1 };
        let shared = Arc::new(Port::new(identity));
        shared.negotiated(negotiated);
        let device = port as u32;
        let add = Message::AddPort { device, port: shared.clone(), control: None, reply: Reply::new().0 };
        service.message(add, cx);
        let table = Arc::clone(guest.table());
        let memory = RingCommand::Memory { device, table: Arc::clone(&table), reply: Reply::new().0 };
        service.message(memory.into(), cx);
        let addresses = [0, 1].map(|ring| addresses(BASE + ring * RINGS, features));
        let rings = addresses.map(|at| {
            DriverRing::in_table(&table, &at, features.format(), SIZE, features).expect("a good ring")
        });
        for (index, at) in addresses.iter().enumerate() {
            let index = index as u16;
            let queue = Box::new(Queue::new(setup(&table, *at, features)).expect("a good ring"));
            let (stats, reply) = (Arc::default(), Reply::new().0);
            service.message(RingCommand::Start { device, index, queue, stats, reply }.into(), cx);
            let enable = RingCommand::Enable { device, index, enable: true, reply: Reply::new().0 };
            service.message(enable.into(), cx);
        }
        Self { guest, header: shared.header_size().len(), rings, free: (0..SIZE.into()).collect(), sent: 0 }
    }

    /// Posts all receive buffers that are not posted.
    fn post(&mut self) {
        for place in self.free.drain(..) {
            let addr = GuestAddr(RX_BUFFERS + u64::from(place) * u64::from(BUFFER));
            self.rings[0].add(&[], &[Segment { addr, len: BUFFER }], place).expect("room");
        }
        let _kick = self.rings[0].publish();
    }

    /// What has been received.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let (mut bytes, mut left) = (Vec::new(), 0u16);
        while let Some(used) = self.rings[0].pop() {
            assert!(used.len <= BUFFER);
            self.free.push(used.cookie);
            let addr = GuestAddr(RX_BUFFERS + u64::from(used.cookie) * u64::from(BUFFER));
            let mut part = vec![0; used.len as usize];
            self.guest.table().slice(addr, part.len()).expect("a buffer").read(0, &mut part);
            if left == 0 {
                left = u16::from_le_bytes([part[10], part[11]]);
            }
            bytes.extend(part);
            left -= 1;
            if left == 0 {
                frames.push(bytes.split_off(self.header));
                bytes.clear();
            }
        }
        assert_eq!(left, 0, "a frame is shown whole");
        assert!(!self.rings[0].broken() && !self.rings[1].broken());
        frames
    }
}

fn addresses(at: u64, features: RingFeatures) -> RingAddresses {
    let (desc, driver, _) = ring_sizes(features.format(), SIZE);
    let driver_at = at + desc as u64;
    let device_at = (driver_at + driver as u64).next_multiple_of(4);
    RingAddresses { desc: GuestAddr(at), driver: GuestAddr(driver_at), device: GuestAddr(device_at) }
}

fn setup(table: &MemoryTable, addresses: RingAddresses, features: RingFeatures) -> RingSetup<'_> {
    RingSetup {
        size: SIZE,
        features,
        table,
        addresses,
        base: if features.packed { 0x8000_8000 } else { 0 },
        inflight: None,
        log: None,
        used_log_addr: None,
    }
}
