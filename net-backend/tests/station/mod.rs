//! Guests that negotiate with a port as its session does, control queue included, on real workers in one process.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod packet;

use crate::support::{Rig, duplicate};
use memory::{GuestAddr, OwnMemory};
use net_backend::device::{NetDevice, queues_of};
use net_backend::features::*;
use net_backend::frame::{HeaderSize, MacAddr};
use net_backend::guest::Guest;
use net_backend::options::PortOptions;
use net_backend::port::{Identity, Port};
use net_backend::switch::{PortId, PortPolicy};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_user::Device;
use virtqueue::driver::{DriverRing, IndirectTables, Segment};
use virtqueue::{Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RING: u16 = 64;
const SEND_BUFFER: usize = 72 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a driver takes that wants frames finished.
pub const PLAIN: u64 = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS;
/// Everything a driver may leave undone.
pub const SENDS_UNFINISHED: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_HOST_TSO6
    | VIRTIO_NET_F_HOST_ECN
    | VIRTIO_NET_F_HOST_UFO
    | VIRTIO_NET_F_HOST_USO;
/// Everything a driver may take unfinished.
pub const TAKES_UNFINISHED: u64 = VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_GUEST_TSO6
    | VIRTIO_NET_F_GUEST_ECN
    | VIRTIO_NET_F_GUEST_UFO
    | VIRTIO_NET_F_GUEST_USO4
    | VIRTIO_NET_F_GUEST_USO6;

/// One ring as its driver has it.
pub struct Ring {
    pub driver: DriverRing,
    pub addresses: RingAddresses,
    pub kick: EventFd,
    pub call: EventFd,
    buffers: GuestAddr,
    len: usize,
    free: Vec<u32>,
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub header: Vec<u8>,
    pub frame: Vec<u8>,
    pub buffers: usize,
    pub pair: u16,
}

impl Received {
    pub fn flags(&self) -> u8 {
        self.header[0]
    }

    pub fn gso(&self) -> u8 {
        self.header[1]
    }
}

/// A guest with its port.
pub struct Station {
    pub device: NetDevice,
    pub guest: Arc<Guest>,
    pub features: u64,
    pub memory: OwnMemory,
    /// Pairs in turn, then the control queue.
    pub rings: Vec<Ring>,
    pairs: u16,
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

/// Options of a port with one pair and the address that ends in `last`.
pub fn options(last: u8) -> PortOptions {
    let policy = PortPolicy { macs: vec![mac(last)], ..PortPolicy::default() };
    PortOptions { mac: Some(mac(last)), queues: 1, policy, ..PortOptions::new(format!("port{last}")) }
}

impl Station {
    /// A guest whose driver takes all of `wanted` that is offered, with receive buffers of 2 KiB.
    pub fn new(rig: &mut Rig, options: PortOptions, wanted: u64) -> Self {
        Self::with_buffers(rig, options, wanted, 2048)
    }

    pub fn with_buffers(rig: &mut Rig, options: PortOptions, wanted: u64, buffer: usize) -> Self {
        let number = PortId(options.mac.map_or(0, |mac| mac.0[5].into()));
        let policy = PortPolicy { name: options.id.clone(), ..options.policy.clone() };
        rig.set_port_policy(number, policy);
        let handles = rig.pool().handles();
        let (name, pairs) = (options.id.clone(), options.queues);
        let identity = Identity { id: number, name, pairs, workers: handles.len() };
        let attached = rig.pool().attach_pairs(queues_of(options.queues));
        let port = Arc::new(Port::new(identity));
        port.set_mtu(options.mtu.unwrap_or_default());
        let guest = Arc::new(Guest::new(port, Arc::new(options), rig.fabric.clone(), handles.clone()));
        let mut device = NetDevice::new(guest.clone(), attached, handles).unwrap();
        let features = device.features() & wanted;
        device.negotiated(features);
        let memory = OwnMemory::new(64 << 20, GuestAddr(0x100_0000)).unwrap();
        device.set_memory(memory.table().clone());
        let pairs = if features & VIRTIO_NET_F_MQ != 0 { guest.port().pairs() } else { 1 };
        let mut station = Self { device, guest, features, memory, rings: Vec::new(), pairs };
        let control = u16::from(features & VIRTIO_NET_F_CTRL_VQ != 0);
        for index in 0..2 * pairs + control {
            let len = if index % 2 == 0 { buffer } else { SEND_BUFFER };
            let ring = station.ring(len);
            station.rings.push(ring);
            station.start(index, None);
        }
        (0..pairs).for_each(|pair| station.post(pair));
        station
    }

    pub fn port(&self) -> &Arc<Port> {
        self.guest.port()
    }

    fn ring(&self, len: usize) -> Ring {
        let features = RingFeatures::from_bits(self.features);
        let (desc, driver, device) = ring_sizes(features.format(), RING);
        let area = |len| self.memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let table = self.memory.table();
        let mut ring = DriverRing::in_table(table, &addresses, features.format(), RING, features).unwrap();
        if features.indirect {
            let bytes = 16 * 16 * usize::from(RING);
            let area = self.memory.area(self.memory.alloc(bytes, 4096).unwrap(), bytes).unwrap();
            ring.set_indirect(IndirectTables { area, entries: 16 }).unwrap();
        }
        let count = if len == SEND_BUFFER { 16 } else { usize::from(RING) };
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let buffers = self.memory.alloc(count * len, 4096).unwrap();
        let free = (0..count as u32).rev().collect();
        Ring { driver: ring, addresses, kick: event(), call: event(), buffers, len, free }
    }

    /// A new ring in place of one that is stopped.
    pub fn renew(&mut self, index: u16) {
        let len = self.rings[usize::from(index)].len;
        self.rings[usize::from(index)] = self.ring(len);
    }

    pub fn start(&mut self, index: u16, base: Option<u32>) {
        let features = RingFeatures::from_bits(self.features);
        let ring = &self.rings[usize::from(index)];
        let mut queue = Queue::new(RingSetup {
            size: RING,
            features,
            table: self.memory.table(),
            addresses: ring.addresses,
            base: base.unwrap_or(if features.packed { 0x8000_8000 } else { 0 }),
            inflight: None,
            log: None,
            used_log_addr: None,
        })
        .unwrap();
        queue.set_kick(Some(duplicate(&ring.kick)));
        queue.set_call(Some(ring.call.try_clone().unwrap()));
        self.device.start_queue(index, Box::new(queue));
        self.device.enable_queue(index, true);
    }

    fn buffer(ring: &Ring, slot: u32) -> GuestAddr {
        GuestAddr(ring.buffers.0 + u64::from(slot) * ring.len as u64)
    }

    /// Posts all free receive buffers of a pair.
    pub fn post(&mut self, pair: u16) {
        let ring = &mut self.rings[usize::from(2 * pair)];
        while let Some(slot) = ring.free.pop() {
            let segment = Segment { addr: Self::buffer(ring, slot), len: ring.len as u32 };
            ring.driver.add(&[], &[segment], slot).unwrap();
        }
        if ring.driver.publish() {
            ring.kick.write(1).unwrap();
        }
    }

    fn header_len(&self) -> usize {
        HeaderSize::of(self.features).len()
    }

    /// Sends a frame with nothing left undone.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_on(0, &[], frame);
    }

    /// Sends a frame behind the header given, padded with zeros, and waits until the switch has taken it.
    pub fn send_on(&mut self, pair: u16, header: &[u8], frame: &[u8]) {
        let mut bytes = header.to_vec();
        bytes.resize(self.header_len(), 0);
        bytes.extend_from_slice(frame);
        let indirect = RingFeatures::from_bits(self.features).indirect;
        let index = usize::from(2 * pair + 1);
        let ring = &mut self.rings[index];
        let slot = ring.free.pop().unwrap();
        let addr = Self::buffer(ring, slot);
        self.memory.slice(addr, bytes.len()).unwrap().write(0, &bytes);
        // In two descriptors, which meet inside the frame's first bytes.
        let cut = 20.min(bytes.len() as u32);
        let segments = [
            Segment { addr, len: cut },
            Segment { addr: GuestAddr(addr.0 + u64::from(cut)), len: bytes.len() as u32 - cut },
        ];
        match indirect {
            true => ring.driver.add_indirect(&segments, &[], slot).unwrap(),
            false => ring.driver.add(&segments, &[], slot).unwrap(),
        }
        if ring.driver.publish() {
            ring.kick.write(1).unwrap();
        }
        let used = self.wait_used(index);
        self.rings[index].free.push(used);
    }

    fn wait_used(&mut self, index: usize) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.rings[index].driver.pop() {
                return used.cookie;
            }
            assert!(Instant::now() < deadline, "queue {index} does not answer");
            std::thread::yield_now();
        }
    }

    /// Everything that comes within a short time, on any pair.
    pub fn everything(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        let mut quiet_until = Instant::now() + Duration::from_millis(100);
        while Instant::now() < quiet_until {
            let before = all.len();
            for pair in 0..self.pairs {
                while let Some(received) = self.take(pair) {
                    all.push(received);
                }
            }
            if all.len() > before {
                quiet_until = Instant::now() + Duration::from_millis(30);
            }
            std::thread::yield_now();
        }
        all
    }

    /// The one frame that comes.
    pub fn receive(&mut self) -> Received {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for pair in 0..self.pairs {
                if let Some(received) = self.take(pair) {
                    return received;
                }
            }
            assert!(Instant::now() < deadline, "no frame comes");
            std::thread::yield_now();
        }
    }

    fn take(&mut self, pair: u16) -> Option<Received> {
        let header_len = self.header_len();
        let first = self.pop(pair)?;
        let mergeable = self.features & VIRTIO_NET_F_MRG_RXBUF != 0;
        let count = if mergeable { u16::from_le_bytes([first[10], first[11]]).into() } else { 1 };
        let (header, frame) = first.split_at(header_len);
        let (header, mut frame) = (header.to_vec(), frame.to_vec());
        for _ in 1..count {
            // All buffers of a frame are published together.
            frame.extend(self.pop(pair).expect("the frame's next buffer"));
        }
        self.post(pair);
        Some(Received { header, frame, buffers: count, pair })
    }

    fn pop(&mut self, pair: u16) -> Option<Vec<u8>> {
        let ring = &mut self.rings[usize::from(2 * pair)];
        let used = ring.driver.pop()?;
        ring.free.push(used.cookie);
        let mut bytes = vec![0; used.len as usize];
        self.memory.slice(Self::buffer(ring, used.cookie), bytes.len()).unwrap().read(0, &mut bytes);
        Some(bytes)
    }

    /// Executes a control command; the device's answer.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let bytes = [&[class, command], data].concat();
        let index = self.rings.len() - 1;
        let addr = self.memory.alloc(bytes.len() + 1, 1).unwrap();
        self.memory.slice(addr, bytes.len()).unwrap().write(0, &bytes);
        let answer = GuestAddr(addr.0 + bytes.len() as u64);
        self.memory.slice(answer, 1).unwrap().write(0, &[0xee]);
        let readable = Segment { addr, len: bytes.len() as u32 };
        let ring = &mut self.rings[index];
        ring.driver.add(&[readable], &[Segment { addr: answer, len: 1 }], 0).unwrap();
        if ring.driver.publish() {
            ring.kick.write(1).unwrap();
        }
        self.wait_used(index);
        let mut byte = [0];
        self.memory.slice(answer, 1).unwrap().read(0, &mut byte);
        byte[0]
    }

    pub fn config<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.read_config(offset, &mut bytes);
        bytes
    }

    /// Whether the driver was interrupted since the last look.
    pub fn interrupted(&self, index: usize) -> bool {
        self.rings[index].call.read().is_ok()
    }
}

/// A frame of 100 bytes that holds `seed`.
pub fn frame(dst: MacAddr, src: MacAddr, seed: u8) -> Vec<u8> {
    [&dst.0[..], &src.0, &[0x88, 0xb5], &[seed; 86]].concat()
}
