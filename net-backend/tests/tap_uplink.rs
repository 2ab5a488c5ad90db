//! Guests behind the switch, and a TAP interface as its way out: rings on one end, the host's network stack on the other.

mod support;
mod tap_support;

use std::time::Duration;

use net_backend::frame::{Gso, NetHeader, Offloads, flag};
use net_backend::switch::Drop;
use net_backend::uplink::tap::Spec;
use support::{Config, EVENT_IDX, GUEST_OFFLOADS, Guest, IN_ORDER, MRG_RXBUF, PACKED, Rig, VERSION_1};
use tap_support::{ETHERTYPE, Host, frame, open_one, spec, tcp_frame, wait_for};

fn rig() -> (Rig, Host) {
    let mut rig = Rig::new();
    rig.uplink(Box::new(open_one(&Spec { mtu: Some(9000), ..spec("t0") })));
    (rig, Host::new("t0", ETHERTYPE))
}

fn config() -> Config {
    Config::with(VERSION_1 | MRG_RXBUF | EVENT_IDX | GUEST_OFFLOADS)
}

/// A guest whose receive buffers are not posted yet.
fn without_buffers(rig: &mut Rig, config: Config) -> Guest {
    let mut guest = rig.unstarted(config);
    (0..2).for_each(|index| guest.start(index));
    guest
}

fn sleeps(rig: &Rig) -> u64 {
    rig.pool().handles()[0].stats().parks.get()
}

#[test]
fn a_guest_and_the_host_exchange_frames_by_every_ring_format() {
    in_namespace!();
    let (mut rig, host) = rig();
    for ring in [0, PACKED, IN_ORDER, PACKED | IN_ORDER, EVENT_IDX] {
        let mut guest = rig.guest(Config::with(ring | VERSION_1 | MRG_RXBUF));
        for len in [60, 1514, 9014] {
            guest.send(&[&frame(len, 1)]);
            assert!(host.receive().1 == frame(len, 1));
            host.send(NetHeader::PLAIN, &frame(len, 2));
            assert!(guest.receive(1)[0].frame == frame(len, 2));
        }
        rig.remove(guest);
    }
}

#[test]
fn segments_left_to_cut_pass_both_ways_between_guest_and_host() {
    in_namespace!();
    let (mut rig, _) = rig();
    let host = Host::new("t0", 0x0800);
    let mut guest = rig.guest(config());
    let sent = tcp_frame(50_000, 1);
    let header = NetHeader {
        flags: flag::NEEDS_CSUM,
        gso: Gso::TcpV4 { ecn: false },
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::PLAIN
    };
    guest.send_with(0, &header.to_bytes()[..12], &[&sent]);
    let (arrived, bytes) = host.receive();
    assert_eq!((arrived.gso, arrived.gso_size), (header.gso, 1448));
    assert!(bytes == sent);
    host.send(header, &sent);
    let received = guest.receive(1).remove(0);
    assert!(received.frame == sent);
    let arrived = NetHeader::parse(&received.header).expect("a header");
    assert_eq!((arrived.gso, arrived.gso_size, arrived.needs_csum()), (header.gso, 1448, true));
    assert!(received.buffers > 20);
    assert_eq!(guest.port.offloads(), Offloads { uso4: false, uso6: false, ..Offloads::ALL });
}

#[test]
fn frames_for_the_only_guest_wait_until_it_has_buffers() {
    in_namespace!();
    for ring in [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX | IN_ORDER] {
        let (mut rig, host) = rig();
        let config = Config { size: 16, ..Config::with(ring | VERSION_1 | MRG_RXBUF) };
        let mut guest = without_buffers(&mut rig, config);
        (0..150).for_each(|number| host.send(NetHeader::PLAIN, &frame(60, number)));
        rig.settle();
        // It sleeps meanwhile.
        let before = sleeps(&rig);
        std::thread::sleep(Duration::from_millis(200));
        assert!(sleeps(&rig) - before < 5, "the worker spins");
        assert_eq!(guest.stats().out_drops[Drop::NoReceiveBuffer as usize], 0);
        guest.post(0, usize::MAX);
        for (number, received) in (0..150).zip(guest.receive(150)) {
            assert!(received.frame == frame(60, number), "frame {number} with {ring:#x}");
        }
        assert_eq!(guest.drops(), "in [], out []");
        rig.remove(guest);
    }
}

#[test]
fn large_frames_wait_for_as_many_buffers_as_they_fill() {
    in_namespace!();
    let (mut rig, _) = rig();
    let host = Host::new("t0", 0x0800);
    let mut guest = without_buffers(&mut rig, Config { buffer: 1526, ..config() });
    let tso = NetHeader {
        flags: flag::NEEDS_CSUM,
        gso: Gso::TcpV4 { ecn: false },
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::PLAIN
    };
    (0..100).for_each(|number| host.send(tso, &tcp_frame(60_000, number)));
    guest.post(0, usize::MAX);
    for (number, received) in (0..100).zip(guest.receive(100)) {
        assert!(received.frame == tcp_frame(60_000, number), "frame {number}");
    }
    assert_eq!(guest.drops(), "in [], out []");
}

#[test]
fn a_guest_that_never_has_enough_buffers_loses_what_does_not_fit_and_no_more() {
    in_namespace!();
    let (mut rig, host) = rig();
    let tcp = Host::new("t0", 0x0800);
    let mut guest = without_buffers(&mut rig, Config { size: 8, buffer: 1526, ..config() });
    guest.post(0, 8);
    let large = tcp_frame(60_000, 1);
    let tso = NetHeader {
        flags: 1,
        gso: Gso::TcpV4 { ecn: false },
        hdr_len: 54,
        gso_size: 1448,
        ..NetHeader::PLAIN
    };
    let tso = NetHeader { csum_start: 34, csum_offset: 16, ..tso };
    (0..20).for_each(|_| tcp.send(tso, &large));
    wait_for("they are dropped", || guest.dropped_out(Drop::NoReceiveBuffer) == 20);
    host.send(NetHeader::PLAIN, &frame(60, 7));
    assert!(guest.receive(1)[0].frame == frame(60, 7));
}

#[test]
fn a_slow_guest_among_others_holds_nobody_up() {
    in_namespace!();
    let (mut rig, host) = rig();
    let mut fast = rig.guest(config());
    let slow = without_buffers(&mut rig, config());
    // To a group: for both.
    let mut sent = frame(60, 1);
    sent[..6].fill(0xff);
    for _ in 0..50 {
        host.send(NetHeader::PLAIN, &sent);
        assert!(fast.receive(1)[0].frame == sent);
    }
    assert_eq!(slow.dropped_out(Drop::NoReceiveBuffer), 50);
}

#[test]
fn a_wait_ends_when_the_guest_goes_or_another_one_comes() {
    in_namespace!();
    let (mut rig, host) = rig();
    let slow = without_buffers(&mut rig, config());
    (0..10).for_each(|number| host.send(NetHeader::PLAIN, &frame(60, number)));
    rig.settle();
    assert_eq!(slow.dropped_out(Drop::NoReceiveBuffer), 0);
    let mut other = rig.guest(config());
    wait_for("the frames for the slow one are dropped", || slow.dropped_out(Drop::NoReceiveBuffer) > 0);
    rig.remove(slow);
    host.send(NetHeader::PLAIN, &frame(60, 77));
    wait_for("the other one gets its frames", || other.frames().contains(&frame(60, 77)));
    rig.remove(other);
    // A guest that goes while it is waited for.
    let slow = without_buffers(&mut rig, config());
    host.send(NetHeader::PLAIN, &frame(60, 78));
    rig.settle();
    rig.remove(slow);
    let mut last = rig.guest(config());
    host.send(NetHeader::PLAIN, &frame(60, 79));
    wait_for("the next one gets its frames", || last.frames().contains(&frame(60, 79)));
}

#[test]
fn a_deleted_interface_is_one_dropped_frame_after_the_other() {
    in_namespace!();
    let (mut rig, _) = rig();
    let mut guest = rig.guest(config());
    tap_support::ip("link delete t0");
    let before = sleeps(&rig);
    for _ in 0..5 {
        guest.send(&[&frame(60, 1)]);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(sleeps(&rig) - before < 30, "the worker spins");
}
