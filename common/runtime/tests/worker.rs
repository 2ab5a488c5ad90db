//! Whole workers with a toy device over real rings and eventfds.
#![expect(unsafe_code, reason = "the support module polls an eventfd")]

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use memory::{MemoryMap, MemoryTable};
use runtime::attach::{Attached, WorkerPool};
use runtime::cpu::Affinity;
use runtime::deadlines::Deadlines;
use runtime::io::IoKind;
use runtime::policy::{PollPolicy, Preset};
use runtime::worker::{Context, Service, Worker, WorkerConfig, WorkerHandle};
use support::*;
use virtqueue::{Format, RingFeatures};
use vmm_sys_util::eventfd::EventFd;

const KINDS: [IoKind; 2] = [IoKind::Uring, IoKind::Threads];

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_come_back_on_every_format_engine_and_policy() {
    let adaptive = |preset| PollPolicy::Adaptive { preset, max_us: 50 };
    let policies = [
        PollPolicy::Off,
        adaptive(Preset::Kvm),
        adaptive(Preset::Haltpoll),
        adaptive(Preset::QemuAio),
        adaptive(Preset::Fixed),
    ];
    for kind in KINDS {
        for format in [Format::Split, Format::Packed] {
            for policy in policies {
                let worker = worker("echo", kind, policy, None);
                let mut device = attach(&worker, 0, 1);
                let mut guest = Guest::new(format, 64);
                guest.start(&mut device);
                for burst in 1..=32 {
                    (0..burst).for_each(|_| guest.add());
                    guest.publish();
                    guest.finish();
                }
                assert!(device.stop_queue(0).unwrap().is_some());
                worker.join().unwrap();
            }
        }
    }
}

/// Both sides sleep between requests, after pauses that sweep over the time the other side takes to fall asleep.
fn ping_pong(kind: IoKind, format: Format, policy: PollPolicy, event_idx: bool, iterations: u32) {
    let worker = worker("pong", kind, policy, None);
    let mut device = attach(&worker, 0, 1);
    let features = RingFeatures { event_idx, packed: format == Format::Packed, ..RingFeatures::default() };
    let mut guest = Guest::with_features(features, 16);
    guest.start(&mut device);
    for i in 0..iterations {
        for _ in 0..=(i % 3) {
            guest.add();
        }
        guest.publish();
        guest.finish();
        for _ in 0..(i % 97) * 16 {
            std::hint::spin_loop();
        }
    }
    let queue = device.stop_queue(0).unwrap().unwrap();
    assert_eq!(queue.counters.bursts, queue.counters.signals_sent + queue.counters.signals_suppressed);
    worker.join().unwrap();
}

#[test]
fn no_wakeup_is_lost_in_a_hundred_thousand_sleeps_of_both_sides() {
    use Format::{Packed, Split};
    ping_pong(IoKind::Uring, Split, PollPolicy::Off, true, 25_000);
    ping_pong(IoKind::Uring, Packed, PollPolicy::Off, true, 15_000);
    ping_pong(IoKind::Uring, Split, PollPolicy::Off, false, 15_000);
    ping_pong(IoKind::Uring, Split, PollPolicy::Adaptive { preset: Preset::Fixed, max_us: 5 }, true, 20_000);
    ping_pong(IoKind::Threads, Split, PollPolicy::Off, true, 15_000);
    ping_pong(IoKind::Threads, Packed, PollPolicy::default(), false, 10_000);
}

#[test]
fn messages_and_kicks_together_lose_neither() {
    for kind in KINDS {
        let worker = worker("both", kind, PollPolicy::Off, None);
        let mut device = attach(&worker, 0, 1);
        let mut guest = Guest::new(Format::Split, 16);
        guest.start(&mut device);
        let control = thread::spawn(move || {
            // Each call is a message that must be answered.
            (0..5_000).for_each(|_| device.set_log(None).unwrap());
            device
        });
        (0..5_000).for_each(|_| guest.round_trip());
        let mut device = control.join().unwrap();
        assert!(device.stop_queue(0).unwrap().is_some());
    }
}

/// Whoever hears a word says it again.
struct Echoing {
    me: Arc<OnceLock<WorkerHandle<()>>>,
    rounds: Arc<AtomicUsize>,
}

impl Service for Echoing {
    type Message = ();

    fn message(&mut self, word: (), _: &mut Context) {
        if let Some(me) = self.me.get() {
            // Refused when it ends.
            let _ = me.send(word);
        }
    }
    fn poll_once(&mut self, _: &mut Context) -> usize {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        0
    }
    fn completed(&mut self, _: u64, _: i32, _: &mut Context) {}
    fn arm(&mut self) -> bool {
        false
    }
    fn suppress(&mut self) {}
    fn outstanding(&self) -> usize {
        0
    }
}

#[test]
fn messages_without_end_do_not_keep_a_worker_from_its_rings() {
    let (me, rounds) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let service = Echoing { me: me.clone(), rounds: rounds.clone() };
    let worker = Worker::spawn(WorkerConfig::default(), move |_| service).unwrap();
    assert!(me.set(worker.handle()).is_ok());
    worker.send(()).unwrap();
    (0..2).for_each(|_| {
        let before = rounds.load(Ordering::Relaxed);
        eventually("it has served its rings", || rounds.load(Ordering::Relaxed) > before + 100);
    });
    worker.join().unwrap();
}

#[test]
fn a_polling_worker_wants_no_kicks() {
    let worker = worker("always", IoKind::Auto, PollPolicy::Always, None);
    let mut device = attach(&worker, 0, 1);
    for (index, format) in [Format::Split, Format::Packed].into_iter().enumerate() {
        let mut device = attach(&worker, 1 + index as u32, 1);
        let mut guest = Guest::new(format, 64);
        guest.start(&mut device);
        guest.add();
        guest.publish();
        guest.spin();
        for _ in 0..200 {
            guest.add();
            assert!(!guest.publish(), "kicks are off while the worker polls");
            guest.spin();
        }
        let stats = device.stats().next().unwrap().snapshot();
        assert_eq!(stats.requests, 201);
        assert!(stats.kicks_suppressed >= 200, "{stats:?}");
        assert!(stats.kicks <= 1);
        device.stop_queue(0).unwrap().unwrap();
    }
    assert_eq!(device.stop_queue(0).unwrap().map(drop), None, "it was never started");
    assert_eq!(worker.stats().snapshot().parks, 0);
}

#[test]
fn an_adaptive_worker_spins_over_short_gaps_and_sleeps_over_long_ones() {
    let policy = PollPolicy::Adaptive { preset: Preset::Fixed, max_us: 10_000 };
    let worker = worker("adapt", IoKind::Auto, policy, None);
    let mut device = attach(&worker, 0, 1);
    let mut guest = Guest::new(Format::Split, 16);
    guest.start(&mut device);
    for _ in 0..100 {
        guest.add();
        guest.publish();
        guest.spin();
    }
    let busy = worker.stats().snapshot();
    assert!(busy.poll_success >= 1, "{busy:?}");
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(50));
        guest.round_trip();
    }
    let idle = worker.stats().snapshot();
    assert!(idle.parks - busy.parks >= 3, "{idle:?}");
    assert!(idle.parked_ns > busy.parked_ns, "{idle:?}");
}

#[test]
fn work_that_was_there_before_the_start_needs_no_kick() {
    for kind in KINDS {
        let worker = worker("early", kind, PollPolicy::Off, None);
        let mut device = attach(&worker, 0, 1);
        let mut guest = Guest::new(Format::Split, 16);
        guest.add();
        let _no_kick_for_it = guest.driver.publish();
        guest.start(&mut device);
        guest.finish();
    }
}

#[test]
fn a_disabled_ring_is_left_alone_until_it_is_enabled() {
    let worker = worker("off", IoKind::Auto, PollPolicy::Off, None);
    let mut device = attach(&worker, 0, 1);
    let mut guest = Guest::new(Format::Split, 16);
    device.set_memory(guest.memory.table().clone()).unwrap();
    device.start_queue(0, guest.queue()).unwrap();
    guest.add();
    guest.publish();
    guest.kick.write(1).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.reap(), 0);
    device.enable_queue(0, true).unwrap();
    guest.finish();
    device.enable_queue(0, false).unwrap();
    guest.add();
    guest.publish();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.reap(), 0);
    device.enable_queue(0, true).unwrap();
    guest.finish();
}

#[test]
fn a_paused_ring_with_work_does_not_keep_the_worker_awake() {
    let worker = worker("paused", IoKind::Auto, PollPolicy::Off, None);
    let mut device = attach(&worker, 0, 1);
    let mut guest = Guest::new(Format::Split, 16);
    guest.start(&mut device);
    worker.send(Say::Pause(true)).unwrap();
    guest.add();
    guest.publish();
    thread::sleep(Duration::from_millis(50));
    let before = worker.stats().snapshot();
    thread::sleep(Duration::from_millis(100));
    let after = worker.stats().snapshot();
    assert!(after.parks - before.parks <= 2 && after.parks_avoided == before.parks_avoided);
    assert_eq!(guest.reap(), 0);
    worker.send(Say::Pause(false)).unwrap();
    guest.finish();
}

#[test]
fn a_stop_answers_only_when_everything_taken_has_been_completed_and_shown() {
    for kind in KINDS {
        let gate = Arc::new(Gate::default());
        let worker = worker("stop", kind, PollPolicy::Off, Some(gate.clone()));
        let mut device = attach(&worker, 0, 1);
        let mut guest = Guest::new(Format::Split, 16);
        guest.start(&mut device);
        (0..5).for_each(|_| guest.add());
        guest.publish();
        eventually("the requests are taken", || device.stats().next().unwrap().requests.get() == 5);
        let (stopped, stop) = mpsc::channel();
        let stopper = thread::spawn(move || {
            let queue = device.stop_queue(0).unwrap().unwrap();
            stopped.send(()).unwrap();
            queue
        });
        assert!(stop.recv_timeout(Duration::from_millis(50)).is_err(), "five are in flight");
        // What comes now is for the successor.
        guest.add();
        guest.publish();
        guest.kick.write(1).unwrap();
        thread::sleep(Duration::from_millis(20));
        gate.open();
        let queue = stopper.join().unwrap();
        assert_eq!(queue.base(), 5);
        assert_eq!(guest.reap(), 5, "all are visible without another publish");
        assert_eq!(guest.in_flight(), 1);
    }
}

#[test]
fn what_a_ring_counts_is_what_was_published_on_it() {
    let worker = worker("count", KINDS[0], PollPolicy::Off, None);
    let mut device = attach(&worker, 0, 1);
    let guest = Guest::new(Format::Split, 16);
    let stats = device.stats().next().unwrap().clone();
    guest.start(&mut device);
    device.stop_queue(0).unwrap().unwrap();
    let counted = stats.snapshot();
    assert_eq!((counted.completions, counted.interrupts, counted.interrupts_suppressed), (0, 0, 0));
    let mut guest = Guest::new(Format::Split, 16);
    guest.start(&mut device);
    (0..5).for_each(|_| guest.add());
    guest.publish();
    guest.kick.write(1).unwrap();
    eventually("the requests are done", || stats.completions.get() == 5);
    device.stop_queue(0).unwrap().unwrap();
    let counted = stats.snapshot();
    assert_eq!((counted.requests, counted.completions), (5, 5));
    assert_eq!(counted.interrupts + counted.interrupts_suppressed, 1, "one burst");
}

#[test]
fn old_memory_lives_until_its_io_has_ended_and_the_ring_goes_on_in_the_new() {
    for kind in KINDS {
        let gate = Arc::new(Gate::default());
        let worker = worker("mem", kind, PollPolicy::Off, Some(gate.clone()));
        let mut device = attach(&worker, 0, 1);
        let mut guest = Guest::new(Format::Split, 16);
        let mut map = MemoryMap::new();
        let old = map.add(guest.memory.config(), guest.memory.fd().try_clone_to_owned().unwrap()).unwrap();
        device.set_memory(old.clone()).unwrap();
        device.start_queue(0, guest.queue_in(&old)).unwrap();
        device.enable_queue(0, true).unwrap();
        guest.add();
        guest.publish();
        eventually("the request is taken", || device.stats().next().unwrap().requests.get() == 1);

        let mut again = MemoryMap::new();
        let new = again.add(guest.memory.config(), guest.memory.fd().try_clone_to_owned().unwrap()).unwrap();
        device.set_memory(new).unwrap();
        drop(map);
        assert!(Arc::strong_count(&old) > 1, "the I/O in flight holds the old table");
        gate.open();
        guest.finish();
        eventually("the old table is let go", || Arc::strong_count(&old) == 1);
        drop(old);
        guest.round_trip();
        device.disconnected().unwrap();
    }
}

#[test]
fn memory_that_does_not_hold_the_ring_breaks_it_and_only_it() {
    let worker = worker("hole", IoKind::Auto, PollPolicy::Off, None);
    let mut devices = [attach(&worker, 0, 1), attach(&worker, 1, 1)];
    let mut guests = [Guest::new(Format::Split, 16), Guest::new(Format::Packed, 16)];
    for (guest, device) in guests.iter_mut().zip(&mut devices) {
        guest.start(device);
        guest.round_trip();
    }
    devices[0].set_memory(MemoryTable::empty()).unwrap();
    assert!(wait_for(&guests[0].err, Duration::from_secs(5)), "the frontend is told");
    guests[1].round_trip();
    assert!(devices[0].stop_queue(0).unwrap().is_some(), "a broken ring can be taken back");
}

#[test]
fn a_ring_broken_by_its_guest_is_reported_once_and_others_go_on() {
    let worker = worker("hostile", IoKind::Auto, PollPolicy::Off, None);
    let mut device = attach(&worker, 0, 2);
    let (mut good, mut bad) = (Guest::new(Format::Split, 16), Guest::new(Format::Split, 16));
    good.start_as(&mut device, 0);
    let mut other = attach(&worker, 1, 1);
    bad.start(&mut other);
    bad.round_trip();
    // More available than the ring can hold (virtio 1.3 §2.7.13.3).
    let avail = bad.memory.slice(bad.addresses.driver, 4).unwrap();
    avail.write_obj(2, 1000u16).unwrap();
    bad.kick.write(1).unwrap();
    assert!(wait_for(&bad.err, Duration::from_secs(5)));
    bad.kick.write(1).unwrap();
    good.round_trip();
    assert!(!wait_for(&bad.err, Duration::from_millis(20)), "told once");
    assert_eq!(other.stats().next().unwrap().broken.get(), 1);
    assert!(other.stop_queue(0).unwrap().is_some());
}

#[test]
fn a_panic_fails_its_worker_and_nothing_else() {
    for kind in KINDS {
        let healthy = worker("well", kind, PollPolicy::Off, None);
        let gate = Arc::new(Gate::default());
        let sick = worker("sick", kind, PollPolicy::Off, Some(gate.clone()));
        let (mut lost, mut kept) = (attach(&sick, 0, 2), attach(&healthy, 1, 1));
        let (mut guest, mut other) = (Guest::new(Format::Split, 16), Guest::new(Format::Split, 16));
        guest.start(&mut lost);
        other.start(&mut kept);
        // One request is in flight when it happens: its memory must stay until it ends.
        guest.add();
        guest.publish();
        eventually("the request is taken", || lost.stats().next().unwrap().requests.get() == 1);
        let (release, block) = mpsc::channel();
        sick.send(Say::Block(block)).unwrap();
        sick.send(Say::Panic).unwrap();
        let waiting = thread::spawn(move || {
            let error = lost.stop_queue(0).err().unwrap();
            (lost, error)
        });
        thread::sleep(Duration::from_millis(20));
        release.send(()).unwrap();
        assert!(wait_for(&guest.err, Duration::from_secs(5)), "the frontend is told");
        let (mut lost, error) = waiting.join().unwrap();
        assert!(error.to_string().contains("expected in this test"), "{error}");
        assert_eq!(sick.failure(), Some(error.reason.as_str()));
        let second = Guest::new(Format::Split, 16);
        assert!(lost.start_queue(1, second.queue()).is_err());
        assert!(
            wait_for(&second.err, Duration::from_secs(5)),
            "a queue for a failed worker is reported as well"
        );
        assert!(lost.set_memory(MemoryTable::empty()).is_err());
        assert!(lost.disconnected().is_err());
        other.round_trip();
        gate.open();
        assert!(sick.join().is_err());
        healthy.join().unwrap();
    }
}

#[test]
fn a_panic_during_a_drain_ends_the_wait_for_it() {
    let gate = Arc::new(Gate::default());
    let worker = worker("drain", IoKind::Auto, PollPolicy::Off, Some(gate.clone()));
    let mut device = attach(&worker, 0, 1);
    let mut guest = Guest::new(Format::Split, 16);
    guest.start(&mut device);
    guest.add();
    guest.publish();
    eventually("the request is taken", || device.stats().next().unwrap().requests.get() == 1);
    let waiting = thread::spawn(move || device.stop_queue(0).is_err());
    thread::sleep(Duration::from_millis(20));
    worker.send(Say::Panic).unwrap();
    assert!(waiting.join().unwrap(), "although the I/O has not ended");
    gate.open();
}

#[test]
fn a_service_that_cannot_be_built_is_a_failed_worker() {
    let worker = Worker::<Say>::spawn(WorkerConfig::default(), |_| -> Echo {
        panic!("no service: expected in this test")
    })
    .unwrap();
    eventually("it has failed", || worker.failure().is_some());
    eventually("it takes no message", || worker.send(Say::Panic).is_err());
    assert!(worker.join().is_err());
}

#[test]
fn a_cpu_that_does_not_exist_is_an_error_of_the_start() {
    let config = WorkerConfig { cpu: Some(1023), ..WorkerConfig::default() };
    assert!(Worker::<Say>::spawn(config, |_| Echo::new(None)).is_err());
}

#[test]
fn a_pinned_worker_runs_where_it_should_and_its_helpers_anywhere() {
    let cpu = Affinity::current().unwrap().cpus().last().unwrap();
    let config =
        WorkerConfig { name: "pin".into(), cpu: Some(cpu), io: io(IoKind::Auto), ..Default::default() };
    let (sender, report) = mpsc::channel();
    let worker = Worker::<Say>::spawn(config, move |cx| {
        let on = || Affinity::current().unwrap().cpus().collect::<Vec<_>>();
        sender.send(on()).unwrap();
        cx.io
            .offload(0, move || {
                sender.send(on()).unwrap();
                0
            })
            .unwrap();
        cx.io.drain().unwrap();
        Echo::new(None)
    })
    .unwrap();
    assert_eq!(report.recv().unwrap(), [cpu]);
    let all: Vec<_> = Affinity::current().unwrap().cpus().collect();
    assert_eq!(report.recv().unwrap(), all);
    assert_eq!(worker.cpu(), Some(cpu));
}

#[test]
fn a_wish_to_be_woken_comes_true_in_time() {
    let deadlines = Deadlines::start(4, 1_000_000).unwrap();
    for kind in KINDS {
        for table in [None, Some(deadlines.clone())] {
            for policy in [PollPolicy::Off, PollPolicy::default(), PollPolicy::Always] {
                let config = WorkerConfig {
                    name: "wake".into(),
                    poll: policy,
                    io: io(kind),
                    deadlines: table.clone(),
                    ..Default::default()
                };
                let worker = Worker::<Say>::spawn(config, |_| Echo::new(None)).unwrap();
                for ahead in [30, 1, 0].map(Duration::from_millis) {
                    let (sender, report) = mpsc::channel();
                    worker.send(Say::WakeIn(ahead, sender)).unwrap();
                    let took = report.recv_timeout(Duration::from_secs(5)).unwrap();
                    assert!(took >= ahead.mul_f64(0.99) && took < ahead + Duration::from_secs(2), "{took:?}");
                }
            }
        }
    }
}

#[test]
fn the_first_of_two_busy_rings_does_not_starve_the_second() {
    let service = Echo::new(None);
    let served = service.served.clone();
    let config = WorkerConfig { name: "fair".into(), poll: PollPolicy::Off, ..Default::default() };
    let worker = Worker::spawn(config, move |_| service).unwrap();
    let mut guests = [Guest::new(Format::Split, 256), Guest::new(Format::Split, 256)];
    let mut devices = [attach(&worker, 0, 1), attach(&worker, 1, 1)];
    for (guest, device) in guests.iter_mut().zip(&mut devices) {
        (0..128).for_each(|_| guest.add());
        guest.publish();
        device.set_memory(guest.memory.table().clone()).unwrap();
        device.start_queue(0, guest.queue()).unwrap();
    }
    let (release, block) = mpsc::channel();
    worker.send(Say::Block(block)).unwrap();
    thread::scope(|scope| {
        for device in &mut devices {
            scope.spawn(|| device.enable_queue(0, true).unwrap());
        }
        thread::sleep(Duration::from_millis(50));
        release.send(()).unwrap();
    });
    guests.iter_mut().for_each(Guest::finish);
    let order: Vec<u32> = served
        .lock()
        .unwrap()
        .iter()
        .map(|&(device, _, n)| {
            assert!(n <= 64);
            device
        })
        .collect();
    assert_eq!(order.len(), 4, "{order:?}");
    assert_ne!(order[0], order[1], "{order:?}");
    assert_ne!(order[2], order[3], "{order:?}");
    assert_ne!(order[0], order[2], "each round begins with another one: {order:?}");
}

#[test]
fn queues_are_spread_over_the_workers_in_turn() {
    let workers = (0..3).map(|i| worker(&format!("w{i}"), IoKind::Threads, PollPolicy::Off, None)).collect();
    let pool = WorkerPool::new(workers);
    let names = |device: &Attached<Say>, queues| -> Vec<String> {
        (0..queues).map(|index| device.worker_of(index).unwrap().name().to_owned()).collect()
    };
    let (first, second) = (pool.attach(4), pool.attach(1));
    assert_eq!(names(&first, 4), ["w0", "w1", "w2", "w0"]);
    assert_eq!(names(&second, 1), ["w1"]);
    assert_eq!(second.workers().len(), 1, "only workers that have a queue are asked");
    assert_ne!(first.device(), second.device());
    assert!(first.worker_of(4).is_none());
    assert_eq!(pool.stats().len(), 3);
    assert!(pool.join().is_empty());
}

#[test]
fn first_queues_of_devices_with_many_do_not_meet_on_one_worker() {
    let workers = (0..2).map(|i| worker(&format!("w{i}"), IoKind::Threads, PollPolicy::Off, None)).collect();
    let pool: WorkerPool<Say> = WorkerPool::new(workers);
    let firsts: Vec<_> = (0..3).map(|_| pool.attach(16).worker_of(0).unwrap().name().to_owned()).collect();
    assert_eq!(firsts, ["w0", "w1", "w0"]);
    assert!(pool.join().is_empty());
}

#[test]
fn queues_in_pairs_meet_the_same_pair_of_other_devices() {
    let workers = (0..2).map(|i| worker(&format!("w{i}"), IoKind::Threads, PollPolicy::Off, None)).collect();
    let pool: WorkerPool<Say> = WorkerPool::new(workers);
    let names = |device: &Attached<Say>, queues| -> Vec<String> {
        (0..queues).map(|index| device.worker_of(index).unwrap().name().to_owned()).collect()
    };
    let (first, second) = (pool.attach_pairs(7), pool.attach_pairs(2));
    assert_eq!(names(&first, 7), ["w0", "w0", "w1", "w1", "w0", "w0", "w1"]);
    assert_eq!(names(&second, 2), ["w0", "w0"]);
    assert_eq!(second.workers().len(), 1);
    assert_ne!(first.device(), second.device());
    assert!(pool.join().is_empty());
}

#[test]
fn queues_of_one_device_on_two_workers_all_work_and_all_stop_at_once() {
    let pool = WorkerPool::new(
        (0..2).map(|i| worker(&format!("m{i}"), IoKind::Auto, PollPolicy::Off, None)).collect(),
    );
    let mut device = pool.attach(4);
    let mut guest = Guest::new(Format::Split, 16);
    // One guest's memory; the other rings are queues of other guests, which the toy does not mind.
    let mut others = [Guest::new(Format::Split, 16), Guest::new(Format::Packed, 16)];
    guest.start_as(&mut device, 0);
    guest.round_trip();
    assert_eq!(device.running(), 1);
    for (index, other) in others.iter_mut().enumerate() {
        let mut second = pool.attach(2);
        other.start_as(&mut second, index as u16);
        other.round_trip();
        second.disconnected().unwrap();
        assert_eq!(second.running(), 0);
    }
    guest.round_trip();
    device.disconnected().unwrap();
    assert_eq!(device.running(), 0);
    assert!(pool.join().is_empty());
}

#[test]
fn a_stopped_worker_finishes_its_io_first() {
    let gate = Arc::new(Gate::default());
    let worker = worker("last", IoKind::Auto, PollPolicy::Off, Some(gate.clone()));
    let mut device = attach(&worker, 0, 1);
    let mut guest = Guest::new(Format::Split, 16);
    guest.start(&mut device);
    guest.add();
    guest.publish();
    eventually("the request is taken", || device.stats().next().unwrap().requests.get() == 1);
    worker.stop();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.reap(), 0);
    gate.open();
    guest.finish();
    worker.join().unwrap();
    assert!(device.stop_queue(0).is_err(), "nobody is there any more");
}

#[test]
fn a_kick_that_is_no_event_breaks_its_ring_and_burns_no_cpu() {
    for kind in KINDS {
        let name = if kind == IoKind::Uring { "nokick-u" } else { "nokick-t" };
        let worker = worker(name, kind, PollPolicy::Off, None);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        let file = tempfile::tempfile().unwrap();
        for (device, kick) in [OwnedFd::from(reader), OwnedFd::from(file)].into_iter().enumerate() {
            let mut device = attach(&worker, device as u32, 1);
            let guest = Guest::new(Format::Split, 16);
            device.set_memory(guest.memory.table().clone()).unwrap();
            let mut queue = guest.queue();
            queue.set_kick(Some(kick));
            device.start_queue(0, queue).unwrap();
            device.enable_queue(0, true).unwrap();
            assert!(wait_for(&guest.err, Duration::from_secs(5)), "the frontend is told");
            std::mem::forget(device);
        }
        let before = ticks_of(name);
        thread::sleep(Duration::from_secs(1));
        assert!(ticks_of(name) - before <= 2, "{kind:?}");
        let mut healthy = attach(&worker, 9, 1);
        let mut guest = Guest::new(Format::Split, 16);
        guest.start(&mut healthy);
        guest.round_trip();
    }
}

#[test]
fn a_ring_without_kicks_is_polled() {
    for kind in KINDS {
        let worker = worker("nofd", kind, PollPolicy::Off, None);
        let mut device = attach(&worker, 0, 1);
        let mut guest = Guest::new(Format::Split, 16);
        device.set_memory(guest.memory.table().clone()).unwrap();
        let mut queue = guest.queue();
        queue.set_kick(None);
        device.start_queue(0, queue).unwrap();
        device.enable_queue(0, true).unwrap();
        for _ in 0..100 {
            guest.add();
            let _nobody_to_kick = guest.driver.publish();
            guest.spin();
        }
        device.stop_queue(0).unwrap().unwrap();
        let parks = || worker.stats().parks.get();
        let before = parks();
        eventually("the worker sleeps again", || parks() > before || worker.stats().parks_avoided.get() > 0);
    }
}

#[test]
fn interrupts_the_driver_does_not_want_are_not_sent() {
    let worker = worker("quiet", IoKind::Auto, PollPolicy::Off, None);
    let mut device = attach(&worker, 0, 1);
    let mut guest = Guest::with_features(RingFeatures::default(), 16);
    guest.start(&mut device);
    guest.driver.suppress();
    for _ in 0..11 {
        guest.add();
        guest.publish();
        guest.spin();
    }
    let stats = device.stats().next().unwrap().snapshot();
    // A ring signals once after its start, whatever the driver says: a predecessor's interrupt may have been lost.
    assert_eq!((stats.interrupts, stats.interrupts_suppressed), (1, 10));
    assert_eq!(guest.call.read().unwrap(), 1, "the eventfd was written once");
}

/// Has whoever writes the eventfd next wait for a reader. Its flags are shared with all its copies, at any time.
fn fill(event: &EventFd) {
    // SAFETY: plain integers.
    assert_eq!(unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    event.write(u64::MAX - 1).unwrap();
}

#[test]
fn a_call_that_is_full_and_blocks_holds_nobody_else_up() {
    for kind in KINDS {
        // A worker that always polls is never seen to wake up.
        for policy in [PollPolicy::Off, PollPolicy::Always] {
            held_up(kind, policy);
        }
    }
}

fn held_up(kind: IoKind, policy: PollPolicy) {
    let pool = WorkerPool::new(vec![worker("held", kind, policy, None)]);
    let (mut hostile, mut harmless) = (pool.attach(1), pool.attach(1));
    let (mut bad, mut good) = (Guest::new(Format::Split, 8), Guest::new(Format::Packed, 8));
    good.start(&mut harmless);
    bad.start(&mut hostile);
    fill(&bad.call);
    bad.add();
    bad.publish();
    good.round_trip();
    assert!(wait_for(&bad.err, Duration::from_secs(10)), "the ring is broken");
    let stats = hostile.stats().next().unwrap().clone();
    eventually("the broken ring is counted", || stats.broken.get() == 1);
    assert!(hostile.stop_queue(0).unwrap().unwrap().is_deaf());
    pool.join();
}

#[test]
fn a_call_that_is_full_when_its_ring_starts_holds_nobody_else_up() {
    let pool = WorkerPool::new(vec![worker("early", IoKind::Auto, PollPolicy::Off, None)]);
    let (mut hostile, mut harmless) = (pool.attach(1), pool.attach(1));
    let (bad, mut good) = (Guest::new(Format::Split, 8), Guest::new(Format::Packed, 8));
    good.start(&mut harmless);
    hostile.set_memory(bad.memory.table().clone()).unwrap();
    let queue = bad.queue();
    fill(&bad.call);
    hostile.start_queue(0, queue).unwrap();
    assert!(wait_for(&bad.err, Duration::from_secs(10)), "the ring is broken");
    good.round_trip();
    assert!(hostile.stop_queue(0).unwrap().unwrap().is_deaf());
    pool.join();
}

#[test]
fn a_device_that_held_its_worker_up_cannot_do_so_again_at_once() {
    let pool = WorkerPool::new(vec![worker("again", IoKind::Auto, PollPolicy::Off, None)]);
    let (mut hostile, mut harmless) = (pool.attach(1), pool.attach(1));
    let (mut bad, mut good) = (Guest::new(Format::Split, 8), Guest::new(Format::Split, 8));
    good.start(&mut harmless);
    bad.start(&mut hostile);
    fill(&bad.call);
    bad.add();
    bad.publish();
    good.round_trip();
    assert!(hostile.stop_queue(0).unwrap().unwrap().is_deaf());
    let start = Instant::now();
    for _ in 0..20 {
        let _ = bad.call.read();
        let queue = bad.queue();
        fill(&bad.call);
        hostile.start_queue(0, queue).unwrap();
        hostile.enable_queue(0, true).unwrap();
        bad.kick.write(1).unwrap();
        good.round_trip();
        assert!(hostile.stop_queue(0).unwrap().is_some());
    }
    assert!(start.elapsed() < Duration::from_secs(1), "held up again");
    pool.join();
}
