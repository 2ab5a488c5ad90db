//! Frames in and out, and what becomes of the buffers.

use memory::MemoryView;
use net_backend::frame::NetHeader;
use net_backend::switch::Drop as Reason;
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::xdp::{self, Mode, ModeChoice, Spec};

use crate::bed;
use crate::support::*;

#[test]
fn frames_cross_byte_for_byte_both_ways() {
    let far = bed!();
    for mode in MODES {
        let mut queue = open_one(&spec(mode));
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        for len in [18, 60, 64, 127, 128, 129, 1000, 1514] {
            for head in [14, 64, 128] {
                let bytes = frame(len, head as u32);
                send(&mut queue, NetHeader::PLAIN, &bytes, head).expect("sent");
                queue.flush();
                assert!(wire.receive() == bytes, "{mode:?}: {len} bytes out");
                wire.send(&bytes);
                let (header, received) = receive_one(&mut queue);
                assert!(received == bytes, "{mode:?}: {len} bytes in");
                assert_eq!(header, NetHeader::PLAIN);
            }
        }
        assert_eq!((queue.counters().sent, queue.counters().received), (24, 24));
        assert_eq!((queue.counters().dropped, queue.kernel_drops()), (0, 0));
    }
}

#[test]
fn need_wakeup_and_busy_polling_change_nothing_but_the_calls() {
    let far = bed!();
    let plain = spec(ModeChoice::Copy);
    for spec in [
        Spec { need_wakeup: Some(true), ..plain.clone() },
        Spec { busy_poll: Some(20), ..plain.clone() },
        Spec { need_wakeup: Some(true), busy_poll: Some(20), ..plain },
    ] {
        let mut opened = open(&spec);
        assert_eq!(opened.report.need_wakeup, spec.need_wakeup.is_some());
        assert_eq!(opened.report.busy_poll, spec.busy_poll.is_some());
        let queue = &mut opened.queues[0];
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        for number in 0..200 {
            let bytes = frame(100, number);
            send(queue, NetHeader::PLAIN, &bytes, 64).expect("sent");
            queue.flush();
            assert!(wire.receive() == bytes, "{spec:?}");
            wire.send(&bytes);
            assert!(receive_one(queue).1 == bytes, "{spec:?}");
        }
        assert_eq!(queue.buffers().sending, 0);
    }
}

#[test]
fn jumbo_frames_cross_in_several_buffers() {
    let far = bed!();
    set_mtu(&far, 9000);
    for mode in MODES {
        let mut opened = open(&spec(mode));
        assert!(opened.report.multi_buffer, "{:?}", opened.report);
        let queue = &mut opened.queues[0];
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        for len in [3839, 3840, 3841, 4032, 4033, 7680, 9013, 9014] {
            let bytes = frame(len, len as u32);
            send(queue, NetHeader::PLAIN, &bytes, 128).expect("sent");
            queue.flush();
            assert!(wire.receive() == bytes, "{mode:?}: {len} bytes out");
            wire.send(&bytes);
            assert!(receive_one(queue).1 == bytes, "{mode:?}: {len} bytes in");
        }
        let buffers = queue.buffers();
        assert_eq!((buffers.held, buffers.sending), (0, 0));
    }
}

#[test]
fn the_best_mode_of_a_veth_is_copy_and_the_report_says_why() {
    let _far = bed!();
    let opened = open(&Spec::new("v0"));
    assert_eq!(opened.report.mode, Mode::Copy);
    assert_eq!(opened.report.not_better, ["No zero-copy mode: its driver has none"]);
    assert!(opened.report.ends_with_process && opened.report.warnings.is_empty(), "{:?}", opened.report);
}

#[test]
fn a_link_that_is_down_is_a_warning() {
    let _far = bed!();
    ip("link set v0 down");
    let opened = open(&Spec::new("v0"));
    assert!(opened.report.warnings[0].contains("ip link set dev v0 up"), "{:?}", opened.report);
}

#[test]
fn buffers_come_back_however_often_they_are_used() {
    let far = bed!();
    const FRAMES: u32 = 6_400;
    for mode in MODES {
        let mut queue = open_one(&Spec { ring: Some(64), ..spec(mode) });
        let whole = queue.buffers();
        assert_eq!((whole.receiving, whole.held, whole.free, whole.sending), (64, 0, 64, 0));
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        for round in 0..FRAMES / 32 {
            for number in 0..32 {
                let bytes = frame(60 + number as usize, round * 32 + number);
                wire.send(&bytes);
                send(&mut queue, NetHeader::PLAIN, &bytes, 128).expect("a free buffer");
            }
            queue.flush();
            for number in 0..32 {
                let bytes = frame(60 + number as usize, round * 32 + number);
                assert!(receive_one(&mut queue).1 == bytes, "{mode:?}: frame {number} of round {round}");
                assert!(wire.receive() == bytes, "{mode:?}: frame {number} of round {round}");
            }
            assert_eq!(queue.buffers(), whole, "{mode:?}: round {round}");
        }
        assert_eq!(queue.kernel_drops(), 0);
    }
}

#[test]
fn frames_that_nobody_takes_are_dropped_and_counted_by_the_kernel_and_the_next_ones_arrive() {
    let far = bed!();
    let mut queue = open_one(&Spec { ring: Some(64), ..spec(ModeChoice::Copy) });
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    for number in 0..100 {
        wire.send(&frame(60, number));
    }
    wait_for("drops", || queue.kernel_drops() == 36);
    let held = queue.receive_with(100, |_: &MemoryView, _, _| Ok(()));
    assert_eq!((held, queue.buffers().held, queue.buffers().receiving), (64, 64, 0));
    wire.send(&frame(60, 100));
    wait_for("one more drop", || queue.kernel_drops() == 37);
    queue.release();
    wire.send(&frame(60, 101));
    assert!(receive_one(&mut queue).1 == frame(60, 101));
    assert_eq!(queue.buffers().receiving, 64);
}

#[test]
fn more_frames_than_the_ring_has_places_are_sent_by_one_flush() {
    let far = bed!();
    let mut queue = open_one(&Spec { ring: Some(64), ..spec(ModeChoice::Copy) });
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    for number in 0..500 {
        send(&mut queue, NetHeader::PLAIN, &frame(60, number), 60).expect("room");
    }
    assert_eq!(queue.flush(), 0);
    for number in 0..500 {
        assert!(wire.receive() == frame(60, number), "{number}");
    }
}

#[test]
fn one_call_sends_a_whole_burst() {
    let far = bed!();
    let mut opened = open(&spec(ModeChoice::Copy));
    let budget = opened.report.transmit_budget;
    let queue = &mut opened.queues[0];
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    for number in 0..budget {
        send(queue, NetHeader::PLAIN, &frame(60, number), 60).expect("room");
    }
    queue.flush();
    assert_eq!(queue.counters().calls, 1);
    queue.flush();
    assert_eq!(queue.counters().calls, 1, "nothing to send, no call");
    for number in 0..budget {
        assert!(wire.receive() == frame(60, number));
    }
}

#[test]
fn frames_that_cannot_be_on_the_wire_are_refused() {
    let _far = bed!();
    let mut queue = open_one(&spec(ModeChoice::Copy));
    assert_eq!(send(&mut queue, NetHeader::PLAIN, &frame(13, 0), 13), Err(Reason::Runt));
    assert_eq!(send(&mut queue, NetHeader::PLAIN, &frame(1523, 0), 128), Err(Reason::TooLong));
    assert_eq!(send(&mut queue, NetHeader::PLAIN, &frame(65_000, 0), 128), Err(Reason::TooLong));
    assert_eq!((queue.buffers().sending, queue.counters().sent), (0, 0));
}

#[test]
fn the_descriptor_is_readable_while_frames_wait() {
    let far = bed!();
    let mut queue = open_one(&spec(ModeChoice::Copy));
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    assert!(!is_readable(queue.watch_fd()) && !queue.arm() && !queue.has_work());
    wire.send(&frame(60, 1));
    wait_for("the descriptor", || is_readable(queue.watch_fd()));
    assert!(queue.arm() && queue.has_work());
    receive_one(&mut queue);
    assert!(!is_readable(queue.watch_fd()) && !queue.arm() && !queue.has_work());
}

#[test]
fn every_queue_of_the_interface_has_a_socket_on_the_same_buffers() {
    let far = bed!();
    far.join("w0", "w1", "numrxqueues 2 numtxqueues 2", "numrxqueues 2 numtxqueues 2");
    far.ip("addr add 10.1.0.2/24 dev w1");
    far.ip("neigh add 10.1.0.1 lladdr 52:54:00:00:00:01 dev w1");
    let opened = xdp::open(&Spec::new("w0"), 4).expect("open");
    assert_eq!((opened.report.queues, opened.report.device_queues), (2, 2));
    let mut queues = opened.queues;
    // Flows are spread over the queues of the sender, and those over ours.
    far.run(|| {
        for _ in 0..64 {
            let socket = std::net::UdpSocket::bind("10.1.0.2:0").expect("a socket");
            socket.send_to(b"flow", "10.1.0.1:9").expect("sent");
        }
    });
    let mut counts = [0, 0];
    wait_for("all flows", || {
        for (count, queue) in counts.iter_mut().zip(&mut queues) {
            *count += receive(queue, 64).len();
        }
        counts[0] + counts[1] >= 64
    });
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    let wire = far.run(|| Wire::new("w1", ETHERTYPE));
    for queue in &mut queues {
        let bytes = frame(100, queue.index());
        send(queue, NetHeader::PLAIN, &bytes, 64).expect("sent");
        queue.flush();
        assert!(wire.receive() == bytes);
    }
}

#[test]
fn queues_that_no_worker_has_are_a_warning() {
    let far = bed!();
    far.join("w0", "w1", "numrxqueues 2 numtxqueues 2", "numrxqueues 2 numtxqueues 2");
    let opened = xdp::open(&Spec::new("w0"), 1).expect("open");
    assert_eq!(opened.queues.len(), 1);
    assert!(opened.report.warnings[0].contains("ethtool -L w0 combined 1"), "{:?}", opened.report.warnings);
}
