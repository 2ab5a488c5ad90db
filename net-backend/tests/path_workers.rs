//! Several workers, several pairs, rate limits, and what control does in the middle of traffic.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use net_backend::frame::hash::{Rss, types};
use net_backend::service::{Message, Steering};
use net_backend::switch::{Drop, Limits, PortPolicy, Rate, RatePair};
use support::*;

/// Makes a port known by its address.
fn announce(guest: &mut Guest, last: u8) {
    guest.send(&[&frame(BROADCAST, mac(last), 60, 0)]);
}

/// Takes everything that has arrived on any pair.
fn everything(guest: &mut Guest) -> Vec<Vec<u8>> {
    (0..guest.config.pairs).flat_map(|pair| guest.received_on(pair)).map(|got| got.frame).collect()
}

fn collect(guest: &mut Guest, count: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut frames = Vec::new();
    while frames.len() < count {
        frames.extend(everything(guest));
        assert!(Instant::now() < deadline, "{} of {count} frames came: {}", frames.len(), guest.drops());
        std::thread::yield_now();
    }
    assert_eq!(frames.len(), count);
    frames
}

#[test]
fn a_frame_for_a_ring_of_another_worker_crosses_whole_and_in_order() {
    let mut rig = Rig::with_workers(2);
    let mut a = rig.guest(Config { pairs: 2, ..Config::default() });
    let mut b = rig.guest(Config::default());
    announce(&mut b, 2);
    collect(&mut a, 1);
    for round in 0..50 {
        // Pair 1 is on worker 1, and the only pair of the other guest on worker 0.
        let frames: Vec<_> = (0..8)
            .map(|n| frame(mac(2), mac(1), [60, 200, 1514, 9000][n % 4], round * 8 + n as u64))
            .collect();
        a.send_with(1, &[0; 12], &frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(collect(&mut b, 8), frames);
    }
    let lanes: Vec<_> = b.port.stats.lanes().map(|lane| lane.crossed.get()).collect();
    assert_eq!(lanes, [0, 400], "the sending worker counts them");
    assert_eq!(b.stats().sent_frames, 400);
}

#[test]
fn the_same_pair_of_two_guests_stays_on_its_worker() {
    let mut rig = Rig::with_workers(2);
    let mut a = rig.guest(Config { pairs: 2, ..Config::default() });
    let mut b = rig.guest(Config { pairs: 2, ..Config::default() });
    announce(&mut b, 2);
    collect(&mut a, 1);
    for pair in 0..2 {
        a.send_with(pair, &[0; 12], &[&frame(mac(2), mac(1), 60, 1)]);
    }
    collect(&mut b, 2);
    assert_eq!(b.stats().crossed, 0);
    let queue = |index| b.port.stats.queue(index).unwrap().get().0;
    assert_eq!((queue(0), queue(2)), (1, 1));
}

#[test]
fn a_flood_reaches_guests_on_every_worker() {
    let mut rig = Rig::with_workers(3);
    let mut guests: Vec<_> =
        (0..3).map(|_| rig.guest(Config { pairs: 3, size: 64, ..Config::default() })).collect();
    for pair in 1..3 {
        // Only one pair receives: another one for each guest.
        for (n, guest) in guests.iter_mut().enumerate() {
            for other in 0..3 {
                guest.attached.enable_queue(2 * other, usize::from(other) == n).unwrap();
            }
        }
        let sent = frame(BROADCAST, mac(1), 700, u64::from(pair));
        guests[0].send_with(pair, &[0; 12], &[&sent]);
        for guest in &mut guests[1..] {
            assert_eq!(collect(guest, 1)[0], sent);
        }
    }
}

#[test]
fn flows_keep_to_a_pair_and_use_all_of_them() {
    let mut rig = Rig::new();
    let mut a = rig.guest(Config::default());
    let mut b = rig.guest(Config { pairs: 4, ..Config::default() });
    announce(&mut b, 2);
    collect(&mut a, 1);
    let flows: Vec<_> = (0..32).map(|flow| udp(mac(2), mac(1), 1000 + flow)).collect();
    let mut home = vec![None; flows.len()];
    for _ in 0..4 {
        for (flow, bytes) in flows.iter().enumerate() {
            a.send(&[bytes]);
            let pair = (0..4).find(|pair| !b.received_on(*pair).is_empty()).unwrap();
            assert_eq!(*home[flow].get_or_insert(pair), pair, "flow {flow} stays");
        }
    }
    let used: std::collections::HashSet<_> = home.into_iter().collect();
    assert_eq!(used.len(), 4);
}

#[test]
fn pairs_that_the_driver_does_not_use_get_nothing() {
    let mut rig = Rig::new();
    let mut a = rig.guest(Config::default());
    let mut b = rig.guest(Config { pairs: 4, ..Config::default() });
    announce(&mut b, 2);
    collect(&mut a, 1);
    b.port.set_active_pairs(1);
    for flow in 0..32 {
        a.send(&[&udp(mac(2), mac(1), 2000 + flow)]);
    }
    assert_eq!(b.received_on(0).len(), 32);
}

#[test]
fn the_receivers_table_decides_and_its_hash_is_reported() {
    for workers in [1, 2] {
        let mut rig = Rig::with_workers(workers);
        let mut a = rig.guest(Config::default());
        let features = VERSION_1 | MRG_RXBUF | EVENT_IDX | HASH_REPORT;
        let mut b = rig.guest(Config { pairs: 4, ..Config::with(features) });
        announce(&mut b, 2);
        collect(&mut a, 1);
        let rss = Rss::new([0x5a; 40], types::UDPV4);
        let steering = std::sync::Arc::new(Steering {
            rss: rss.clone(),
            report: true,
            table: [3, 2, 1, 3].into(),
            unclassified: 2,
        });
        for worker in rig.pool().handles() {
            let steering = Some(steering.clone());
            worker.send(Message::Steering { port: b.port.id(), steering }).unwrap();
        }
        rig.settle();
        for flow in 0..16 {
            let bytes = udp(mac(2), mac(1), 3000 + flow);
            let head = net_backend::frame::Head::from_slice(&bytes);
            let meta = net_backend::frame::parse::l2(&head).unwrap();
            let hash = rss.report(&head, &meta);
            let expected = [3, 2, 1, 3][hash.value as usize & 3];
            a.send(&[&bytes]);
            let mut got = Vec::new();
            eventually("it arrives where the table says", || {
                got.extend(b.received_on(expected));
                !got.is_empty()
            });
            assert_eq!(got[0].frame, bytes);
            assert_eq!(got[0].header[12..16], hash.value.to_le_bytes());
            assert_eq!(got[0].header[16..18], hash.report.to_le_bytes());
        }
        a.send(&[&frame(mac(2), mac(1), 60, 1)]);
        eventually("what has no hash goes to its own pair", || !b.received_on(2).is_empty());
    }
}

#[test]
fn a_rate_limit_holds_the_ring_back_and_loses_nothing() {
    for ring in [EVENT_IDX, PACKED | EVENT_IDX] {
        let mut rig = Rig::new();
        let ingress = RatePair { packets: Rate { rate: 1000, burst: 4 }, ..RatePair::default() };
        let policy = PortPolicy { limits: Limits { ingress, ..Limits::default() }, ..PortPolicy::default() };
        let mut a = rig.guest(Config { policy, ..Config::with(ring | VERSION_1) });
        let mut b = rig.guest(Config::with(ring | VERSION_1));
        let began = Instant::now();
        for n in 0..16 {
            assert!(a.offer(0, &[0; 12], &frame(mac(2), mac(1), 60, n)));
        }
        a.kick(0);
        a.reap(0, 16);
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(8),
            "16 frames at 1000 a second and a burst of 4 took {took:?}"
        );
        let got = b.receive(16);
        assert!(got.iter().enumerate().all(|(n, got)| got.frame == frame(mac(2), mac(1), 60, n as u64)));
        assert_eq!(a.stats().dropped_in(), 0);
    }
}

#[test]
fn a_held_ring_stops_at_once_and_a_new_policy_frees_it() {
    let mut rig = Rig::new();
    let ingress = RatePair { packets: Rate { rate: 1, burst: 1 }, ..RatePair::default() };
    let policy = PortPolicy { limits: Limits { ingress, ..Limits::default() }, ..PortPolicy::default() };
    let mut a = rig.guest(Config { policy, ..Config::default() });
    let mut b = rig.guest(Config::default());
    for n in 0..4 {
        assert!(a.offer(0, &[0; 12], &frame(mac(2), mac(1), 60, n)));
    }
    a.kick(0);
    eventually("the ring is held back", || {
        rig.settle();
        a.stats().received_frames > 0
    });
    let first = b.frames().len();
    assert!(first < 4, "{first} passed at once");
    let began = Instant::now();
    rig.set_port_policy(a.port.id(), PortPolicy::default());
    assert_eq!(b.receive(4 - first).len(), 4 - first);
    assert!(began.elapsed() < Duration::from_millis(900), "nobody waited for the old limit");
    a.reap(0, 4);
    a.attached.stop_queue(1).unwrap().unwrap();
}

#[test]
fn a_ring_that_stops_in_the_middle_of_traffic_has_taken_what_arrived_and_no_more() {
    for ring in [EVENT_IDX, PACKED | EVENT_IDX] {
        let mut rig = Rig::new();
        let mut a = rig.guest(Config::with(ring | VERSION_1 | MRG_RXBUF));
        let mut b = rig.guest(Config { size: 1024, ..Config::with(ring | VERSION_1 | MRG_RXBUF) });
        let (mut sent, mut taken, mut got) = (0u64, 0, 0);
        for round in 0..60 {
            for _ in 0..16 {
                if !a.offer(0, &[0; 12], &frame(mac(2), mac(1), 100, sent)) {
                    break;
                }
                sent += 1;
            }
            a.kick(0);
            if round % 3 == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
            let stopped = a.attached.stop_queue(1).unwrap().unwrap();
            taken += a.reap_some(0);
            got += b.frames().len();
            assert_eq!(got, taken, "what the driver got back has arrived, and nothing else");
            a.start_at(1, Some(stopped.base()));
        }
        a.reap(0, sent as usize - taken);
        got += b.receive(sent as usize - taken).len();
        assert_eq!(got as u64, sent);
        assert_eq!((a.stats().received_frames, b.stats().sent_frames), (sent, sent));
    }
}

#[test]
fn receive_rings_come_and_go_and_memory_is_replaced_while_others_send() {
    let mut rig = Rig::with_workers(2);
    let mut a = rig.guest(Config { pairs: 2, ..Config::default() });
    let mut b = rig.guest(Config { pairs: 2, ..Config::default() });
    announce(&mut b, 2);
    collect(&mut a, 1);
    let done = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0u64;
            while !done.load(Ordering::Relaxed) {
                for pair in 0..2 {
                    a.send_with(pair, &[0; 12], &[&frame(mac(2), mac(1), 300, sent)]);
                    sent += 1;
                }
            }
            sent
        });
        let mut got = 0;
        for round in 0..100u16 {
            let index = 2 * (round % 2);
            let stopped = b.attached.stop_queue(index).unwrap().unwrap();
            got += everything(&mut b).len();
            b.attached.set_memory(b.memory.table().clone()).unwrap();
            b.start_at(index, Some(stopped.base()));
            got += everything(&mut b).len();
        }
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        rig.settle();
        got += everything(&mut b).len();
        let stats = b.stats();
        assert_eq!(stats.sent_frames, got as u64, "every frame that was counted has arrived");
        assert_eq!(stats.sent_frames + stats.dropped_out(), sent, "every frame is counted: {}", b.drops());
        sent
    });
    assert!(sent > 0);
    assert_eq!(b.dropped_out(Drop::Malformed), 0);
}

/// A UDP frame from a port, with room behind it.
fn udp(dst: net_backend::frame::MacAddr, src: net_backend::frame::MacAddr, port: u16) -> Vec<u8> {
    let mut bytes = frame(dst, src, 60, 1);
    bytes[12..14].copy_from_slice(&[8, 0]);
    let ip = [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    bytes[14..34].copy_from_slice(&ip);
    bytes[34..36].copy_from_slice(&port.to_be_bytes());
    bytes[36..38].copy_from_slice(&[0, 53]);
    bytes[38..42].copy_from_slice(&[0, 26, 0, 0]);
    bytes
}
