//! Chosen frames are the uplink's, the others stay with the host.

use std::net::UdpSocket;
use std::time::Duration;

use net_backend::frame::MacAddr;
use net_backend::uplink::xdp::{Filter, Groups, ModeChoice, Opened, Queue, Spec};

use crate::bed;
use crate::support::*;

const GUEST: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x99]);
const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x98]);

/// A frame to `to`, in VLAN `vlan` unless it is 0.
fn frame_to(to: MacAddr, vlan: u16, seed: u32) -> Vec<u8> {
    let mut bytes = frame(100, seed);
    bytes[..6].copy_from_slice(&to.0);
    if vlan != 0 {
        let [high, low] = (0xe000 | vlan).to_be_bytes(); // with a priority, which does not matter
        bytes.splice(12..12, [0x81, 0, high, low]);
    }
    bytes
}

/// Which of the frames arrive: all are sent, and then one that always arrives.
fn arriving(wire: &Wire, opened: &mut Opened, frames: &[(MacAddr, u16)]) -> Vec<(MacAddr, u16)> {
    let queue = &mut opened.queues[0];
    for (number, &(to, vlan)) in (0..).zip(frames) {
        wire.send(&frame_to(to, vlan, number));
    }
    std::thread::sleep(Duration::from_millis(20));
    let received = receive(queue, frames.len());
    let sent = |number: &u32| frames[*number as usize];
    let number_of = |bytes: &[u8]| {
        (0..frames.len() as u32).find(|&number| {
            let (to, vlan) = sent(&number);
            bytes == frame_to(to, vlan, number)
        })
    };
    received.iter().map(|(_, bytes)| sent(&number_of(bytes).expect("one of the frames"))).collect()
}

fn only_macs(macs: &[MacAddr], groups: Groups) -> Filter {
    Filter { macs: Some(macs.iter().copied().collect()), vlans: None, groups }
}

const MULTICAST: MacAddr = MacAddr([1, 0, 0x5e, 0, 0, 1]);
/// Differs from the broadcast address in one bit.
const ALMOST_BROADCAST: MacAddr = MacAddr([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
const ALL: [(MacAddr, u16); 6] =
    [(GUEST, 0), (OTHER, 0), (GUEST, 7), (MacAddr::BROADCAST, 0), (MULTICAST, 0), (ALMOST_BROADCAST, 0)];

#[test]
fn filters_redirect_what_they_name_and_change_while_frames_pass() {
    let far = bed!();
    for mode in MODES {
        let mut opened = open(&spec(mode));
        let control = opened.control.clone();
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        let mut check = |filter: Filter, expected: &[(MacAddr, u16)]| {
            control.set_filter(&filter).expect("set");
            assert_eq!(control.filter().expect("read"), filter);
            assert_eq!(arriving(&wire, &mut opened, &ALL), expected, "{mode:?}: {filter:?}");
        };
        check(Filter::default(), &ALL);
        check(only_macs(&[GUEST], Groups::Host), &[ALL[0], ALL[2]]);
        check(only_macs(&[GUEST], Groups::BroadcastOnly), &[ALL[0], ALL[2], ALL[3]]);
        check(only_macs(&[OTHER], Groups::Uplink), &[ALL[1], ALL[3], ALL[4], ALL[5]]);
        check(only_macs(&[MULTICAST], Groups::Host), &[ALL[4]]);
        check(only_macs(&[], Groups::Host), &[]);
        let vlans = |vlans: &[u16]| Some(vlans.iter().copied().collect());
        check(Filter { vlans: vlans(&[7]), ..Filter::default() }, &[ALL[2]]);
        check(Filter { vlans: vlans(&[0]), ..Filter::default() }, &[ALL[0], ALL[1], ALL[3], ALL[4], ALL[5]]);
        check(Filter { vlans: vlans(&[7, 8]), ..only_macs(&[OTHER], Groups::Uplink) }, &[]);
        check(Filter { vlans: vlans(&[0]), ..only_macs(&[GUEST], Groups::Host) }, &[ALL[0]]);
        check(Filter::default(), &ALL);
    }
}

#[test]
fn the_filter_of_the_options_holds_from_the_first_frame() {
    let far = bed!();
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    let macs = Some(vec![GUEST]);
    let mut opened = open(&Spec { macs, groups: Groups::Host, ..spec(ModeChoice::Copy) });
    assert_eq!(arriving(&wire, &mut opened, &ALL), [ALL[0], ALL[2]]);
}

#[test]
fn service_tags_count_as_tags() {
    let far = bed!();
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    let mut opened = open(&Spec { vlans: Some(vec![7]), ..spec(ModeChoice::Copy) });
    let mut bytes = frame_to(GUEST, 7, 1);
    bytes[12..14].copy_from_slice(&[0x88, 0xa8]);
    wire.send(&bytes);
    assert!(receive_one(&mut opened.queues[0]).1 == bytes);
}

/// One datagram there and one back, between the stacks of the two namespaces.
fn stacks_talk(far: &Far) -> bool {
    let here = UdpSocket::bind("10.0.0.1:7000").expect("a socket");
    here.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let there = far.start(|| {
        let there = UdpSocket::bind("10.0.0.2:7000").expect("a socket");
        there.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        there.send_to(b"ping", "10.0.0.1:7000").expect("sent");
        there.recv_from(&mut [0; 16]).is_ok()
    });
    let mut bytes = [0; 16];
    let arrived = here.recv_from(&mut bytes).is_ok_and(|(len, from)| {
        here.send_to(b"pong", from).expect("sent");
        bytes[..len] == *b"ping"
    });
    there.recv().expect("an answer") && arrived
}

fn drain(queue: &mut Queue) {
    while !receive(queue, 32).is_empty() {}
}

#[test]
fn the_host_keeps_its_own_traffic() {
    let far = bed!();
    ip("addr add 10.0.0.1/24 dev v0");
    far.ip("addr add 10.0.0.2/24 dev v1");
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    for mode in MODES {
        // The host answers ARP itself, so it keeps the broadcasts.
        let spec = Spec { macs: Some(vec![GUEST]), groups: Groups::Host, ..spec(mode) };
        let mut queue = open_one(&spec);
        assert!(stacks_talk(&far), "{mode:?}");
        assert!(receive(&mut queue, 1).is_empty(), "{mode:?}: nothing of it is the uplink's");
        wire.send(&frame_to(GUEST, 0, 5));
        assert!(receive_one(&mut queue).1 == frame_to(GUEST, 0, 5));
        drain(&mut queue);
    }
}
