//! Idle means no CPU time at all. Alone in its process, so that no other test wakes its threads.
#![expect(unsafe_code, reason = "the support module polls an eventfd")]

mod support;

use std::thread;
use std::time::Duration;

use runtime::deadlines::Deadlines;
use runtime::io::IoKind;
use runtime::policy::PollPolicy;
use runtime::worker::{Worker, WorkerConfig};
use support::*;
use virtqueue::Format;

/// Ticks used by threads of this name within two seconds.
fn ticks_in_two_seconds(name: &str) -> u64 {
    let before = ticks_of(name);
    thread::sleep(Duration::from_secs(2));
    ticks_of(name) - before
}

#[test]
fn idle_workers_and_an_idle_housekeeper_use_no_tick_and_still_answer() {
    let deadlines = Deadlines::start(8, 1_000_000).unwrap();
    let mut devices = Vec::new();
    let mut workers = Vec::new();
    for (i, kind) in [IoKind::Uring, IoKind::Threads].into_iter().enumerate() {
        let config = WorkerConfig {
            name: format!("idle{i}"),
            io: kind.into(),
            deadlines: Some(deadlines.clone()),
            ..WorkerConfig::default()
        };
        let worker = Worker::spawn(config, |_| Echo::new(None)).unwrap();
        for device in 0..50 {
            let mut device = attach(&worker, device, 1);
            let mut guest = Guest::new(Format::Split, 16);
            guest.start(&mut device);
            guest.round_trip();
            devices.push((device, guest));
        }
        workers.push(worker);
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(ticks_in_two_seconds("idle"), 0, "50 idle rings on each worker");
    assert_eq!(ticks_of("deadlines"), 0);
    for (_, guest) in &mut devices {
        guest.round_trip();
    }

    // The same counter does see a worker that spins, and sees it stop.
    workers[0].set_poll(PollPolicy::Always).unwrap();
    assert!(ticks_in_two_seconds("idle0") > 20, "a polling worker uses its CPU");
    workers[0].set_poll(PollPolicy::Off).unwrap();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(ticks_in_two_seconds("idle0"), 0);
    devices.iter_mut().for_each(|(_, guest)| guest.round_trip());
}
