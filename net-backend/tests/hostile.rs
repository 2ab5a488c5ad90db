//! Guests that do not keep to the rules: each harms itself at most.

mod support;

use memory::{GuestAddr, MemoryTable};
use net_backend::switch::Drop;
use support::*;
use virtqueue::driver::Segment;

/// Rings of all formats.
const RINGS: [u64; 4] = [EVENT_IDX, PACKED | EVENT_IDX, IN_ORDER | EVENT_IDX, PACKED | IN_ORDER | EVENT_IDX];

/// A hostile guest and two that go on talking.
struct Trio {
    rig: Rig,
    bad: Guest,
    a: Guest,
    b: Guest,
}

impl Trio {
    fn new(ring: u64) -> Self {
        let mut rig = Rig::new();
        let config = Config::with(ring | VERSION_1 | MRG_RXBUF);
        let bad = rig.guest(config.clone());
        let (a, b) = (rig.guest(config.clone()), rig.guest(config));
        Self { rig, bad, a, b }
    }

    /// The two are not disturbed.
    fn check(&mut self) {
        let _ = (self.a.frames(), self.b.frames());
        for seed in 0..3 {
            let there = frame(mac(3), mac(2), 400, seed);
            self.a.send(&[&there]);
            assert_eq!(self.b.receive(1)[0].frame, there);
            let back = frame(mac(2), mac(3), 90, seed);
            self.b.send(&[&back]);
            assert_eq!(self.a.receive(1)[0].frame, back);
        }
    }

    fn broken(&self, index: usize) -> u64 {
        self.bad.attached.stats().nth(index).unwrap().broken.get()
    }
}

/// Offers a transmit chain of these pieces of memory.
fn offer(guest: &mut Guest, readable: &[Segment], writable: &[Segment]) {
    guest.queues[1].ring.add(readable, writable, 9999).unwrap();
    guest.kick(0);
}

#[test]
fn frames_of_impossible_lengths_are_dropped_and_the_ring_goes_on() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        let header = [0; 12];
        for len in [0, 1, 6, 12, 13] {
            all.bad.send_with(0, &header, &[&vec![0xaa; len]]);
        }
        assert_eq!(all.bad.dropped_in(Drop::Runt), 5);
        for len in [65_559, 70_000] {
            all.bad.send_with(0, &header, &[&frame(BROADCAST, mac(9), len, 1)]);
        }
        assert_eq!(all.bad.dropped_in(Drop::TooLong), 2);
        for len in [1, 5, 11] {
            all.bad.send_with(0, &header[..len], &[&[]]);
        }
        assert_eq!(all.bad.dropped_in(Drop::Malformed), 3);
        assert_eq!(all.broken(1), 0);
        all.check();
        let fine = frame(mac(2), mac(9), 65_550, 2);
        all.bad.send(&[&fine]);
        assert_eq!(all.a.receive(1)[0].frame, fine);
    }
}

#[test]
fn a_chain_that_leaves_the_memory_breaks_its_ring_once_and_tells_the_frontend() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        let outside = Segment { addr: GuestAddr(1 << 40), len: 100 };
        offer(&mut all.bad, &[outside], &[]);
        eventually("it is broken", || all.broken(1) == 1);
        assert_eq!(all.bad.queues[1].err.read().unwrap(), 1);
        offer(&mut all.bad, &[outside], &[]);
        all.check();
        assert_eq!(all.broken(1), 1);
        assert_eq!(all.bad.dropped_out(Drop::NoReceiveBuffer), 0, "its receive ring is another one");
    }
}

#[test]
fn a_receive_buffer_outside_the_memory_breaks_that_ring_only() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        // Behind the good buffers comes a bad one.
        all.bad.received_on(0);
        let mut config = all.bad.config.clone();
        config.size = 8;
        let mut bad = all.rig.unstarted(config);
        bad.start(0);
        bad.start(1);
        let outside = Segment { addr: GuestAddr(1 << 40), len: 2048 };
        bad.queues[0].ring.add(&[], &[outside], 1).unwrap();
        let _ = bad.queues[0].ring.publish();
        all.a.send(&[&frame(BROADCAST, mac(2), 60, 1)]);
        let broken = bad.attached.stats().next().unwrap().broken.get();
        assert_eq!(broken, 1);
        assert_eq!(bad.dropped_out(Drop::NoReceiveBuffer), 1);
        bad.send(&[&frame(BROADCAST, mac(9), 60, 2)]);
        all.check();
    }
}

#[test]
fn receive_buffers_too_small_for_a_header_break_the_ring() {
    for ring in RINGS {
        for len in [1, 11] {
            let mut all = Trio::new(ring);
            let mut bad = all.rig.unstarted(Config { size: 8, ..all.bad.config.clone() });
            bad.start(0);
            let small = Segment { addr: bad.queues[0].buffers, len };
            (0..4).for_each(|cookie| bad.queues[0].ring.add(&[], &[small], cookie).unwrap());
            let _ = bad.queues[0].ring.publish();
            all.a.send(&[&frame(BROADCAST, mac(2), 60, 1)]);
            assert_eq!(bad.attached.stats().next().unwrap().broken.get(), 1);
            all.check();
        }
    }
}

#[test]
fn a_frame_does_not_take_thousands_of_tiny_buffers() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        let mut bad = all.rig.guest(Config { size: 2048, buffer: 13, ..all.bad.config.clone() });
        all.a.send(&[&frame(BROADCAST, mac(2), 13 * 1024 - 11, 1)]);
        assert_eq!(bad.dropped_out(Drop::TooLong), 1);
        let fits = frame(BROADCAST, mac(2), 13 * 1024 - 12, 2);
        all.a.send(&[&fits]);
        let got = bad.receive(1).remove(0);
        assert_eq!((got.frame, got.buffers), (fits, 1024));
        all.check();
    }
}

#[test]
fn a_later_buffer_too_small_for_a_header_breaks_the_ring_as_the_first_does() {
    let mut all = Trio::new(EVENT_IDX);
    let mut bad = all.rig.unstarted(Config { size: 8, ..all.bad.config.clone() });
    bad.start(0);
    let buffer = |len| Segment { addr: bad.queues[0].buffers, len };
    let buffers = [buffer(40), buffer(11), buffer(2048)];
    for (cookie, buffer) in buffers.into_iter().enumerate() {
        bad.queues[0].ring.add(&[], &[buffer], cookie as u32).unwrap();
    }
    let _ = bad.queues[0].ring.publish();
    all.a.send(&[&frame(BROADCAST, mac(2), 60, 1)]);
    assert_eq!(bad.attached.stats().next().unwrap().broken.get(), 1);
    all.check();
}

#[test]
fn receive_chains_without_anything_to_write_break_the_ring() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        let mut bad = all.rig.unstarted(Config { size: 8, ..all.bad.config.clone() });
        bad.start(0);
        let readable = Segment { addr: bad.queues[0].buffers, len: 2048 };
        (0..8).for_each(|cookie| bad.queues[0].ring.add(&[readable], &[], cookie).unwrap());
        let _ = bad.queues[0].ring.publish();
        all.a.send(&[&frame(BROADCAST, mac(2), 60, 1)]);
        assert_eq!(bad.attached.stats().next().unwrap().broken.get(), 1);
        all.check();
    }
}

#[test]
fn a_transmit_chain_with_writable_parts_is_not_written_to() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        let sent = frame(mac(2), mac(9), 60, 1);
        let (from, to) = (all.bad.queues[1].buffers, all.bad.queues[0].buffers);
        let slice = all.bad.memory.slice(from, 72).unwrap();
        slice.write(0, &[0; 12]);
        slice.write(12, &sent);
        all.bad.memory.slice(to, 64).unwrap().fill(0x77);
        let (readable, writable) = (Segment { addr: from, len: 72 }, Segment { addr: to, len: 64 });
        offer(&mut all.bad, &[readable], &[writable]);
        assert_eq!(all.a.receive(1)[0].frame, sent);
        let mut bytes = [0; 64];
        all.bad.memory.slice(to, 64).unwrap().read(0, &mut bytes);
        assert_eq!(bytes, [0x77; 64]);
    }
}

#[test]
fn an_avail_index_that_runs_ahead_breaks_the_ring() {
    for index in [0usize, 1] {
        let mut all = Trio::new(EVENT_IDX);
        let driver = all.bad.queues[index].addresses.driver;
        let slice = all.bad.memory.slice(driver, 4).unwrap();
        slice.write(2, &30_000u16.to_le_bytes());
        all.bad.queues[index].kick.write(1).unwrap();
        all.a.send(&[&frame(BROADCAST, mac(2), 60, 1)]);
        eventually("it is broken", || all.broken(index) == 1);
        all.check();
    }
}

#[test]
fn headers_that_claim_nonsense_reach_nobody() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        let sent = frame(mac(2), mac(9), 100, 1);
        let mut headers = vec![[0xff; 12]];
        for (at, value) in [(1, 9), (1, 0x7f), (1, 1), (1, 4), (1, 3), (1, 5)] {
            let mut header = [0; 12];
            header[at] = value;
            headers.push(header);
        }
        // A checksum that starts in the Ethernet header, or is stored behind the end.
        for (start, offset) in [(0u16, 0u16), (13, 16), (98, 1), (100, 0), (0xffff, 0xffff)] {
            let mut header = [0; 12];
            header[0] = 1;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            headers.push(header);
        }
        for header in &headers {
            all.bad.send_with(0, header, &[&sent]);
        }
        let stats = all.bad.stats();
        let (dropped, others) =
            (stats.dropped_in(), [&all.a, &all.b].map(|guest| guest.stats().dropped_out()));
        assert_eq!(dropped + others[0], headers.len() as u64, "{}", all.bad.drops());
        assert!(all.a.frames().is_empty());
        assert_eq!(all.broken(1), 0);
        all.check();
    }
}

#[test]
fn memory_that_goes_away_under_running_rings_breaks_them_and_nobody_else() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        all.bad.attached.set_memory(MemoryTable::empty()).unwrap();
        assert_eq!((all.broken(0), all.broken(1)), (1, 1));
        all.a.send(&[&frame(BROADCAST, mac(2), 60, 1)]);
        all.bad.kick(0);
        all.check();
        // A frontend that comes again starts from nothing.
        let mut fresh = all.rig.guest(all.bad.config.clone());
        fresh.send(&[&frame(mac(2), mac(8), 60, 1)]);
        assert_eq!(all.a.receive(1).len(), 1);
    }
}

#[test]
fn a_flood_of_garbage_leaves_the_others_what_they_say_to_each_other() {
    for ring in RINGS {
        let mut all = Trio::new(ring);
        all.check();
        let mut word = 0x1234_5678_9abc_def1_u64;
        for round in 0..200 {
            let mut bytes = Vec::new();
            for _ in 0..round % 40 {
                word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ round;
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            let mut header = [0u8; 12];
            header.copy_from_slice(&word.wrapping_mul(3).to_le_bytes().repeat(2)[..12]);
            all.bad.send_with(0, &header, &[&bytes]);
        }
        assert_eq!(all.broken(1), 0);
        all.check();
    }
}
