//! One test for each feature bit a port offers, at least: `FEATURES` names them. Those of the control queue are in `ctrl.rs`.

mod station;
mod support;

use net_backend::features::*;
use net_backend::options::PortOptions;
use station::packet::{CWR, Packet, TCP, UDP, is_finished};
use station::*;
use support::Rig;
use vhost_user::Device;

#[test]
fn every_offered_bit_has_a_named_test() {
    let sources = [("features", include_str!("features.rs")), ("ctrl", include_str!("ctrl.rs"))];
    for feature in FEATURES {
        let (file, test) = feature.test.split_once("::").unwrap();
        let definition = format!("#[test]\nfn {test}()");
        let found = sources.iter().any(|(name, source)| *name == file && source.contains(&definition));
        assert!(found, "{} has no test {}", feature.name, feature.test);
    }
    let known = FEATURES.iter().fold(0, |bits, feature| bits | feature.bit);
    let full = PortOptions { mtu: Some(9000), queues: 16, ..options(1) };
    assert_eq!(offered(&full), known);
}

/// A sender that leaves everything undone, and a receiver with these features.
fn two(receiver: u64) -> (Rig, Station, Station) {
    let mut rig = Rig::new();
    let a = Station::new(&mut rig, options(1), PLAIN | SENDS_UNFINISHED);
    let b = Station::new(&mut rig, options(2), PLAIN | receiver);
    (rig, a, b)
}

#[test]
fn csum_is_completed_for_a_receiver_that_wants_it_done() {
    let (_rig, mut a, mut b) = two(0);
    for (v6, protocol) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
        let packet = Packet::new(v6, protocol, 333);
        a.send_on(0, &packet.header(0, 0), &packet.partial());
        let got = b.receive();
        assert!(got.frame == packet.finished(), "v6 {v6} protocol {protocol}");
        assert_eq!((got.flags() & 1, got.gso()), (0, 0));
    }
}

#[test]
fn guest_csum_passes_partial_checksums_on() {
    let (_rig, mut a, mut b) = two(VIRTIO_NET_F_GUEST_CSUM);
    let packet = Packet::new(false, TCP, 333);
    a.send_on(0, &packet.header(0, 0), &packet.partial());
    let got = b.receive();
    assert!(got.frame == packet.partial());
    assert_eq!(got.header[..10], packet.header(0, 0)[..10]);
}

/// A large frame arrives whole where the receiver takes it, and as finished segments where it does not.
fn whole_or_segmented(packet: Packet, gso: u8, takes: u64) {
    const SIZE: u16 = 1000;
    let (_rig, mut a, mut b) = two(VIRTIO_NET_F_GUEST_CSUM | takes);
    a.send_on(0, &packet.header(gso, SIZE), &packet.partial());
    let got = b.receive();
    assert_eq!((got.gso(), got.frame.len()), (gso, packet.partial().len()), "it passes whole");
    assert!(got.frame == packet.partial());

    let (_rig, mut a, mut b) = two(0);
    a.send_on(0, &packet.header(gso, SIZE), &packet.partial());
    let segments = b.everything();
    assert_eq!(segments.len(), packet.payload.div_ceil(SIZE.into()));
    let mut payload = Vec::new();
    for segment in &segments {
        assert_eq!((segment.flags() & 1, segment.gso()), (0, 0));
        assert!(is_finished(&segment.frame), "every segment has its checksums");
        payload.extend_from_slice(&segment.frame[packet.headers()..]);
    }
    assert!(payload == packet.partial()[packet.headers()..], "nothing is lost or out of order");
}

#[test]
fn tso4_passes_whole_or_is_segmented() {
    whole_or_segmented(Packet::new(false, TCP, 20_500), 1, VIRTIO_NET_F_GUEST_TSO4);
}

#[test]
fn tso6_passes_whole_or_is_segmented() {
    whole_or_segmented(Packet::new(true, TCP, 20_500), 4, VIRTIO_NET_F_GUEST_TSO6);
}

#[test]
fn ecn_is_kept_or_segmented_rightly() {
    let packet = Packet { flags: CWR, ..Packet::new(false, TCP, 2500) };
    let takes = VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_ECN;
    whole_or_segmented(packet, 0x81, takes);
    // CWR is in the first segment only (RFC 3168 §6.1.2).
    let (_rig, mut a, mut b) = two(VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4);
    a.send_on(0, &packet.header(0x81, 1000), &packet.partial());
    let flags: Vec<u8> = b.everything().iter().map(|got| got.frame[packet.l4_start() + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x10]);
}

#[test]
fn uso_passes_whole_or_is_segmented() {
    whole_or_segmented(Packet::new(false, UDP, 20_500), 5, VIRTIO_NET_F_GUEST_USO4);
    whole_or_segmented(Packet::new(true, UDP, 20_500), 5, VIRTIO_NET_F_GUEST_USO6);
}

#[test]
fn ufo_passes_whole_or_is_fragmented() {
    let packet = Packet::new(false, UDP, 4000);
    let (_rig, mut a, mut b) = two(VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_UFO);
    a.send_on(0, &packet.header(3, 1000), &packet.partial());
    assert_eq!(b.receive().gso(), 3);
    let (_rig, mut a, mut b) = two(0);
    a.send_on(0, &packet.header(3, 1000), &packet.partial());
    let fragments = b.everything();
    assert!(fragments.len() > 1);
    let datagram: Vec<u8> = fragments.iter().flat_map(|got| got.frame[34..].to_vec()).collect();
    assert!(datagram == packet.finished()[34..], "the fragments are the finished datagram");
    let more = |got: &Received| got.frame[20] & 0x20 != 0;
    assert_eq!(fragments.iter().filter(|got| !more(got)).count(), 1, "one is the last");
}

#[test]
fn mrg_rxbuf_spreads_a_frame_over_small_buffers() {
    let mut rig = Rig::new();
    let mut a = Station::new(&mut rig, options(1), PLAIN | SENDS_UNFINISHED);
    let mut b = Station::with_buffers(&mut rig, options(2), PLAIN, 256);
    let long = [&mac(2).0[..], &mac(1).0, &[0x88, 0xb5], &[7; 3000]].concat();
    a.send(&long);
    let got = b.receive();
    assert!(got.frame == long);
    assert_eq!(got.buffers, (12 + long.len()).div_ceil(256));
}

#[test]
fn version_1_fixes_the_length_of_the_header() {
    let mut rig = Rig::new();
    let mut modern = Station::new(&mut rig, options(1), VIRTIO_F_VERSION_1);
    let mut legacy = Station::new(&mut rig, options(2), 0);
    modern.send(&frame(mac(2), mac(1), 1));
    let got = legacy.receive();
    assert_eq!((got.header.len(), got.frame), (10, frame(mac(2), mac(1), 1)));
    legacy.send(&frame(mac(1), mac(2), 2));
    let got = modern.receive();
    assert_eq!((got.header.len(), got.frame), (12, frame(mac(1), mac(2), 2)));
    assert_eq!(got.header[10..12], [1, 0], "num_buffers is 1 without MRG_RXBUF, too");
}

#[test]
fn mtu_is_told_up_to_65535() {
    let mut rig = Rig::new();
    let options = PortOptions { mtu: Some(65535), ..options(1) };
    let station = Station::new(&mut rig, options, !VIRTIO_NET_F_HASH_REPORT);
    assert_ne!(station.features & VIRTIO_NET_F_MTU, 0);
    assert_eq!(u16::from_le_bytes(station.config(10)), 65535);
    let mut plain = Station::new(&mut rig, station::options(2), PLAIN);
    assert_eq!(plain.features & VIRTIO_NET_F_MTU, 0);
    assert!(plain.device.set_mtu(67).is_err());
    plain.device.set_mtu(9000).unwrap();
    assert_eq!(plain.port().mtu(), 9000);
}

#[test]
fn mac_is_told_and_known_to_the_switch() {
    let mut rig = Rig::new();
    let mut a = Station::new(&mut rig, options(1), PLAIN);
    let mut b = Station::new(&mut rig, options(2), PLAIN);
    let mut c = Station::new(&mut rig, options(3), PLAIN);
    assert_eq!(b.config(0), mac(2).0);
    a.send(&frame(mac(2), mac(1), 1));
    assert_eq!(b.receive().frame, frame(mac(2), mac(1), 1));
    assert!(c.everything().is_empty(), "b was known before it said anything");
}

#[test]
fn status_follows_the_link() {
    let mut rig = Rig::new();
    let station = Station::new(&mut rig, options(1), PLAIN);
    assert_eq!(u16::from_le_bytes(station.config(6)), 1);
    station.guest.set_link(false);
    assert_eq!(u16::from_le_bytes(station.config(6)), 0);
    station.guest.set_link(true);
    assert_eq!(u16::from_le_bytes(station.config(6)), 1);
}

#[test]
fn speed_and_duplex_are_told() {
    let mut rig = Rig::new();
    let fast = Station::new(&mut rig, PortOptions { speed: Some(25_000), ..options(1) }, u64::MAX);
    assert_eq!((u32::from_le_bytes(fast.config(12)), fast.config(16)), (25_000, [1]));
    let unknown = Station::new(&mut rig, options(2), u64::MAX);
    assert_eq!(u32::from_le_bytes(unknown.config(12)), u32::MAX);
}

/// Frames of every size pass both ways between two drivers with these ring features.
fn every_size(ring: u64) {
    let mut rig = Rig::new();
    let mut a = Station::new(&mut rig, options(1), PLAIN | ring);
    let mut b = Station::new(&mut rig, options(2), PLAIN | ring);
    assert_eq!(a.features & ring, ring);
    for len in [14, 60, 61, 127, 128, 129, 1514, 2036, 2037, 9014, 40_000] {
        for (from, to, dst, src) in
            [(&mut a, 2, 2, 1), (&mut b, 1, 1, 2)].map(|(s, n, d, f)| (s, n, mac(d), mac(f)))
        {
            let bytes = [&dst.0[..], &src.0, &[0x88, 0xb5], &vec![to; len - 14]].concat();
            from.send(&bytes);
        }
        assert_eq!(b.receive().frame.len(), len);
        assert_eq!(a.receive().frame.len(), len);
    }
}

#[test]
fn indirect_tables_hold_frames() {
    every_size(VIRTIO_F_INDIRECT_DESC);
}

#[test]
fn ring_packed_switches_every_size_of_frame() {
    every_size(VIRTIO_F_RING_PACKED);
    every_size(VIRTIO_F_RING_PACKED | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
}

#[test]
fn in_order_completes_in_the_order_of_submission() {
    every_size(VIRTIO_F_IN_ORDER);
    every_size(VIRTIO_F_IN_ORDER | VIRTIO_F_RING_PACKED);
}

#[test]
fn event_idx_saves_kicks_and_interrupts() {
    let mut rig = Rig::new();
    let mut a = Station::new(&mut rig, options(1), PLAIN | VIRTIO_F_EVENT_IDX);
    let mut b = Station::new(&mut rig, options(2), PLAIN | VIRTIO_F_EVENT_IDX);
    let _started = (b.interrupted(0), a.interrupted(1));
    a.send(&frame(mac(2), mac(1), 1));
    b.receive();
    assert!(b.interrupted(0), "the first frame is announced");
    // The driver has not moved `used_event` on: it polls.
    for seed in 0..10 {
        a.send(&frame(mac(2), mac(1), seed));
        b.receive();
    }
    assert!(!b.interrupted(0), "and no other until the driver asks again");
    assert!(!b.rings[0].driver.arm());
    a.send(&frame(mac(2), mac(1), 99));
    b.receive();
    assert!(b.interrupted(0));
}

#[test]
fn ring_reset_starts_a_queue_anew_while_others_run() {
    for ring in [0, VIRTIO_F_RING_PACKED] {
        let mut rig = Rig::new();
        let mut a = Station::new(&mut rig, options(1), PLAIN | VIRTIO_F_RING_RESET | ring);
        let mut b = Station::new(&mut rig, options(2), PLAIN | VIRTIO_F_RING_RESET | ring);
        for seed in 0..3 {
            a.send(&frame(mac(2), mac(1), seed));
            assert_eq!(b.receive().frame, frame(mac(2), mac(1), seed));
            assert!(a.device.stop_queue(1).is_some());
            assert!(b.device.stop_queue(0).is_some());
            a.renew(1);
            a.start(1, None);
            b.renew(0);
            b.start(0, None);
            b.post(0);
            b.send(&frame(mac(1), mac(2), seed));
            assert_eq!(a.receive().frame, frame(mac(1), mac(2), seed));
        }
    }
}
