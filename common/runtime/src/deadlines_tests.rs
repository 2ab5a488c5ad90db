//! The table under a fake clock, and the housekeeper under the real one.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

/// A step of the fake world.
#[derive(Clone, Debug)]
enum Step {
    /// The owner of a slot arms it, this long from now.
    Arm(usize, u64),
    Disarm(usize),
    /// Time passes; the housekeeper runs whenever its timer goes off.
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..4, 0u64..5_000).prop_map(|(slot, ahead)| Step::Arm(slot, ahead)),
        1 => (0usize..4).prop_map(Step::Disarm),
        4 => (0u64..2_000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..100)
}

/// Table, housekeeper and clock in one thread.
struct World {
    table: Table,
    now: u64,
    timer: u64,
    /// What should fire, by slot.
    wanted: [Option<u64>; 4],
    wakeups: u64,
}

impl World {
    fn new(period: u64) -> Self {
        Self { table: Table::new(4, period), now: 1, timer: NEVER, wanted: [None; 4], wakeups: 0 }
    }

    fn run_housekeeper(&mut self) -> Result<(), TestCaseError> {
        let mut fired = Vec::new();
        self.table.fire(self.now, |slot| fired.push(slot));
        for slot in fired {
            let deadline = self.wanted[slot].take().expect("only what was armed fires, once");
            prop_assert!(self.now >= deadline, "{deadline} fired early, at {}", self.now);
            prop_assert!(self.now - deadline <= self.table.period, "{deadline} fired late, at {}", self.now);
        }
        self.timer = self.table.plan();
        self.wakeups += 1;
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arm(slot, ahead) => {
                self.wanted[slot] = Some(self.now + ahead);
                if self.table.arm(slot, self.now + ahead) {
                    self.run_housekeeper()?;
                }
            }
            Step::Disarm(slot) => {
                self.wanted[slot] = None;
                self.table.disarm(slot);
            }
            Step::Pass(time) => {
                let end = self.now + time;
                while self.timer <= end {
                    self.now = self.now.max(self.timer);
                    self.run_housekeeper()?;
                }
                self.now = end;
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_stored_deadline_fires_within_a_period(period in 1u64..1_000, steps in steps()) {
        let mut world = World::new(period);
        for step in steps {
            world.step(step)?;
        }
        world.step(Step::Pass(10_000))?;
        prop_assert_eq!(world.wanted, [None; 4], "everything has fired");
        prop_assert_eq!(world.timer, NEVER, "and nothing is planned");
    }
}

#[test]
fn arming_later_than_the_timer_needs_no_wakeup() {
    let mut world = World::new(100);
    world.step(Step::Arm(0, 500)).unwrap();
    assert_eq!(world.wakeups, 1);
    for ahead in [501, 1_000, 100_000] {
        world.step(Step::Arm(1, ahead)).unwrap();
        world.step(Step::Arm(0, 500)).unwrap();
    }
    assert_eq!(world.wakeups, 1, "later deadlines are only stores");
    world.step(Step::Arm(2, 100)).unwrap();
    assert_eq!(world.wakeups, 2);
}

#[test]
fn many_deadlines_of_one_period_are_one_wakeup() {
    let mut world = World::new(1_000);
    for slot in 0..4 {
        world.step(Step::Arm(slot, 5_100 + 100 * slot as u64)).unwrap();
    }
    let armed = world.wakeups;
    world.step(Step::Pass(10_000)).unwrap();
    assert_eq!(world.wakeups, armed + 1);
    assert_eq!(world.wanted, [None; 4]);
}

#[test]
fn the_end_of_time_is_no_overflow() {
    let table = Table::new(1, 1_000);
    assert!(!table.arm(0, NEVER));
    assert!(!table.arm(0, NEVER - 1), "no multiple of the period follows it");
    assert_eq!(table.plan(), NEVER);
}

struct Report(Sender<u64>);

impl Wake for Report {
    fn wake(&self) {
        self.0.send(cpu::monotonic_ns()).unwrap();
    }
}

#[test]
fn the_housekeeper_wakes_the_owner_once_and_never_early() {
    let deadlines = Deadlines::start(2, MS).unwrap();
    let (sender, woken) = channel();
    let slot = deadlines.slot(Arc::new(Report(sender))).unwrap();
    for ahead in [30 * MS, 5 * MS, 0] {
        let deadline = cpu::monotonic_ns() + ahead;
        slot.arm(deadline);
        let at = woken.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(at >= deadline);
    }
    slot.arm(cpu::monotonic_ns() + 20 * MS);
    slot.disarm();
    assert!(woken.recv_timeout(Duration::from_millis(60)).is_err(), "disarmed");
}

#[test]
fn a_sooner_deadline_overtakes_the_timer() {
    let deadlines = Deadlines::start(2, MS).unwrap();
    let (sender, woken) = channel();
    let far = deadlines.slot(Arc::new(Report(sender.clone()))).unwrap();
    let near = deadlines.slot(Arc::new(Report(sender))).unwrap();
    far.arm(cpu::monotonic_ns() + 3_600_000 * MS);
    let start = cpu::monotonic_ns();
    near.arm(start + 10 * MS);
    let at = woken.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!((start + 10 * MS..start + 5_000 * MS).contains(&at));
}

#[test]
fn slots_are_limited_and_given_back() {
    let deadlines = Deadlines::start(1, MS).unwrap();
    let (sender, _woken) = channel();
    let wake: Arc<dyn Wake> = Arc::new(Report(sender));
    let slot = deadlines.slot(wake.clone()).unwrap();
    assert!(deadlines.slot(wake.clone()).is_none());
    drop(slot);
    assert!(deadlines.slot(wake).is_some());
}
