//! The data path between guests: what each ring format and header does, and what becomes of every frame.

mod support;

use std::time::Duration;

use memory::{DirtyLog, GuestAddr};
use net_backend::service::Message;
use net_backend::switch::{Drop, PortPolicy};
use runtime::rings::Reply;
use support::*;

/// Ring formats, with and without mergeable buffers, in all header sizes.
fn forms() -> Vec<u64> {
    let rings = [EVENT_IDX, PACKED | EVENT_IDX, IN_ORDER, PACKED | IN_ORDER];
    let headers = [0, MRG_RXBUF, VERSION_1, VERSION_1 | MRG_RXBUF, VERSION_1 | MRG_RXBUF | HASH_REPORT];
    rings.iter().flat_map(|ring| headers.map(|header| ring | header)).collect()
}

const LENGTHS: [usize; 12] = [14, 42, 60, 64, 65, 115, 127, 128, 129, 256, 1514, 1518];

/// Sends frames of many lengths from one guest to the other and back.
fn exchange(a: &mut Guest, b: &mut Guest) {
    for round in 0..8u64 {
        let frames: Vec<_> =
            LENGTHS.iter().map(|len| frame(mac(2), mac(1), *len, round * 100 + *len as u64)).collect();
        a.send(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let got = b.receive(frames.len());
        for (sent, got) in frames.iter().zip(&got) {
            assert_eq!(&got.frame, sent);
            let mut header = vec![0; b.header_len()];
            if header.len() > 10 {
                header[10] = got.buffers as u8;
            }
            assert_eq!(got.header, header, "nothing is left to do");
        }
        let back = frame(mac(1), mac(2), 200, round);
        b.send(&[&back]);
        assert_eq!(a.receive(1)[0].frame, back);
    }
}

#[test]
fn frames_arrive_whole_and_in_order_between_all_ring_formats_and_headers() {
    let mut rig = Rig::new();
    for features in forms() {
        for other in [VERSION_1 | MRG_RXBUF | EVENT_IDX, PACKED | VERSION_1 | IN_ORDER, 0] {
            let mut a = rig.guest(Config::with(features));
            let mut b = rig.guest(Config::with(other));
            exchange(&mut a, &mut b);
            assert_eq!(a.stats().dropped_in() + b.stats().dropped_out(), 0, "{}", b.drops());
            rig.remove(a);
            rig.remove(b);
        }
    }
}

#[test]
fn headers_in_their_own_descriptors_and_indirect_chains_make_no_difference() {
    let mut rig = Rig::new();
    for ring in [INDIRECT, INDIRECT | PACKED] {
        for (split_header, indirect) in [(true, false), (false, true), (true, true)] {
            let config =
                Config { split_header, indirect, ..Config::with(ring | VERSION_1 | MRG_RXBUF | EVENT_IDX) };
            let mut a = rig.guest(config.clone());
            let mut b = rig.guest(config);
            exchange(&mut a, &mut b);
            rig.remove(a);
            rig.remove(b);
        }
    }
}

#[test]
fn large_frames_fill_as_many_mergeable_buffers_as_they_need() {
    let mut rig = Rig::new();
    for ring in [0, PACKED, IN_ORDER, PACKED | IN_ORDER] {
        for buffer in [256, 1536, 4096] {
            let mut a = rig.guest(Config::with(ring | VERSION_1));
            let config = Config { buffer, size: 512, ..Config::with(ring | VERSION_1 | MRG_RXBUF) };
            let mut b = rig.guest(config);
            for len in [60, 1500, 4084, 9014, 65_549, 65_550] {
                let sent = frame(mac(2), mac(1), len, len as u64);
                a.send(&[&sent]);
                let got = b.receive(1).remove(0);
                assert_eq!(got.frame, sent);
                assert_eq!(got.buffers, (len + 12).div_ceil(buffer as usize));
            }
            rig.remove(a);
            rig.remove(b);
        }
    }
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_and_the_next_one_is_not() {
    let mut rig = Rig::new();
    for ring in [0, PACKED, IN_ORDER] {
        let mut a = rig.guest(Config::with(ring | VERSION_1));
        let mut b = rig.guest(Config { buffer: 1024, ..Config::with(ring | VERSION_1) });
        let (long, short) = (frame(mac(2), mac(1), 1500, 1), frame(mac(2), mac(1), 1012, 2));
        a.send(&[&short, &long, &short]);
        assert_eq!(b.receive(2).iter().map(|got| got.frame.len()).collect::<Vec<_>>(), [1012, 1012]);
        assert_eq!(b.dropped_out(Drop::TooLong), 1);
        rig.remove(a);
        rig.remove(b);
    }
}

#[test]
fn a_guest_without_buffers_loses_its_frames_and_delays_nobody() {
    let mut rig = Rig::new();
    for ring in [0, PACKED, IN_ORDER] {
        let mut a = rig.guest(Config::with(ring | VERSION_1 | MRG_RXBUF));
        let mut slow = rig.guest(Config { size: 16, ..Config::with(ring | VERSION_1 | MRG_RXBUF) });
        let mut other = rig.guest(Config::with(ring | VERSION_1 | MRG_RXBUF));
        let sent = frame(BROADCAST, mac(1), 300, 3);
        for _ in 0..5 {
            a.send(&vec![sent.as_slice(); 16]);
            assert_eq!(other.receive(16).len(), 16);
        }
        assert_eq!(slow.dropped_out(Drop::NoReceiveBuffer), 4 * 16);
        assert_eq!(slow.receive(16).len(), 16);
        a.send(&[&sent]);
        assert_eq!(slow.receive(1)[0].frame, sent, "and goes on when it has buffers again");
        for guest in [a, slow, other] {
            rig.remove(guest);
        }
    }
}

#[test]
fn a_short_ring_keeps_its_buffers_for_frames_that_fit() {
    let mut rig = Rig::new();
    for ring in [0, PACKED, IN_ORDER, PACKED | IN_ORDER] {
        let mut a = rig.guest(Config::with(ring | VERSION_1));
        let config = Config { size: 8, buffer: 256, ..Config::with(ring | VERSION_1 | MRG_RXBUF) };
        let mut b = rig.guest(config);
        let (large, small) = (frame(mac(2), mac(1), 3000, 1), frame(mac(2), mac(1), 200, 2));
        for _ in 0..10 {
            a.send(&[&large, &small, &large, &small]);
            let got = b.receive(2);
            assert!(got.iter().all(|got| got.frame == small));
        }
        assert_eq!(b.dropped_out(Drop::NoReceiveBuffer), 20);
        rig.remove(a);
        rig.remove(b);
    }
}

#[test]
fn a_broadcast_reaches_every_port_but_its_own() {
    let mut rig = Rig::new();
    let mut guests: Vec<_> = (0..4).map(|_| rig.guest(Config::default())).collect();
    let sent = frame(BROADCAST, mac(1), 1000, 5);
    guests[0].send(&[&sent]);
    for guest in &mut guests[1..] {
        assert_eq!(guest.receive(1)[0].frame, sent);
    }
    assert!(guests[0].frames().is_empty());
}

#[test]
fn a_learned_address_is_the_only_one_that_gets_the_frame() {
    let mut rig = Rig::new();
    let mut guests: Vec<_> = (0..3).map(|_| rig.guest(Config::default())).collect();
    guests[1].send(&[&frame(BROADCAST, mac(2), 60, 0)]);
    guests.iter_mut().for_each(|guest| drop(guest.frames()));
    let sent = frame(mac(2), mac(1), 60, 1);
    guests[0].send(&[&sent]);
    assert_eq!(guests[1].receive(1)[0].frame, sent);
    assert!(guests[2].frames().is_empty());
}

#[test]
fn a_loopback_port_gets_back_what_it_sends_whatever_the_address() {
    let mut rig = Rig::new();
    let policy = PortPolicy { loopback: true, ..PortPolicy::default() };
    let mut a = rig.guest(Config { policy, ..Config::default() });
    let mut b = rig.guest(Config::default());
    let sent =
        [frame(mac(9), mac(1), 60, 1), frame(BROADCAST, mac(1), 1514, 2), frame(mac(1), mac(1), 64, 3)];
    a.send(&sent.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(a.receive(3).into_iter().map(|got| got.frame).collect::<Vec<_>>(), sent);
    assert!(b.frames().is_empty());
}

#[test]
fn a_link_that_is_down_passes_nothing_either_way_and_counts_it() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    b.port.set_link(false);
    a.send(&[&frame(mac(2), mac(1), 60, 1)]);
    b.send(&[&frame(mac(1), mac(2), 60, 1)]);
    assert!(a.frames().is_empty() && b.frames().is_empty());
    assert_eq!((b.dropped_out(Drop::LinkDown), b.dropped_in(Drop::LinkDown)), (1, 1));
    b.port.set_link(true);
    let sent = frame(mac(2), mac(1), 60, 2);
    a.send(&[&sent]);
    assert_eq!(b.receive(1)[0].frame, sent);
}

#[test]
fn frames_over_the_mtu_are_dropped_both_ways_and_tags_do_not_count() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    b.port.set_mtu(1500);
    let mut tagged = frame(mac(2), mac(1), 1518, 3);
    tagged[12..18].copy_from_slice(&[0x81, 0, 0, 7, 0x88, 0xb5]);
    let mut twice = frame(mac(2), mac(1), 1522, 3);
    twice[12..22].copy_from_slice(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 0x88, 0xb5]);
    let frames = [&frame(mac(2), mac(1), 1514, 1)[..], &frame(mac(2), mac(1), 1515, 2), &tagged, &twice];
    a.send(&frames);
    let lens: Vec<_> = b.receive(3).iter().map(|got| got.frame.len()).collect();
    assert_eq!(lens, [1514, 1518, 1522]);
    assert_eq!(b.dropped_out(Drop::TooLong), 1);
    b.port.set_mtu(0);
    a.port.set_mtu(1500);
    a.send(&frames);
    assert_eq!(b.receive(3).len(), 3);
    assert_eq!(a.dropped_in(Drop::TooLong), 1, "what a guest sends has to fit, too");
}

#[test]
fn an_announcement_leaves_as_if_the_guest_had_sent_it() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    let rarp = frame(BROADCAST, mac(1), 60, 0);
    let (reply, answer) = Reply::new();
    let say = Message::Inject { port: a.port.id(), frame: rarp.clone().into(), reply };
    rig.pool().handles()[0].send(say).unwrap();
    answer.recv().unwrap();
    assert_eq!(b.receive(1)[0].frame, rarp);
    assert!(a.frames().is_empty());
    let answer = frame(mac(1), mac(2), 60, 0);
    b.send(&[&answer]);
    assert_eq!(a.receive(1)[0].frame, answer);
}

#[test]
fn every_page_a_frame_is_written_to_is_in_the_dirty_log() {
    let mut rig = Rig::new();
    for ring in [0, PACKED] {
        let mut a = rig.guest(Config::with(ring | VERSION_1));
        let mut b = rig.guest(Config { buffer: 4096, ..Config::with(ring | VERSION_1 | MRG_RXBUF) });
        let log = DirtyLog::anonymous((128 << 20) / 4096 / 8).unwrap();
        b.set_log(Some(log.clone()));
        let first = b.queues[0].buffers;
        // Three buffers of a page each.
        a.send(&[&frame(mac(2), mac(1), 10_000, 1)]);
        b.receive(1);
        let marked = |page: u64| log.is_marked(GuestAddr(first.0 + page * 4096));
        assert_eq!((0..4).map(marked).collect::<Vec<_>>(), [true, true, true, false]);
        let ring = b.queues[0].addresses;
        assert!(log.is_marked(if b.ring_features().packed { ring.desc } else { ring.device }));
        assert!(!log.is_marked(b.queues[1].buffers), "what is only read is not marked");
        b.set_log(None);
        rig.remove(a);
        rig.remove(b);
    }
}

#[test]
fn a_ring_that_is_not_enabled_takes_and_gives_nothing() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    b.attached.enable_queue(0, false).unwrap();
    a.send(&[&frame(mac(2), mac(1), 60, 1)]);
    assert!(b.frames().is_empty());
    assert_eq!(b.dropped_out(Drop::LinkDown), 1);
    a.attached.enable_queue(1, false).unwrap();
    assert!(a.offer(0, &[0; 12], &frame(mac(2), mac(1), 60, 2)));
    a.kick(0);
    rig.settle();
    assert_eq!(a.reap_some(0), 0);
    b.attached.enable_queue(0, true).unwrap();
    a.attached.enable_queue(1, true).unwrap();
    a.reap(0, 1);
    assert_eq!(b.receive(1).len(), 1);
}

#[test]
fn one_publication_and_one_interrupt_serve_a_whole_burst() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::with(VERSION_1)), rig.guest(Config::with(VERSION_1)));
    a.attached.enable_queue(1, false).unwrap();
    for seed in 0..16 {
        assert!(a.offer(0, &[0; 12], &frame(mac(2), mac(1), 60, seed)));
    }
    a.kick(0);
    a.attached.enable_queue(1, true).unwrap();
    b.receive(16);
    let counters: Vec<_> = b.attached.stats().cloned().collect();
    assert_eq!((counters[0].interrupts.get(), counters[0].completions.get()), (1, 16));
    let counters: Vec<_> = a.attached.stats().cloned().collect();
    assert_eq!((counters[1].interrupts.get(), counters[1].completions.get()), (1, 16));
}

#[test]
fn a_receive_ring_wakes_nobody() {
    let mut rig = Rig::new();
    let mut a = rig.guest(Config::default());
    let _b = rig.guest(Config::default());
    std::thread::sleep(Duration::from_millis(50));
    let parks = || rig.pool().stats()[0].2.parks;
    let before = parks();
    for _ in 0..100 {
        // A driver that kicks although nobody asked for it.
        a.queues[0].kick.write(1).unwrap();
    }
    a.post(0, usize::MAX);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(parks(), before, "nobody looked");
}

#[test]
fn a_port_that_comes_or_goes_does_not_touch_the_others() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    for _ in 0..20 {
        let mut c = rig.guest(Config::default());
        exchange(&mut a, &mut b);
        c.send(&[&frame(BROADCAST, mac(3), 60, 0)]);
        assert!(!a.frames().is_empty() && !b.frames().is_empty());
        rig.remove(c);
    }
    exchange(&mut a, &mut b);
}

#[test]
fn frames_left_by_a_killed_predecessor_are_sent_again_and_none_is_lost() {
    let mut rig = Rig::new();
    for ring in [EVENT_IDX, PACKED | EVENT_IDX] {
        let mut a = rig.unstarted(Config::with(ring | VERSION_1 | MRG_RXBUF));
        a.track(0);
        a.track(1);
        a.start_all();
        let mut b = rig.guest(Config::with(ring | VERSION_1 | MRG_RXBUF));
        a.send(&[&frame(mac(2), mac(1), 60, 1)]);
        b.receive(1);
        // A predecessor that took two frames and was killed before it could use them.
        a.attached.stop_queue(1).unwrap();
        let frames =
            [frame(mac(2), mac(1), 100, 2), frame(mac(2), mac(1), 200, 3), frame(mac(2), mac(1), 300, 4)];
        for frame in &frames {
            assert!(a.offer(0, &[0; 12], frame));
        }
        a.kick(0);
        {
            use virtqueue::DeviceRing;
            let base = a.queues[1].ring.base_for_restart();
            let mut killed = a.device_queue(1, Some(base));
            let view = memory::MemoryView::new(a.memory.table().clone());
            let mut chain = virtqueue::Chain::new();
            assert_eq!(killed.ring.fetch(2), 2);
            killed.ring.next(&view, &mut chain).unwrap();
            killed.ring.next(&view, &mut chain).unwrap();
        }
        let base = a.queues[1].ring.base_for_restart();
        a.start_at(1, Some(base));
        a.reap(0, 3);
        let got: Vec<_> = b.receive(3).into_iter().map(|got| got.frame).collect();
        assert_eq!(got, frames);
        rig.remove(a);
        rig.remove(b);
    }
}

#[test]
fn memory_can_be_replaced_between_frames() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    for _ in 0..10 {
        exchange(&mut a, &mut b);
        a.attached.set_memory(a.memory.table().clone()).unwrap();
        b.attached.set_memory(b.memory.table().clone()).unwrap();
    }
}

#[test]
fn an_idle_switch_takes_no_time_at_all() {
    let mut rig = Rig::with_workers(2);
    let (mut a, mut b) = (rig.guest(Config::default()), rig.guest(Config::default()));
    exchange(&mut a, &mut b);
    std::thread::sleep(Duration::from_millis(100));
    let rounds = || -> u64 { rig.pool().stats().iter().map(|worker| worker.2.parks).sum() };
    let before = rounds();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rounds(), before, "nobody has woken up");
}
