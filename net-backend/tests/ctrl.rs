//! Commands of the control queue at work: what a driver sets is what it gets.

mod station;
mod support;

use net_backend::features::*;
use net_backend::frame::{MacAddr, hash};
use net_backend::options::PortOptions;
use net_backend::port::Coalescing;
use net_backend::switch::{PortPolicy, VlanMode};
use station::packet::{Packet, TCP};
use station::*;
use support::Rig;
use vhost_user::Device;

/// Everything but the hash in the header, which has a test of its own.
const CONTROL: u64 = VIRTIO_NET_F_CTRL_VQ
    | VIRTIO_NET_F_CTRL_RX
    | VIRTIO_NET_F_CTRL_VLAN
    | VIRTIO_NET_F_CTRL_RX_EXTRA
    | VIRTIO_NET_F_CTRL_MAC_ADDR
    | VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | VIRTIO_NET_F_NOTF_COAL
    | VIRTIO_NET_F_GUEST_ANNOUNCE;
const OK: u8 = 0;
const ERR: u8 = 1;

/// A plain sender and a receiver with a control queue.
fn two() -> (Rig, Station, Station) {
    let mut rig = Rig::new();
    let a = Station::new(&mut rig, options(1), PLAIN | SENDS_UNFINISHED);
    let b = Station::new(&mut rig, options(2), PLAIN | CONTROL | TAKES_UNFINISHED);
    (rig, a, b)
}

/// Whether a frame from a to this address reaches b.
fn reaches(a: &mut Station, b: &mut Station, dst: MacAddr) -> bool {
    a.send(&frame(dst, mac(1), 1));
    !b.everything().is_empty()
}

const GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 0, 0, 0x11]);

#[test]
fn ctrl_vq_answers_every_command_and_refuses_unknown_ones() {
    let (_rig, _a, mut b) = two();
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert_eq!(b.command(0, 77, &[0]), ERR);
    assert_eq!(b.command(99, 0, &[]), ERR);
    assert_eq!(b.command(0, 0, &[]), ERR);
    assert_eq!(b.command(1, 0, &[0xff; 40]), ERR);
    assert_eq!(b.command(4, 0, &[1, 0]), ERR, "MQ was not negotiated");
    assert_eq!(b.guest.commands(), (1, 5));
    assert_eq!(b.command(0, 0, &[1]), OK, "it goes on");
}

#[test]
fn ctrl_rx_sets_what_the_guest_receives() {
    let (_rig, mut a, mut b) = two();
    let stranger = mac(9);
    assert!(reaches(&mut a, &mut b, stranger), "a new driver gets everything");
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert!(!reaches(&mut a, &mut b, stranger));
    assert!(reaches(&mut a, &mut b, mac(2)), "its own address");
    assert!(reaches(&mut a, &mut b, MacAddr::BROADCAST));
    assert!(!reaches(&mut a, &mut b, GROUP));
    assert_eq!(b.command(0, 1, &[1]), OK);
    assert!(reaches(&mut a, &mut b, GROUP), "ALLMULTI");
    assert_eq!(b.command(0, 1, &[0]), OK);
    let one = 1u32.to_le_bytes();
    assert_eq!(b.command(1, 0, &[&one[..], &stranger.0, &one, &GROUP.0].concat()), OK);
    assert!(reaches(&mut a, &mut b, stranger) && reaches(&mut a, &mut b, GROUP), "MAC_TABLE_SET");
    let none = 0u32.to_le_bytes();
    assert_eq!(b.command(1, 0, &[none, none].concat()), OK);
    assert!(!reaches(&mut a, &mut b, stranger) && !reaches(&mut a, &mut b, GROUP));
    let many = [&100u32.to_le_bytes()[..], &[0x52; 600], &none].concat();
    assert_eq!(b.command(1, 0, &many), OK);
    assert!(reaches(&mut a, &mut b, stranger), "too many to filter: all of the kind");
}

#[test]
fn ctrl_rx_extra_keeps_kinds_of_frames_out() {
    let (_rig, mut a, mut b) = two();
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert_eq!(b.command(0, 5, &[1]), OK);
    assert!(!reaches(&mut a, &mut b, MacAddr::BROADCAST), "NOBCAST");
    assert_eq!((b.command(0, 1, &[1]), b.command(0, 3, &[1])), (OK, OK));
    assert!(!reaches(&mut a, &mut b, GROUP), "NOMULTI");
    assert_eq!(b.command(0, 4, &[1]), OK);
    assert!(!reaches(&mut a, &mut b, mac(2)), "NOUNI");
    assert_eq!((b.command(0, 4, &[0]), b.command(0, 2, &[1])), (OK, OK));
    assert!(reaches(&mut a, &mut b, mac(9)), "ALLUNI");
}

#[test]
fn ctrl_vlan_lets_chosen_vlans_in() {
    let (_rig, mut a, mut b) = two();
    let tagged = |vlan: u8| {
        let plain = frame(MacAddr::BROADCAST, mac(1), vlan);
        [&plain[..12], &[0x81, 0, 0, vlan], &plain[12..]].concat()
    };
    let mut passes = |b: &mut Station, vlan: u8| {
        a.send(&tagged(vlan));
        !b.everything().is_empty()
    };
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert!(!passes(&mut b, 10));
    assert_eq!(b.command(2, 0, &[10, 0]), OK);
    assert!(passes(&mut b, 10) && !passes(&mut b, 11));
    assert_eq!(b.command(2, 1, &[10, 0]), OK);
    assert!(!passes(&mut b, 10));
}

#[test]
fn ctrl_mac_addr_changes_the_address() {
    let (mut rig, mut a, mut b) = two();
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert_eq!(b.command(1, 1, &mac(7).0), OK);
    assert_eq!(b.config(0), mac(7).0);
    assert!(reaches(&mut a, &mut b, mac(7)) && !reaches(&mut a, &mut b, mac(2)));
    assert_eq!(b.command(1, 1, &GROUP.0), ERR);
    let policy = PortPolicy { anti_spoof: true, ..options(3).policy };
    let mut guarded = Station::new(&mut rig, PortOptions { policy, ..options(3) }, PLAIN | CONTROL);
    assert_eq!(guarded.command(1, 1, &mac(8).0), ERR, "a guarded guest does not choose its address");
    assert_eq!(guarded.command(1, 1, &mac(3).0), OK);
}

#[test]
fn guest_offloads_change_what_the_receiver_gets() {
    let (_rig, mut a, mut b) = two();
    let packet = Packet::new(false, TCP, 3000);
    let mut frames = |b: &mut Station| {
        a.send_on(0, &packet.header(1, 1000), &packet.partial());
        b.everything().len()
    };
    assert_eq!(frames(&mut b), 1);
    assert_eq!(b.command(5, 0, &0u64.to_le_bytes()), OK);
    assert_eq!(frames(&mut b), 3);
    let wanted = VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4;
    assert_eq!(b.command(5, 0, &wanted.to_le_bytes()), OK);
    assert_eq!(frames(&mut b), 1);
    assert_eq!(b.command(5, 0, &VIRTIO_NET_F_CSUM.to_le_bytes()), ERR, "not an offload of the guest");
}

#[test]
fn guest_announce_is_asked_for_and_acknowledged() {
    let (_rig, a, mut b) = two();
    let status = |station: &Station| u16::from_le_bytes(station.config(6));
    assert_eq!(status(&b), 1);
    assert!(b.guest.announce());
    assert_eq!(status(&b), 3);
    assert_eq!(b.command(3, 0, &[]), OK);
    assert_eq!(status(&b), 1);
    assert!(!a.guest.announce(), "a driver without the feature cannot");
}

fn coalescing(frames: u32, usecs: u32) -> [u8; 8] {
    (u64::from(usecs) << 32 | u64::from(frames)).to_le_bytes()
}

#[test]
fn notf_coal_lets_interrupts_wait_for_frames_or_time() {
    const LONG: u32 = 1_000_000;
    let (rig, mut a, mut b) = two();
    let _started = (b.interrupted(0), b.interrupted(1));
    let mut next = |b: &mut Station| {
        a.send(&frame(mac(2), mac(1), 1));
        b.receive();
        b.interrupted(0)
    };
    assert!(next(&mut b), "an interrupt a frame, unless the driver wants it otherwise");
    assert_eq!(b.command(6, 1, &coalescing(3, LONG)), OK);
    assert_eq!([0; 6].map(|_| next(&mut b)), [false, false, true, false, false, true], "every third frame");
    assert_eq!(b.command(6, 1, &coalescing(0, 50_000)), OK);
    let sent = std::time::Instant::now();
    while !next(&mut b) {}
    assert!(sent.elapsed().as_millis() >= 49, "any number of frames, for as long as was set");

    assert_eq!(b.command(6, 0, &coalescing(2, LONG)), OK);
    let _before = b.interrupted(1);
    let sent = |b: &mut Station| {
        b.send(&frame(mac(1), mac(2), 1));
        rig.settle();
        b.interrupted(1)
    };
    assert_eq!([0; 4].map(|_| sent(&mut b)), [false, true, false, true], "and of what it sends");
    b.device.set_status(0);
    assert!(next(&mut b) && sent(&mut b), "a reset forgets it");
}

#[test]
fn an_interrupt_that_waits_is_sent_before_its_ring_stops() {
    let (_rig, mut a, mut b) = two();
    assert_eq!(b.command(6, 1, &coalescing(0, 1_000_000)), OK);
    let _started = b.interrupted(0);
    a.send(&frame(mac(2), mac(1), 1));
    b.receive();
    assert!(!b.interrupted(0));
    b.device.stop_queue(0).unwrap();
    assert!(b.interrupted(0));
}

/// A sender, and a receiver with four pairs.
fn four(workers: usize, extra: u64) -> (Rig, Station, Station) {
    let mut rig = Rig::with_workers(workers);
    let a = Station::new(&mut rig, options(1), PLAIN);
    let pairs = PortOptions { queues: 4, ..options(2) };
    let b = Station::new(&mut rig, pairs, PLAIN | CONTROL | VIRTIO_NET_F_MQ | extra);
    (rig, a, b)
}

/// Pairs on which 64 flows arrive.
fn pairs_used(a: &mut Station, b: &mut Station) -> std::collections::BTreeSet<u16> {
    let mut used = std::collections::BTreeSet::new();
    for flow in 0..64 {
        a.send(&Packet { flow: 1000 + 7 * flow, ..Packet::new(false, TCP, 10) }.finished());
        used.insert(b.receive().pair);
    }
    used
}

#[test]
fn mq_starts_with_one_pair_and_uses_those_asked_for() {
    let (_rig, mut a, mut b) = four(1, 0);
    assert_eq!(u16::from_le_bytes(b.config(8)), 4);
    assert_eq!(pairs_used(&mut a, &mut b), [0].into());
    assert_eq!(b.command(4, 0, &[4, 0]), OK);
    assert_eq!(pairs_used(&mut a, &mut b), [0, 1, 2, 3].into());
    assert_eq!(b.command(4, 0, &[2, 0]), OK);
    assert_eq!(pairs_used(&mut a, &mut b), [0, 1].into());
    assert_eq!((b.command(4, 0, &[5, 0]), b.command(4, 0, &[0, 0])), (ERR, ERR));
    // A frontend that keeps the control queue enables the pairs it wants itself.
    let mut rig = Rig::new();
    let mut a = Station::new(&mut rig, options(1), PLAIN);
    let mut b = Station::new(&mut rig, PortOptions { queues: 4, ..options(2) }, PLAIN | VIRTIO_NET_F_MQ);
    assert_eq!(pairs_used(&mut a, &mut b), [0, 1, 2, 3].into());
}

fn rss(types: u32, table: &[u16], unclassified: u16, pairs: u16) -> Vec<u8> {
    let mut data = types.to_le_bytes().to_vec();
    data.extend((table.len() as u16 - 1).to_le_bytes());
    data.extend(unclassified.to_le_bytes());
    table.iter().for_each(|entry| data.extend(entry.to_le_bytes()));
    data.extend(pairs.to_le_bytes());
    data.push(40);
    data.extend([0x6d; 40]);
    data
}

#[test]
fn rss_spreads_flows_by_the_drivers_table() {
    let (rig, mut a, mut b) = four(2, VIRTIO_NET_F_RSS);
    assert_eq!(b.command(4, 1, &rss(hash::types::TCPV4, &[3], 1, 4)), OK);
    rig.settle();
    assert_eq!(pairs_used(&mut a, &mut b), [3].into());
    a.send(&frame(mac(2), mac(1), 1));
    assert_eq!(b.receive().pair, 1, "what has no hash");
    assert_eq!(b.command(4, 1, &rss(hash::types::TCPV4, &[0, 2, 0, 2], 1, 4)), OK);
    rig.settle();
    assert_eq!(pairs_used(&mut a, &mut b), [0, 2].into());
    assert_eq!(b.command(4, 1, &rss(hash::types::TCPV4, &[4], 0, 4)), ERR);
    assert_eq!(b.command(4, 0, &[1, 0]), OK, "and back to the switch's own way");
    rig.settle();
    assert_eq!(pairs_used(&mut a, &mut b), [0].into());
}

#[test]
fn hash_report_puts_the_hash_into_the_header() {
    let (rig, mut a, mut b) = four(2, VIRTIO_NET_F_HASH_REPORT);
    let config = [&hash::types::TCPV4.to_le_bytes()[..], &[0; 8], &[40], &[0x6d; 40]].concat();
    assert_eq!(b.command(4, 2, &config), OK);
    rig.settle();
    let packet = Packet::new(false, TCP, 10);
    a.send(&packet.finished());
    let got = b.receive();
    assert_eq!(got.header.len(), 20);
    assert_eq!(u16::from_le_bytes([got.header[16], got.header[17]]), hash::report::TCPV4);
    let input = [10, 0, 0, 1, 10, 0, 0, 2, (1000u16 >> 8) as u8, 1000u16 as u8, 7, 0xd0];
    let expected = hash::toeplitz(&[0x6d; 40], &input);
    assert_eq!(u32::from_le_bytes(got.header[12..16].try_into().unwrap()), expected);
    a.send(&frame(mac(2), mac(1), 1));
    assert_eq!(b.receive().header[16..18], [0, 0], "no hash of what is no TCP");
}

#[test]
fn the_control_queue_of_a_driver_without_mq_comes_after_the_first_pair() {
    let mut rig = Rig::new();
    let pairs = PortOptions { queues: 4, ..options(2) };
    let mut b = Station::new(&mut rig, pairs, PLAIN | CONTROL);
    assert_eq!(b.rings.len(), 3);
    assert_eq!(b.command(0, 0, &[0]), OK);
}

#[test]
fn what_a_guest_has_set_moves_with_it() {
    let (mut rig, mut a, mut b) = two();
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert_eq!(b.command(1, 1, &mac(7).0), OK);
    assert_eq!(b.command(6, 1, &coalescing(8, 20)), OK);
    let state = b.device.save_state().unwrap();
    drop(b);
    let mut c = Station::new(&mut rig, options(2), PLAIN | CONTROL | TAKES_UNFINISHED);
    assert!(reaches(&mut a, &mut c, mac(9)));
    c.device.load_state(&state).unwrap();
    assert!(reaches(&mut a, &mut c, mac(7)) && !reaches(&mut a, &mut c, mac(9)));
    assert_eq!(c.port().coalescing(0), Some(Coalescing { frames: 8, usecs: 20 }));
    assert_eq!(u16::from_le_bytes(c.config(6)), 3, "and it is asked to say where it is now");
    for wrong in [&[][..], &[9], &[1], &[1, b'{'], &state[..state.len() - 1]] {
        assert!(c.device.load_state(wrong).is_err());
    }
}

#[test]
fn a_reset_forgets_what_was_set() {
    let (_rig, mut a, mut b) = two();
    assert_eq!(b.command(0, 0, &[0]), OK);
    assert!(!reaches(&mut a, &mut b, mac(9)));
    b.device.set_status(0);
    assert!(reaches(&mut a, &mut b, mac(9)));
    // The same features once more are no reset: the frontend goes on after a pause.
    assert_eq!(b.command(0, 0, &[0]), OK);
    b.device.negotiated(b.features);
    assert!(!reaches(&mut a, &mut b, mac(9)));
}

#[test]
fn hostile_commands_break_nothing() {
    let (_rig, mut a, mut b) = two();
    for class in 0..8 {
        for command in 0..4 {
            for len in [0, 1, 2, 5, 8, 40, 700] {
                let answer = b.command(class, command, &vec![0xff; len]);
                assert!(answer == OK || answer == ERR, "{class}:{command} of {len} bytes");
            }
        }
    }
    assert_eq!(b.command(0, 0, &vec![0; 40_000]), ERR, "longer than any command");
    assert_eq!((b.command(0, 3, &[0]), b.command(0, 4, &[0]), b.command(0, 0, &[1])), (OK, OK, OK));
    assert!(reaches(&mut a, &mut b, mac(2)));
}

#[test]
fn a_port_in_a_vlan_hears_its_own_only() {
    let mut rig = Rig::new();
    let within = |last: u8, vlan: u16| {
        let policy = PortPolicy { vlan: VlanMode::Access(vlan), ..options(last).policy };
        PortOptions { policy, ..options(last) }
    };
    let mut a = Station::new(&mut rig, within(1, 10), PLAIN);
    let mut b = Station::new(&mut rig, within(2, 10), PLAIN);
    let mut c = Station::new(&mut rig, within(3, 20), PLAIN);
    a.send(&frame(MacAddr::BROADCAST, mac(1), 1));
    assert_eq!(b.everything().len(), 1);
    assert!(c.everything().is_empty());
}

#[test]
fn an_announcement_for_a_guest_that_cannot_is_sent_by_the_switch() {
    let mut rig = Rig::new();
    let mut a = Station::new(&mut rig, options(1), PLAIN);
    let mut b = Station::new(&mut rig, options(2), PLAIN);
    a.device.rarp(mac(1).0).unwrap();
    let got = b.receive().frame;
    assert_eq!((got.len(), &got[6..12], &got[12..14]), (60, &mac(1).0[..], &[0x80, 0x35][..]));
    let mut c = Station::new(&mut rig, options(3), PLAIN);
    assert!(!reaches(&mut b, &mut c, mac(1)));
}
