//! Frames through real TAP interfaces, each test in a network namespace of its own.

mod tap_support;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use memory::HostRange;
use net_backend::frame::{Gso, HEAD, Head, NetHeader, Offloads, flag};
use net_backend::path::Burst;
use net_backend::switch::Drop;
use net_backend::uplink::tap::{self, Source, Spec};
use net_backend::uplink::{Direct, UplinkQueue};
use runtime::io::{IoKind, WatchId};
use runtime::worker::{Context, Service, Worker, WorkerConfig};
use tap_support::*;

const TCP_HEADERS: usize = 54;

fn tso(gso_size: u16) -> NetHeader {
    NetHeader {
        flags: flag::NEEDS_CSUM,
        gso: Gso::TcpV4 { ecn: false },
        hdr_len: TCP_HEADERS as u16,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::PLAIN
    }
}

#[test]
fn frames_reach_the_host_byte_for_byte() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    let host = Host::new("t0", ETHERTYPE);
    let mut sent = 0;
    for len in [14, 15, 60, 127, 128, 129, 1514, 2047, 2048, 2049, 4096, 9014, 65_535] {
        for piece in [1, 7, 1500, 1 << 16] {
            let frame = frame(len, piece as u8);
            // One byte a piece makes more pieces than a system call takes.
            send(&mut queue, NetHeader::PLAIN, &frame, HEAD, piece).expect("sent");
            sent += 1;
            let (header, received) = host.receive();
            assert!(received == frame, "{len} bytes in pieces of {piece}");
            assert_eq!(header.gso, Gso::None);
        }
    }
    assert_eq!(queue.counters().sent, sent);
    assert_eq!(queue.counters().dropped, 0);
}

#[test]
fn frames_from_the_host_arrive_byte_for_byte_and_in_order() {
    in_namespace!();
    let mut queue = open_one(&Spec { mtu: Some(9000), ..spec("t0") });
    assert_eq!(queue.info().mtu, 9000);
    let host = Host::new("t0", ETHERTYPE);
    for (number, len) in [14, 60, 128, 1514, 9014].into_iter().enumerate() {
        host.send(NetHeader::PLAIN, &frame(len, number as u8));
    }
    for (number, len) in [14, 60, 128, 1514, 9014].into_iter().enumerate() {
        let (header, received) = receive(&mut queue);
        assert!(received == frame(len, number as u8), "frame {number} of {len} bytes");
        assert_eq!(header, NetHeader::PLAIN);
    }
    assert_eq!(queue.receive_one(), None);
    assert_eq!(queue.counters().received, 5);
}

#[test]
fn a_burst_is_filled_from_the_wire_and_its_buffers_are_used_again() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    let host = Host::new("t0", ETHERTYPE);
    let frames = 3 * Burst::new().room() + 5;
    for number in 0..frames {
        host.send(NetHeader::PLAIN, &frame(60, number as u8));
    }
    let mut left = frames;
    while left > 0 {
        let mut burst = Burst::new();
        let want = left.min(burst.room());
        assert_eq!(queue.receive(&mut burst), want);
        queue.release();
        left -= want;
    }
    assert_eq!(queue.receive(&mut Burst::new()), 0);
    assert!(!queue.has_work() && !queue.arm());
}

#[test]
fn a_large_segment_reaches_the_host_uncut_with_its_checksum_left_open() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    let host = Host::new("t0", 0x0800);
    let frame = tcp_frame(40_000, 1);
    send(&mut queue, tso(1448), &frame, HEAD, 3000).expect("sent");
    let (header, received) = host.receive();
    assert_eq!(header.gso, Gso::TcpV4 { ecn: false });
    assert_eq!(header.gso_size, 1448);
    assert!(header.needs_csum());
    assert_eq!((header.csum_start, header.csum_offset), (34, 16));
    assert!(received == frame);
}

#[test]
fn a_large_segment_from_the_host_arrives_uncut() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    let can = queue.info().from_kernel;
    assert!(can.csum && can.tso4 && can.tso6 && can.ecn, "{can:?}");
    let host = Host::new("t0", 0x0800);
    let frame = tcp_frame(60_000, 2);
    host.send(tso(1400), &frame);
    let (header, received) = receive(&mut queue);
    assert_eq!((header.gso, header.gso_size), (Gso::TcpV4 { ecn: false }, 1400));
    assert!(header.needs_csum());
    assert_eq!(header.csum_start, 34);
    assert!(received == frame);
    assert_eq!(queue.direct(), Some(Direct { longest: queue.longest(), undone: can }), "frames are large");
}

#[test]
fn without_offloads_the_kernel_finishes_every_frame() {
    in_namespace!();
    let mut queue = open_one(&Spec { offloads: false, ..spec("t0") });
    assert_eq!(queue.info().from_kernel, Offloads::NONE);
    assert!(queue.offloads().tso4, "the kernel still takes unfinished frames");
    let host = Host::new("t0", 0x0800);
    let frame = tcp_frame(4200, 3);
    host.send(tso(1400), &frame);
    let mut payload = Vec::new();
    for _ in 0..3 {
        let (header, received) = receive(&mut queue);
        assert_eq!((header.gso, header.needs_csum()), (Gso::None, false));
        assert_eq!(received.len(), TCP_HEADERS + 1400);
        let mut covered = received[26..34].to_vec();
        covered.extend_from_slice(&[0, 6]);
        covered.extend_from_slice(&(20_u16 + 1400).to_be_bytes());
        covered.extend_from_slice(&received[34..]);
        assert_eq!(fold(&covered), 0xffff, "the TCP checksum is complete");
        payload.extend_from_slice(&received[TCP_HEADERS..]);
    }
    assert!(payload == frame[TCP_HEADERS..]);
}

#[test]
fn every_worker_has_a_queue_and_flows_spread_over_them() {
    in_namespace!();
    let mut queues = tap::open(&spec("t0"), 3).expect("opens");
    assert_eq!(queues.len(), 3);
    assert_eq!(queues[0].info().queues, 3);
    let host = Host::new("t0", 0x0800);
    for flow in 0..60 {
        host.send(NetHeader { flags: 0, gso: Gso::None, ..tso(0) }, &tcp_frame(10, flow));
    }
    let mut seen = BTreeSet::new();
    for (number, queue) in queues.iter_mut().enumerate() {
        let mut here = 0;
        while let Some((_, range)) = queue.receive_one() {
            let frame = bytes_of(queue.view(), &[range]);
            assert!(seen.insert(frame[11]), "a frame came twice");
            here += 1;
            queue.release();
        }
        assert!(here > 0, "queue {number} got nothing");
    }
    assert_eq!(seen.len(), 60);
    // All queues lead to the same host.
    let host = Host::new("t0", ETHERTYPE);
    for (number, queue) in queues.iter_mut().enumerate() {
        send(queue, NetHeader::PLAIN, &frame(100, number as u8), HEAD, 100).expect("sent");
        assert_eq!(host.receive().1, frame(100, number as u8));
    }
}

#[test]
fn the_kernel_answers_a_flow_on_the_queue_that_it_came_from() {
    in_namespace!();
    let mut queues = tap::open(&spec("t0"), 2).expect("opens");
    let host = Host::new("t0", 0x0800);
    for (number, seed) in [(0, 11), (1, 12), (0, 13), (1, 14)] {
        send(&mut queues[number], tso_off(), &tcp_frame(10, seed), HEAD, 100).expect("sent");
        host.receive();
        let mut answer = tcp_frame(10, seed);
        // The other way: addresses and ports change places, so that it hashes to the same flow.
        let turned = [&answer[30..34], &answer[26..30], &answer[36..38], &answer[34..36]].concat();
        answer[26..38].copy_from_slice(&turned);
        host.send(tso_off(), &answer);
        assert!(receive(&mut queues[number]).1 == answer, "flow {seed}");
        assert_eq!(queues[1 - number].receive_one(), None);
    }
}

fn tso_off() -> NetHeader {
    NetHeader::PLAIN
}

#[test]
fn a_direct_read_fills_the_guests_buffers_and_keeps_the_head_private() {
    in_namespace!();
    let mut queue = open_one(&Spec { mtu: Some(9000), ..spec("t0") });
    let host = Host::new("t0", ETHERTYPE);
    let guest = Guest::new();
    let room: Vec<HostRange> = (0..50).map(|_| guest.room(1500)).collect();
    let mut head = Head::new();
    assert_eq!(queue.receive_into(&guest.view, &room, &mut head), None, "nothing is waiting");
    for len in [60, HEAD, HEAD + 1, 5000] {
        room.iter().for_each(|range| guest.view.reenter(*range).expect("inside").fill(0xee));
        let frame = frame(len, 9);
        host.send(NetHeader::PLAIN, &frame);
        let arrival = queue.receive_into(&guest.view, &room, &mut head).expect("a frame");
        assert_eq!((arrival.len, arrival.header), (len, NetHeader::PLAIN));
        assert_eq!(head.as_slice(), &frame[..len.min(HEAD)]);
        let rest = len.saturating_sub(HEAD);
        let there = guest.bytes(&room);
        assert!(there[..rest] == frame[frame.len() - rest..]);
        assert!(there[rest..].iter().all(|&byte| byte == 0xee), "nothing else was touched");
    }
}

#[test]
fn a_direct_read_takes_a_large_segment_and_drops_what_it_has_no_room_for() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    let host = Host::new("t0", 0x0800);
    let guest = Guest::new();
    let mut head = Head::new();
    let room: Vec<HostRange> = (0..40).map(|_| guest.room(2000)).collect();
    assert!(room.iter().map(|range| range.len).sum::<usize>() > queue.longest());
    let frame = tcp_frame(50_000, 4);
    host.send(tso(1448), &frame);
    host.send(tso(1448), &frame);
    let arrival = queue.receive_into(&guest.view, &room, &mut head).expect("a frame");
    assert_eq!((arrival.len, arrival.header.gso_size), (frame.len(), 1448));
    assert!(guest.bytes(&room)[..frame.len() - HEAD] == frame[HEAD..]);
    assert_eq!(queue.receive_into(&guest.view, &room[..10], &mut head), None);
    assert_eq!((queue.counters().received, queue.counters().dropped), (1, 1));
    // The buffers must be the guest's.
    let elsewhere = Guest::new().room(100);
    assert_eq!(queue.receive_into(&guest.view, &[elsewhere], &mut head), None);
}

#[test]
fn frames_wait_in_the_kernel_while_nobody_reads() {
    in_namespace!();
    let mut queue = open_one(&Spec { queue_length: Some(300), ..spec("t0") });
    let host = Host::new("t0", ETHERTYPE);
    for number in 0..250 {
        host.send(NetHeader::PLAIN, &frame(60, number));
    }
    assert!(queue.has_work(), "nothing has said that there are no frames");
    for number in 0..250 {
        assert!(queue.has_work() && queue.arm(), "frame {number} waits");
        assert!(receive(&mut queue).1 == frame(60, number));
    }
    assert_eq!(queue.receive_one(), None);
    assert!(!queue.has_work());
}

#[test]
fn full_buffers_end_a_burst_without_losing_a_frame() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    let host = Host::new("t0", ETHERTYPE);
    for number in 0..200 {
        host.send(NetHeader::PLAIN, &frame(60, number));
    }
    let mut next = 0_u8;
    while next < 200 {
        let mut ranges = Vec::new();
        while let Some((_, range)) = queue.receive_one() {
            ranges.push(range);
        }
        assert!(!ranges.is_empty() && ranges.len() < 200);
        for range in ranges {
            assert!(bytes_of(queue.view(), &[range]) == frame(60, next), "frame {next}");
            next += 1;
        }
        queue.release();
    }
}

#[test]
fn a_sleeping_worker_is_woken_by_every_frame() {
    in_namespace!();
    for kind in [IoKind::Uring, IoKind::Threads] {
        let queue = open_one(&spec("t0"));
        let host = Host::new("t0", ETHERTYPE);
        let (worker, frames) = Reader::start(queue, kind);
        for number in 0..300_u16 {
            let sent = frame(60, number as u8);
            host.send(NetHeader::PLAIN, &sent);
            let received = frames.recv_timeout(Duration::from_secs(10));
            assert!(received.as_ref() == Ok(&Some(sent)), "frame {number} by {kind:?}");
        }
        // Bursts that come while it reads.
        (0..2000_u16).for_each(|number| {
            host.send(NetHeader::PLAIN, &frame(60, number as u8));
            std::hint::black_box(number);
        });
        for number in 0..2000_u16 {
            let received = frames.recv_timeout(Duration::from_secs(10));
            assert!(received == Ok(Some(frame(60, number as u8))), "frame {number} of a burst by {kind:?}");
        }
        worker.join().expect("it ends");
    }
}

#[test]
fn a_sleeping_worker_notices_that_the_interface_was_deleted_and_sleeps_on() {
    in_namespace!();
    for kind in [IoKind::Uring, IoKind::Threads] {
        let (worker, frames) = Reader::start(open_one(&spec("t0")), kind);
        ip("link delete t0");
        assert_eq!(frames.recv_timeout(Duration::from_secs(10)), Ok(None), "{kind:?}");
        let sleeps = worker.stats().parks.get();
        std::thread::sleep(Duration::from_millis(300));
        let sleeps = worker.stats().parks.get() - sleeps;
        assert!(sleeps < 10, "{sleeps} sleeps by {kind:?}: it spins");
        worker.join().expect("it ends");
    }
}

/// A worker's service that reads a queue whenever it should: `Some(frame)`, and `None` when the interface is gone.
struct Reader {
    queue: tap::Queue,
    frames: mpsc::Sender<Option<Vec<u8>>>,
    told: bool,
    ready: bool,
}

impl Reader {
    fn start(queue: tap::Queue, kind: IoKind) -> (Worker<()>, mpsc::Receiver<Option<Vec<u8>>>) {
        let (frames, received) = mpsc::channel();
        let config = WorkerConfig { name: "reader".into(), io: kind.into(), ..WorkerConfig::default() };
        let worker = Worker::spawn(config, move |cx| {
            cx.watch(queue.watch_fd()).expect("watched");
            Self { queue, frames, told: false, ready: true }
        });
        (worker.expect("a worker"), received)
    }
}

impl Service for Reader {
    type Message = ();

    fn message(&mut self, (): (), _: &mut Context) {}

    fn poll_once(&mut self, _: &mut Context) -> usize {
        let mut count = 0;
        if !std::mem::take(&mut self.ready) && !self.queue.has_work() {
            return 0;
        }
        while let Some((_, range)) = self.queue.receive_one() {
            let _ = self.frames.send(Some(bytes_of(self.queue.view(), &[range])));
            self.queue.release();
            count += 1;
        }
        if self.queue.is_gone() && !std::mem::replace(&mut self.told, true) {
            let _ = self.frames.send(None);
        }
        count
    }

    fn completed(&mut self, _: u64, _: i32, _: &mut Context) {}

    fn ready(&mut self, _: WatchId, _: &mut Context) {
        self.ready = true;
    }

    fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    fn suppress(&mut self) {}

    fn outstanding(&self) -> usize {
        0
    }
}

#[test]
fn a_deleted_interface_takes_the_uplink_down_once_and_comes_back() {
    in_namespace!();
    let (result, lines) = log_lines(|| {
        let mut queues = tap::open(&spec("t0"), 2).expect("opens");
        ip("link delete t0");
        let sent = frame(60, 1);
        for queue in &mut queues {
            assert_eq!(send(queue, NetHeader::PLAIN, &sent, HEAD, 60), Err(Drop::LinkDown));
        }
        for queue in &mut queues {
            assert!(queue.is_gone());
            assert!(!queue.has_work() && !queue.arm(), "nothing to do");
            let calls = queue.counters().calls;
            assert_eq!(queue.receive(&mut Burst::new()), 0);
            assert_eq!(send(queue, NetHeader::PLAIN, &sent, HEAD, 60), Err(Drop::LinkDown));
            assert_eq!(queue.counters().calls, calls, "the kernel is left alone");
            assert_eq!(queue.counters().dropped, 2);
        }
        queues
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    let mut queues = result;
    // It is not made again by us.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(send(&mut queues[0], NetHeader::PLAIN, &frame(60, 1), HEAD, 60), Err(Drop::LinkDown));
    assert!(!exists("t0"));
    ip("tuntap add t0 mode tap multi_queue");
    ip("link set t0 up");
    let host = Host::new("t0", ETHERTYPE);
    for queue in &mut queues {
        wait_for("the interface is found", || send(queue, NetHeader::PLAIN, &frame(80, 2), HEAD, 60).is_ok());
        assert!(!queue.is_gone());
        assert_eq!(host.receive().1, frame(80, 2));
    }
    let from_host = frame(90, 3);
    let mut received = None;
    wait_for("a frame from the new interface", || {
        // The first ones may be lost: the kernel activates the interface some time after its first queue is there.
        host.send(NetHeader::PLAIN, &from_host);
        let queue = queues.iter_mut().find_map(|queue| queue.receive_one().map(|(_, range)| (queue, range)));
        received = queue.map(|(queue, range)| bytes_of(queue.view(), &[range]));
        received.is_some()
    });
    assert_eq!(received, Some(from_host));
}

#[test]
fn frames_to_an_interface_that_is_down_are_dropped_until_it_is_up() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    ip("link set t0 down");
    assert_eq!(send(&mut queue, NetHeader::PLAIN, &frame(60, 1), HEAD, 60), Err(Drop::LinkDown));
    assert!(!queue.is_gone());
    ip("link set t0 up");
    let host = Host::new("t0", ETHERTYPE);
    send(&mut queue, NetHeader::PLAIN, &frame(60, 1), HEAD, 60).expect("sent");
    assert_eq!(host.receive().1, frame(60, 1));
}

#[test]
fn a_claim_the_kernel_does_not_believe_drops_one_frame() {
    in_namespace!();
    let mut queue = open_one(&spec("t0"));
    // IPv4 is no place for TSO6.
    let wrong = NetHeader { gso: Gso::TcpV6 { ecn: false }, ..tso(1448) };
    let result = send(&mut queue, wrong, &tcp_frame(4000, 1), HEAD, 4000);
    assert!(matches!(result, Ok(()) | Err(Drop::BadOffload)), "{result:?}");
    let beyond = NetHeader { csum_start: 60_000, ..tso(1448) };
    assert_eq!(send(&mut queue, beyond, &tcp_frame(100, 1), HEAD, 4000), Err(Drop::BadOffload));
    // A hint that is too large harms nobody.
    let host = Host::new("t0", ETHERTYPE);
    let hint = NetHeader { hdr_len: 60_000, ..NetHeader::PLAIN };
    send(&mut queue, hint, &frame(60, 2), HEAD, 60).expect("sent");
    assert_eq!(host.receive().1, frame(60, 2));
}

#[test]
fn an_interface_stays_only_if_it_was_to_persist() {
    in_namespace!();
    std::mem::drop(open_one(&spec("t0")));
    wait_for("the interface goes", || !exists("t0"));
    std::mem::drop(open_one(&Spec { persist: true, ..spec("t0") }));
    assert!(exists("t0"));
    let again = open_one(&Spec::new(Source::Existing("t0".into())));
    assert!(!again.info().created);
    std::mem::drop(again);
    assert!(exists("t0"), "it was not ours to remove");
}

#[test]
fn one_queue_attaches_to_an_interface_for_many() {
    in_namespace!();
    ip("tuntap add t0 mode tap multi_queue");
    let mut queue = open_one(&spec("t0"));
    let host = Host::new("t0", ETHERTYPE);
    send(&mut queue, NetHeader::PLAIN, &frame(60, 1), HEAD, 60).expect("sent");
    assert_eq!(host.receive().1, frame(60, 1));
}

#[test]
fn an_uplink_joins_its_bridge_and_may_find_itself_there() {
    in_namespace!();
    ip("link add br0 type bridge");
    ip("link set br0 up");
    for _ in 0..2 {
        let mut queue = open_one(&Spec { bridge: Some("br0".into()), persist: true, ..spec("t0") });
        ip("link show t0 master br0");
        let mut other = open_one(&Spec { bridge: Some("br0".into()), ..spec("t1") });
        // Through the bridge, to the other port of it.
        let frame = frame(200, 5);
        wait_for("the bridge forwards", || {
            send(&mut queue, NetHeader::PLAIN, &frame, HEAD, 60).expect("sent");
            let arrived = other.receive_one().map(|(_, range)| bytes_of(other.view(), &[range]));
            other.release();
            arrived.is_some_and(|bytes| bytes == frame)
        });
    }
}

#[test]
fn napi_delivers_the_same_frames() {
    in_namespace!();
    let mut queue = open_one(&Spec { napi: true, ..spec("t0") });
    let host = Host::new("t0", ETHERTYPE);
    for len in [60, 1514, 9014] {
        send(&mut queue, NetHeader::PLAIN, &frame(len, 1), HEAD, 600).expect("sent");
        assert!(host.receive().1 == frame(len, 1));
    }
}

/// Runs `action` and collects the messages it logs on this thread.
fn log_lines<T>(action: impl FnOnce() -> T) -> (T, Vec<String>) {
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().expect("not poisoned").push(message.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }
    let lines = Lines::default();
    let result = tracing::subscriber::with_default(lines.clone(), action);
    let lines = lines.0.lock().expect("not poisoned").clone();
    (result, lines)
}
