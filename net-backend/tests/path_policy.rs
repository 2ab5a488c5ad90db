//! What the switch decides, done to frames on their way: tags, copies for mirrors, work that a sender left undone.

mod support;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memory::{MemoryTable, MemoryView};
use net_backend::frame::{Offloads, Packet};
use net_backend::path::Burst;
use net_backend::switch::{
    Drop, MirrorPolicy, MirrorTarget, PortId, PortPolicy, Rate, StormLimits, VlanMode,
};
use net_backend::uplink::{UplinkCounters, UplinkQueue};
use support::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn with(policy: PortPolicy) -> Config {
    Config { policy, ..Config::default() }
}

fn vlan(text: &str) -> VlanMode {
    VlanMode::Trunk { allowed: text.parse().unwrap(), native: None }
}

/// The frame with a tag behind its addresses.
fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes.splice(12..12, [0x81, 0, (tci >> 8) as u8, tci as u8]);
    bytes
}

#[test]
fn a_frame_leaves_with_the_tag_that_each_port_wants() {
    for ring in [0, PACKED] {
        let mut rig = Rig::new();
        let guest = |rig: &mut Rig, vlan| {
            let policy = PortPolicy { vlan, ..PortPolicy::default() };
            rig.guest(Config { policy, ..Config::with(ring | VERSION_1 | MRG_RXBUF) })
        };
        let mut access = guest(&mut rig, VlanMode::Access(7));
        let mut peer = guest(&mut rig, VlanMode::Access(7));
        let mut trunk = guest(&mut rig, vlan("7,9"));
        let mut other = guest(&mut rig, VlanMode::Access(9));
        for len in [60, 127, 128, 129, 1514, 9000] {
            let sent = frame(BROADCAST, mac(1), len, len as u64);
            access.send(&[&sent]);
            assert_eq!(peer.receive(1)[0].frame, sent);
            assert_eq!(trunk.receive(1)[0].frame, tagged(&sent, 7));
            let back = frame(BROADCAST, mac(3), len, 1 + len as u64);
            trunk.send(&[&tagged(&back, 7)]);
            assert_eq!(access.receive(1)[0].frame, back);
            assert_eq!(peer.receive(1)[0].frame, back);
        }
        assert!(other.frames().is_empty());
        trunk.send(&[&tagged(&frame(BROADCAST, mac(3), 60, 1), 8), &frame(BROADCAST, mac(3), 60, 1)]);
        assert_eq!(trunk.dropped_in(Drop::VlanNotAllowed), 2);
    }
}

#[test]
fn tagged_and_untagged_frames_of_one_flow_in_a_burst_keep_their_own_vlans() {
    let mut rig = Rig::new();
    let native = VlanMode::Trunk { allowed: "5".parse().unwrap(), native: Some(6) };
    let mut trunk = rig.guest(with(PortPolicy { vlan: native, ..PortPolicy::default() }));
    let access = |id| with(PortPolicy { vlan: VlanMode::Access(id), ..PortPolicy::default() });
    let (mut five, mut six) = (rig.guest(access(5)), rig.guest(access(6)));
    let plain: Vec<_> = (0..4).map(|seed| frame(BROADCAST, mac(1), 80, seed)).collect();
    let as_sent = |(n, bytes): (usize, &Vec<u8>)| if n % 2 == 0 { tagged(bytes, 5) } else { bytes.clone() };
    let burst: Vec<_> = plain.iter().enumerate().map(as_sent).collect();
    trunk.send(&burst.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let frames = |guest: &mut Guest| guest.receive(2).into_iter().map(|got| got.frame).collect::<Vec<_>>();
    assert_eq!(frames(&mut five), [plain[0].clone(), plain[2].clone()]);
    assert_eq!(frames(&mut six), [plain[1].clone(), plain[3].clone()]);
}

#[test]
fn a_mirror_port_gets_what_the_other_port_sends_and_receives_and_takes_part_in_nothing() {
    let mut rig = Rig::new();
    let to = MirrorTarget::Port(PortId(1));
    let mirror = Some(MirrorPolicy { to, direction: None });
    let mut watched = rig.guest(Config::default());
    let mut watcher = rig.guest(Config::default());
    let mut peer = rig.guest(Config::default());
    rig.set_port_policy(watched.port.id(), PortPolicy { mirror, ..PortPolicy::default() });
    let (there, back) = (frame(mac(3), mac(1), 700, 1), frame(mac(1), mac(3), 60, 2));
    watched.send(&[&there]);
    peer.send(&[&back]);
    assert_eq!(peer.receive(1)[0].frame, there);
    assert_eq!(watched.receive(1)[0].frame, back);
    let copies: Vec<_> = watcher.receive(2).into_iter().map(|got| got.frame).collect();
    assert_eq!(copies, [there, back]);
    peer.send(&[&frame(BROADCAST, mac(3), 60, 3)]);
    assert_eq!(watched.receive(1).len(), 1);
    assert_eq!(watcher.receive(1).len(), 1, "the copy of what the watched port received, nothing else");
}

/// A UDP frame whose checksum is left to the receiver, with the header that says so.
fn partial(payload: usize) -> ([u8; 12], Vec<u8>) {
    let mut bytes = frame(mac(2), mac(1), 42 + payload, 1);
    let udp = 8 + payload as u16;
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes[16..18].copy_from_slice(&(20 + udp).to_be_bytes());
    bytes[34..40].copy_from_slice(&[4, 210, 0, 53, (udp >> 8) as u8, udp as u8]);
    let pseudo = 0x0a00 + 1 + 0x0a00 + 2 + 17 + u32::from(udp);
    bytes[40..42].copy_from_slice(&(pseudo as u16).to_be_bytes());
    let mut header = [0; 12];
    (header[0], header[6], header[8]) = (1, 34, 6);
    (header, bytes)
}

/// The checksum over a UDP datagram and its pseudo header, which is all ones when it is right.
fn udp_sum(bytes: &[u8]) -> u16 {
    let mut covered = [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 17][..], &bytes[38..40], &bytes[34..]].concat();
    covered.resize(covered.len().next_multiple_of(2), 0);
    let sum =
        covered.chunks(2).fold(0u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

#[test]
fn a_checksum_is_completed_for_those_who_cannot_and_left_to_those_who_can() {
    let mut rig = Rig::new();
    let mut a = rig.guest(Config::default());
    let mut able = rig.guest(Config::with(VERSION_1 | MRG_RXBUF | GUEST_OFFLOADS));
    let mut unable = rig.guest(Config::default());
    for payload in [0, 1, 18, 85, 86, 87, 1471, 9000] {
        let (header, mut sent) = partial(payload);
        sent[..6].fill(0xff);
        a.send_with(0, &header, &[&sent]);
        let got = able.receive(1).remove(0);
        assert_eq!(got.frame, sent);
        assert_eq!(got.header[..10], header[..10]);
        let got = unable.receive(1).remove(0);
        assert_eq!(got.header[..10], [0; 10], "nothing is left to do");
        assert_eq!(got.frame[..40], sent[..40]);
        assert_eq!(got.frame[42..], sent[42..]);
        assert_eq!(udp_sum(&got.frame), 0xffff, "{payload} bytes");
    }
    assert_eq!((able.stats().checksummed, unable.stats().checksummed), (0, 8));
}

#[test]
fn a_checksum_follows_the_tag_that_is_pushed_or_popped() {
    let mut rig = Rig::new();
    let guest = |rig: &mut Rig, vlan, features| {
        rig.guest(Config { policy: PortPolicy { vlan, ..PortPolicy::default() }, ..Config::with(features) })
    };
    let features = VERSION_1 | MRG_RXBUF;
    let mut a = guest(&mut rig, VlanMode::Access(7), features);
    let mut trunk = guest(&mut rig, vlan("7"), features | GUEST_OFFLOADS);
    let (header, mut sent) = partial(100);
    sent[..6].fill(0xff);
    a.send_with(0, &header, &[&sent]);
    let got = trunk.receive(1).remove(0);
    assert_eq!(got.frame, tagged(&sent, 7));
    assert_eq!((got.header[0], got.header[6], got.header[8]), (1, 38, 6));
    trunk.send_with(0, &got.header[..12], &[&got.frame]);
    let back = a.receive(1).remove(0).frame;
    assert_eq!(udp_sum(&back), 0xffff);
}

/// A header that leaves a checksum undone.
fn checksum_at(start: u8, offset: u8) -> [u8; 12] {
    let mut header = [0; 12];
    (header[0], header[6], header[8]) = (1, start, offset);
    header
}

#[test]
fn no_checksum_is_stored_where_the_switch_has_looked() {
    for features in [0, GUEST_OFFLOADS] {
        let mut rig = Rig::new();
        let rules = vec!["out deny udp dport 53".parse().unwrap()];
        let addresses = vec!["10.0.0.1".parse().unwrap()];
        let policy = PortPolicy { filter: rules, addresses, ..PortPolicy::default() };
        let mut bad = rig.guest(with(policy));
        let mut trunk = rig.guest(with(PortPolicy { vlan: vlan("7"), ..PortPolicy::default() }));
        let open = rig.guest(Config::with(VERSION_1 | MRG_RXBUF | features));
        let (_, mut udp) = partial(100);
        udp[..6].fill(0xff);
        udp[36..38].copy_from_slice(&[0, 54]);
        // The source address; the fragment offset; the destination's port.
        for (start, offset) in [(26, 0), (14, 12), (14, 6), (34, 2), (34, 0)] {
            bad.send_with(0, &checksum_at(start, offset), &[&udp]);
        }
        assert_eq!(bad.dropped_in(Drop::BadOffload), 5, "{}", bad.drops());
        // The VLAN; the ethertype behind it; the source address.
        for (start, offset) in [(14, 0), (14, 2), (16, 0), (18, 12)] {
            trunk.send_with(0, &checksum_at(start, offset), &[&tagged(&udp, 7)]);
        }
        assert_eq!(trunk.dropped_in(Drop::BadOffload), 4, "{}", trunk.drops());
        assert_eq!(open.stats().sent_frames, 0);
        bad.send_with(0, &checksum_at(34, 6), &[&udp]);
        trunk.send_with(0, &checksum_at(38, 6), &[&tagged(&udp, 7)]);
        assert_eq!(open.stats().sent_frames, 2, "{}", open.drops());
    }
}

/// A UDP datagram with this payload, to be cut into datagrams of `size` bytes of it.
fn datagrams(payload: usize, size: u16) -> ([u8; 12], Vec<u8>) {
    let (mut header, mut bytes) = partial(payload);
    (header[1], header[2]) = (5, 42);
    header[4..6].copy_from_slice(&size.to_le_bytes());
    bytes[..6].fill(0xff);
    (header, bytes)
}

#[test]
fn segments_do_not_exceed_the_mtu_either() {
    for features in [0, GUEST_OFFLOADS | 1 << 54] {
        let mut rig = Rig::new();
        let mut a = rig.guest(Config::default());
        let mut b = rig.guest(Config::with(VERSION_1 | MRG_RXBUF | features));
        b.port.set_mtu(1500);
        let (header, long) = datagrams(10_000, 1473);
        a.send_with(0, &header, &[&long]);
        assert_eq!((b.dropped_out(Drop::TooLong), b.stats().sent_frames), (1, 0));
        let (header, fits) = datagrams(10_000, 1472);
        a.send_with(0, &header, &[&fits]);
        let whole = features != 0;
        assert_eq!(b.receive(if whole { 1 } else { 7 })[0].frame.len(), if whole { 10_042 } else { 1514 });
        a.port.set_mtu(1500);
        a.send_with(0, &datagrams(10_000, 1481).0, &[&long]);
        assert_eq!(a.dropped_in(Drop::TooLong), 1);
        a.send_with(0, &header, &[&fits]);
        b.receive(if whole { 1 } else { 7 });
    }
}

#[test]
fn storm_control_counts_the_segments_of_a_frame() {
    let mut rig = Rig::new();
    let storm = StormLimits { broadcast: Rate { rate: 1, burst: 4 }, ..StormLimits::default() };
    let mut a = rig.guest(with(PortPolicy { storm, ..PortPolicy::default() }));
    let mut b = rig.guest(Config::default());
    let plain = frame(BROADCAST, mac(1), 60, 1);
    a.send(&[&plain, &plain]);
    let (header, many) = datagrams(1000, 100);
    a.send_with(0, &header, &[&many]);
    assert_eq!(b.receive(12).len(), 12);
    a.send(&[&plain]);
    assert_eq!(a.dropped_in(Drop::StormBroadcast), 1);
}

/// A way out that takes all there is and keeps none of it.
struct Abyss {
    view: MemoryView,
    bell: EventFd,
    taken: Arc<AtomicUsize>,
}

impl UplinkQueue for Abyss {
    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }
    fn view(&self) -> &MemoryView {
        &self.view
    }
    fn receive(&mut self, _: &mut Burst) -> usize {
        0
    }
    fn release(&mut self) {}
    fn send(&mut self, _: &Packet<'_>) -> Result<(), Drop> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn flush(&mut self) -> usize {
        0
    }
    fn watch_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
    fn arm(&mut self) -> bool {
        false
    }
    fn has_work(&self) -> bool {
        false
    }
    fn counters(&self) -> UplinkCounters {
        UplinkCounters::default()
    }
}

#[test]
fn frames_cut_into_thousands_of_segments_are_no_endless_work() {
    let mut rig = Rig::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let view = MemoryView::new(MemoryTable::empty());
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    let uplink = rig.uplink(Box::new(Abyss { view, bell, taken: taken.clone() }));
    let mut a = rig.guest(Config::default());
    let send = |a: &mut Guest, size| {
        let (header, bytes) = datagrams(60_000, size);
        a.attached.enable_queue(1, false).unwrap();
        (0..16).for_each(|_| assert!(a.offer(0, &header, &bytes)));
        a.kick(0);
        a.attached.enable_queue(1, true).unwrap();
        a.reap(0, 16);
        taken.swap(0, Ordering::Relaxed)
    };
    assert_eq!(send(&mut a, 1000), 16 * 60, "what is cut as usual");
    assert_eq!(uplink.stats.snapshot().dropped_out(), 0);
    assert!((4096..4096 + 2048).contains(&send(&mut a, 30)));
    assert!(uplink.stats.snapshot().out_drops[Drop::BadOffload as usize] > 0);
    assert_eq!(send(&mut a, 1000), 16 * 60, "the next ones");
}
