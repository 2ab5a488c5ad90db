//! Guests behind the switch, and a TAP interface as its way out: rings on one end, the host's network stack on the other.

mod support;
mod tap_support;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use memory::{HostRange, MemoryView};
use net_backend::frame::{Gso, Head, NetHeader, Offloads, Packet, flag};
use net_backend::path::Burst;
use net_backend::port::Port;
use net_backend::switch::{Drop, PortPolicy, VlanMode};
use net_backend::uplink::tap::{self, Spec};
use net_backend::uplink::{Arrival, Direct, UplinkCounters, UplinkQueue};
use support::{Config, EVENT_IDX, GUEST_OFFLOADS, Guest, IN_ORDER, MRG_RXBUF, PACKED, Rig, VERSION_1};
use tap_support::{ETHERTYPE, Host, frame, ip, open_one, spec, tcp_frame, wait_for};

fn rig() -> (Rig, Host) {
    let mut rig = Rig::new();
    rig.uplink(Box::new(open_one(&Spec { mtu: Some(9000), ..spec("t0") })));
    (rig, Host::new("t0", ETHERTYPE))
}

fn config() -> Config {
    Config::with(VERSION_1 | MRG_RXBUF | EVENT_IDX | GUEST_OFFLOADS)
}

/// A queue that counts the frames that are read in place.
struct Spy(tap::Queue, Arc<AtomicUsize>);

impl UplinkQueue for Spy {
    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }
    fn view(&self) -> &MemoryView {
        self.0.view()
    }
    fn receive(&mut self, burst: &mut Burst) -> usize {
        self.0.receive(burst)
    }
    fn release(&mut self) {
        self.0.release();
    }
    fn send(&mut self, packet: &Packet<'_>) -> Result<(), Drop> {
        self.0.send(packet)
    }
    fn flush(&mut self) -> usize {
        self.0.flush()
    }
    fn watch_fd(&self) -> RawFd {
        self.0.watch_fd()
    }
    fn arm(&mut self) -> bool {
        self.0.arm()
    }
    fn has_work(&self) -> bool {
        self.0.has_work()
    }
    fn bulk(&self) -> bool {
        self.0.bulk()
    }
    fn direct(&self) -> Option<Direct> {
        self.0.direct()
    }
    fn receive_into(&mut self, view: &MemoryView, room: &[HostRange], head: &mut Head) -> Option<Arrival> {
        let arrival = self.0.receive_into(view, room, head);
        self.1.fetch_add(usize::from(arrival.is_some()), Ordering::Relaxed);
        arrival
    }
    fn counters(&self) -> UplinkCounters {
        self.0.counters()
    }
}

/// A switch whose uplink counts what is read in place.
fn spied_rig() -> (Rig, Arc<Port>, Host, Arc<AtomicUsize>) {
    let (mut rig, in_place) = (Rig::new(), Arc::new(AtomicUsize::new(0)));
    let uplink = rig.uplink(Box::new(Spy(open_one(&spec("t0")), in_place.clone())));
    (rig, uplink, Host::new("t0", 0x0800), in_place)
}

/// Of a frame of TCP over IPv4 that is to be cut.
fn tso() -> NetHeader {
    NetHeader {
        flags: flag::NEEDS_CSUM,
        gso: Gso::TcpV4 { ecn: false },
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::PLAIN
    }
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
    let header = tso();
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
fn what_an_uplink_costs_and_loses_can_be_read_while_it_works() {
    in_namespace!();
    let (mut rig, uplink, _host, _) = spied_rig();
    let mut guest = rig.guest(config());
    guest.send(&[&frame(60, 1)]);
    rig.settle();
    let counters = uplink.stats.snapshot();
    assert_eq!((counters.sent_frames, counters.wire_lost), (1, 0));
    assert!(counters.wire_calls > 0);
    ip("link set t0 down");
    guest.send(&[&frame(60, 2)]);
    rig.settle();
    assert_eq!(uplink.stats.snapshot().wire_lost, 1);
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
fn old_kicks_do_not_keep_a_worker_awake_that_waits_for_buffers() {
    in_namespace!();
    let (mut rig, host) = rig();
    let mut guest = without_buffers(&mut rig, Config::with(VERSION_1 | MRG_RXBUF));
    // Nobody reads kicks, so that the descriptor stays readable.
    guest.queues[0].kick.write(1).unwrap();
    for frames in [20, 300] {
        (0..frames).for_each(|number| host.send(NetHeader::PLAIN, &frame(60, (number % 100) as u8)));
        std::thread::sleep(Duration::from_millis(50));
        let before = sleeps(&rig);
        std::thread::sleep(Duration::from_millis(200));
        let rounds = sleeps(&rig) - before;
        assert!(rounds < 5, "the worker woke up {rounds} times");
        guest.post(0, usize::MAX);
        assert_eq!(guest.receive(frames).len(), frames);
    }
    assert_eq!(guest.drops(), "in [], out []");
}

#[test]
fn frames_of_workers_without_a_queue_of_the_uplink_reach_it_through_those_that_have_one() {
    in_namespace!();
    let mut rig = Rig::with_workers(3);
    rig.uplink(Box::new(open_one(&spec("t0"))));
    let host = Host::new("t0", ETHERTYPE);
    let mut guest = rig.guest(Config { pairs: 3, ..config() });
    for pair in 0..3 {
        guest.send_with(pair, &[0; 12], &[&frame(900, pair as u8)]);
        assert!(host.receive().1 == frame(900, pair as u8), "pair {pair}: {}", guest.drops());
    }
}

#[test]
fn large_frames_wait_for_as_many_buffers_as_they_fill() {
    in_namespace!();
    let (mut rig, _) = rig();
    let host = Host::new("t0", 0x0800);
    let mut guest = without_buffers(&mut rig, Config { buffer: 1526, ..config() });
    (0..100).for_each(|number| host.send(tso(), &tcp_frame(60_000, number)));
    guest.post(0, usize::MAX);
    for (number, received) in (0..100).zip(guest.receive(100)) {
        assert!(received.frame == tcp_frame(60_000, number), "frame {number}");
    }
    assert_eq!(guest.drops(), "in [], out []");
}

#[test]
fn large_frames_arrive_whole_by_every_ring_format_and_layout() {
    in_namespace!();
    let (mut rig, _, host, in_place) = spied_rig();
    for ring in [0, EVENT_IDX, PACKED, PACKED | IN_ORDER] {
        for (buffer, split_header) in [(1526, false), (4096, true), (70_000, false)] {
            let features = ring | VERSION_1 | MRG_RXBUF | GUEST_OFFLOADS;
            let mut guest = rig.guest(Config { buffer, split_header, ..Config::with(features) });
            let lens = [60_000, 50_000, 5, 20_000, 100, 64_000, 1000];
            // The average stays high, so that small ones come the same way.
            lens.iter().for_each(|len| host.send(tso(), &tcp_frame(*len, 3)));
            for (len, received) in lens.into_iter().zip(guest.receive(lens.len())) {
                assert!(received.frame == tcp_frame(len, 3), "{len} bytes, {buffer}, {ring:#x}");
                let header = NetHeader::parse(&received.header).expect("a header");
                assert!(header.needs_csum());
                // The kernel takes the claim away from frames that need no cut.
                let cut = if len > 1448 { (tso().gso, 1448) } else { (Gso::None, 0) };
                assert_eq!((header.gso, header.gso_size), cut);
                let fill = (received.header.len() + received.frame.len()).div_ceil(buffer as usize);
                assert_eq!(received.buffers, fill);
            }
            assert_eq!(guest.drops(), "in [], out []");
            rig.remove(guest);
        }
    }
    // The first of them all tells that frames are large.
    assert_eq!(in_place.load(Ordering::Relaxed), 4 * 3 * 7 - 1);
}

#[test]
fn segments_that_the_guest_does_not_take_are_cut_in_the_midst_of_others() {
    in_namespace!();
    let (mut rig, _, host, in_place) = spied_rig();
    let mut guest = rig.guest(config());
    assert!(!guest.port.offloads().uso4);
    // UDP over IPv4: what is TCP's header is its payload.
    let datagrams = 20;
    let mut udp = tcp_frame(12 + 1000 * datagrams - 20 + 8, 3);
    udp[23] = 17;
    udp[24..26].fill(0);
    let check = !tap_support::fold(&udp[14..34]);
    udp[24..26].copy_from_slice(&check.to_be_bytes());
    let len = (udp.len() - 34) as u16;
    udp[38..40].copy_from_slice(&len.to_be_bytes());
    let uso = NetHeader { gso: Gso::UdpL4, hdr_len: 42, gso_size: 1000, csum_offset: 6, ..tso() };
    for _ in 0..3 {
        host.send(tso(), &tcp_frame(60_000, 1));
    }
    guest.receive(3);
    host.send(uso, &udp);
    let received = guest.receive((udp.len() - 42).div_ceil(1000));
    let payload: Vec<u8> = received.iter().flat_map(|datagram| datagram.frame[42..].to_vec()).collect();
    assert!(payload == udp[42..]);
    let header = NetHeader::parse(&received[0].header).expect("a header");
    assert_eq!(header.gso, Gso::None);
    assert_eq!(
        in_place.load(Ordering::Relaxed),
        3,
        "two segments of TCP, and the datagrams that were copied out"
    );
    assert_eq!(guest.drops(), "in [], out []");
}

#[test]
fn no_payload_reaches_a_guest_that_a_vlan_keeps_it_from() {
    in_namespace!();
    let (mut rig, uplink, host, in_place) = spied_rig();
    let vlan = VlanMode::Access(7);
    let policy = PortPolicy { vlan, ..PortPolicy::default() };
    let guest = rig.guest(Config { policy, ..config() });
    for _ in 0..20 {
        host.send(tso(), &tcp_frame(50_000, 3));
    }
    wait_for("they are dropped", || uplink.stats.snapshot().in_drops.iter().sum::<u64>() == 20);
    assert_eq!(in_place.load(Ordering::Relaxed), 0);
    let ring = &guest.queues[0];
    let mut buffers = vec![0; 256 * guest.config.buffer as usize];
    guest.memory.slice(ring.buffers, buffers.len()).expect("inside").read(0, &mut buffers);
    assert!(buffers.iter().all(|&byte| byte == 0), "bytes of another VLAN");
}

#[test]
fn a_guest_that_never_has_enough_buffers_loses_what_does_not_fit_and_no_more() {
    in_namespace!();
    let (mut rig, host) = rig();
    let tcp = Host::new("t0", 0x0800);
    let mut guest = without_buffers(&mut rig, Config { size: 8, buffer: 1526, ..config() });
    guest.post(0, 8);
    let large = tcp_frame(60_000, 1);
    (0..20).for_each(|_| tcp.send(tso(), &large));
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
