//! Every interleaving of workers that share tasks and go to sleep, explored by loom. The code under test is
//! `compress_offload::steal::roster`, the very module the workers run; shelves and bells are models. A wake-up that is lost
//! shows as a deadlock.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p compress-offload --release --test loom
//! ```
#![cfg(loom)]

use compress_offload::steal::roster::Roster;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// An eventfd watched edge-triggered: a ring is remembered until the next wait.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// A shelf reduced to how many tasks are on it.
#[derive(Default)]
struct Shelf(AtomicUsize);

impl Shelf {
    fn put(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn len(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn take(&self) -> bool {
        let one_less = |tasks: usize| tasks.checked_sub(1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
    }
}

struct Model {
    roster: Roster,
    shelf: Shelf,
    bells: [Bell; 3],
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self { roster: Roster::new(), shelf: Shelf::default(), bells: Default::default() })
    }

    /// An owner puts a task on the shelf, which it will never look at itself.
    fn offer(&self) {
        self.shelf.put();
        self.roster.wake(0, self.shelf.len(), |seat| self.bells[seat].ring());
    }

    /// A thief gets a task, asleep until there is one.
    fn steal(&self, seat: usize) {
        while !self.shelf.take() {
            self.roster.lie_down(seat);
            if self.shelf.len() == 0 {
                self.bells[seat].wait();
            }
            self.roster.get_up(seat);
        }
        // As `Member::steal` does for the rest.
        let left = self.shelf.len();
        if left > 0 {
            self.roster.wake(seat, left, |seat| self.bells[seat].ring());
        }
    }
}

#[test]
fn a_thief_never_sleeps_through_a_task() {
    loom::model(|| {
        let model = Model::new();
        let thief = {
            let model = model.clone();
            thread::spawn(move || model.steal(1))
        };
        model.offer();
        thief.join().unwrap();
    });
}

#[test]
fn two_thieves_find_two_tasks() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let model = Model::new();
        let thieves = [1, 2].map(|seat| {
            let model = model.clone();
            thread::spawn(move || model.steal(seat))
        });
        model.offer();
        model.offer();
        thieves.into_iter().for_each(|thief| thief.join().unwrap());
    });
}
