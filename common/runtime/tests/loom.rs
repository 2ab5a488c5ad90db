//! Every interleaving of the parking protocol, explored by loom. The code under test is `runtime::doorbell`, the very
//! module the workers run; only the bell is a model. A lost wake-up shows as a deadlock.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p runtime --release --test loom
//! ```
#![cfg(loom)]

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use runtime::doorbell::{Bell, Doorbell};

/// An eventfd watched edge-triggered: a ring is remembered until the next wait.
#[derive(Default)]
struct ModelBell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl ModelBell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Bell for ModelBell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// A ring reduced to what parking needs: the driver's index and the device's wish for kicks.
struct ModelRing {
    available: AtomicUsize,
    kicks_wanted: AtomicBool,
}

impl ModelRing {
    fn new() -> Self {
        Self { available: AtomicUsize::new(0), kicks_wanted: AtomicBool::new(false) }
    }

    /// Driver: publish, fence, look whether a kick is wanted (virtio 1.3 §2.7.13.4).
    fn add(&self, kick: &impl Bell) {
        self.available.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.kicks_wanted.load(Ordering::Relaxed) {
            kick.ring();
        }
    }

    /// Device: kicks on, fence, look again.
    fn arm(&self, seen: usize) -> bool {
        self.kicks_wanted.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.available.load(Ordering::Acquire) != seen
    }

    fn suppress(&self) {
        self.kicks_wanted.store(false, Ordering::Relaxed);
    }
}

/// Runs the worker's loop until `messages` messages and `requests` requests have arrived.
fn work(
    doorbell: &Doorbell<ModelBell>,
    queue: &Mutex<usize>,
    ring: &ModelRing,
    messages: usize,
    requests: usize,
) {
    let (mut received, mut seen) = (0, 0);
    while received < messages || seen < requests {
        if doorbell.take() {
            received += std::mem::take(&mut *queue.lock().unwrap());
        }
        let available = ring.available.load(Ordering::Acquire);
        if available != seen {
            seen = available;
        }
        if received < messages || seen < requests {
            doorbell.sleep(|| ring.arm(seen), || doorbell.bell().wait());
            ring.suppress();
        }
    }
}

fn send(doorbell: &Doorbell<ModelBell>, queue: &Mutex<usize>) {
    *queue.lock().unwrap() += 1;
    doorbell.ring();
}

#[test]
fn no_message_is_slept_through() {
    loom::model(|| {
        let doorbell = Arc::new(Doorbell::new(ModelBell::default()));
        let queue = Arc::new(Mutex::new(0));
        let control = {
            let (doorbell, queue) = (doorbell.clone(), queue.clone());
            thread::spawn(move || {
                send(&doorbell, &queue);
                send(&doorbell, &queue);
            })
        };
        work(&doorbell, &queue, &ModelRing::new(), 2, 0);
        control.join().unwrap();
    });
}

#[test]
fn no_message_of_two_senders_is_slept_through() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let doorbell = Arc::new(Doorbell::new(ModelBell::default()));
        let queue = Arc::new(Mutex::new(0));
        let senders = [(); 2].map(|()| {
            let (doorbell, queue) = (doorbell.clone(), queue.clone());
            thread::spawn(move || send(&doorbell, &queue))
        });
        work(&doorbell, &queue, &ModelRing::new(), 2, 0);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn no_kick_is_slept_through() {
    loom::model(|| {
        let doorbell = Arc::new(Doorbell::new(ModelBell::default()));
        let ring = Arc::new(ModelRing::new());
        let driver = {
            let (doorbell, ring) = (doorbell.clone(), ring.clone());
            thread::spawn(move || {
                ring.add(doorbell.bell());
                ring.add(doorbell.bell());
            })
        };
        work(&doorbell, &Mutex::new(0), &ring, 0, 2);
        driver.join().unwrap();
    });
}

#[test]
fn neither_of_a_kick_and_a_message_hides_the_other() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let doorbell = Arc::new(Doorbell::new(ModelBell::default()));
        let queue = Arc::new(Mutex::new(0));
        let ring = Arc::new(ModelRing::new());
        let control = {
            let (doorbell, queue) = (doorbell.clone(), queue.clone());
            thread::spawn(move || send(&doorbell, &queue))
        };
        let driver = {
            let (doorbell, ring) = (doorbell.clone(), ring.clone());
            thread::spawn(move || ring.add(doorbell.bell()))
        };
        work(&doorbell, &queue, &ring, 1, 1);
        control.join().unwrap();
        driver.join().unwrap();
    });
}
