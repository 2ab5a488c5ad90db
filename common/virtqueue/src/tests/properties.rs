//! Random runs of both sides: every request comes back once, as it was, and nobody sleeps through work.

use proptest::prelude::*;

use super::rig::{Rig, TABLE, all_features};
use crate::driver::{DriverRing, Segment, Used};
use crate::{Chain, DeviceRing, Ring, RingFeatures};

#[derive(Clone, Debug)]
enum Step {
    Add { readable: Vec<u32>, writable: Vec<u32>, indirect: bool },
    Kick,
    Take(u16),
    PutBack,
    Complete { which: prop::sample::Index, share: u8 },
    Publish,
    Pop,
    DeviceArm,
    DeviceSuppress,
    DriverArm,
    DriverSuppress,
}

fn lengths() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![4 => 1u32..600, 1 => Just(0)], 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (lengths(), lengths(), any::<bool>())
            .prop_map(|(readable, writable, indirect)| Step::Add { readable, writable, indirect }),
        4 => Just(Step::Kick),
        5 => (1u16..6).prop_map(Step::Take),
        1 => Just(Step::PutBack),
        6 => (any::<prop::sample::Index>(), any::<u8>())
            .prop_map(|(which, share)| Step::Complete { which, share }),
        4 => Just(Step::Publish),
        6 => Just(Step::Pop),
        2 => Just(Step::DeviceArm),
        1 => Just(Step::DeviceSuppress),
        2 => Just(Step::DriverArm),
        1 => Just(Step::DriverSuppress),
    ]
}

/// A request on its way.
struct Sent {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// What the device said it wrote, once it did.
    written: Option<u32>,
    popped: bool,
}

/// Both sides and what must be true of them.
struct World {
    rig: Rig,
    driver: DriverRing,
    device: Ring,
    sent: Vec<Sent>,
    /// Requests in the order taken, with their chains while not completed.
    taken: Vec<(usize, Chain)>,
    next_to_take: usize,
    device_sleeps: bool,
    device_suppressed: bool,
    driver_sleeps: bool,
    driver_suppressed: bool,
    decided: bool,
    unkicked: usize,
}

impl World {
    fn new(features: RingFeatures, size: u16, base: u32) -> Self {
        let rig = Rig::new(size, features);
        let mut driver = rig.driver();
        driver.start_at(base).unwrap();
        let device = Ring::new(rig.setup(base)).unwrap();
        Self {
            rig,
            driver,
            device,
            sent: Vec::new(),
            taken: Vec::new(),
            next_to_take: 0,
            device_sleeps: false,
            device_suppressed: false,
            driver_sleeps: false,
            driver_suppressed: false,
            decided: false,
            unkicked: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add { readable, writable, indirect } => self.add(&readable, &writable, indirect),
            Step::Kick => self.kick(),
            Step::Take(max) => self.take(max),
            Step::PutBack => self.put_back(),
            Step::Complete { which, share } if !self.taken.is_empty() => {
                self.complete(which.index(self.taken.len()), share)
            }
            Step::Complete { .. } => {}
            Step::Publish => self.publish(),
            Step::Pop => self.pop(),
            Step::DeviceArm => {
                self.device_sleeps = !self.device.arm();
                self.device_suppressed = false;
            }
            Step::DeviceSuppress => {
                self.device.suppress();
                (self.device_sleeps, self.device_suppressed) = (false, true);
            }
            Step::DriverArm => {
                self.driver_sleeps = !self.driver.arm();
                self.driver_suppressed = false;
            }
            Step::DriverSuppress => {
                self.driver.suppress();
                (self.driver_sleeps, self.driver_suppressed) = (false, true);
            }
        }
        assert_eq!(self.device.broken(), None);
        assert!(!self.driver.broken());
    }

    fn add(&mut self, readable: &[u32], writable: &[u32], indirect: bool) {
        let buffers = |lens: &[u32]| lens.iter().map(|&len| self.rig.buffer(len)).collect::<Vec<Segment>>();
        let (readable, writable) = (buffers(readable), buffers(writable));
        let (count, free) = (readable.len() + writable.len(), usize::from(self.driver.free()));
        let indirect = indirect && self.rig.features.indirect;
        let cookie = self.sent.len() as u32;
        let added = if indirect {
            self.driver.add_indirect(&readable, &writable, cookie)
        } else {
            self.driver.add(&readable, &writable, cookie)
        };
        let fits = if indirect { count <= usize::from(TABLE) && free > 0 } else { count <= free };
        assert_eq!(added.is_ok(), fits && count > 0);
        if added.is_ok() {
            let full = |segments: Vec<Segment>| segments.into_iter().filter(|it| it.len > 0).collect();
            let (readable, writable) = (full(readable), full(writable));
            self.sent.push(Sent { readable, writable, written: None, popped: false });
            self.unkicked += 1;
        }
    }

    fn kick(&mut self) {
        let kicked = self.driver.publish();
        if self.unkicked == 0 {
            assert!(!kicked, "a kick for nothing");
            return;
        }
        self.unkicked = 0;
        assert!(kicked || !self.device_sleeps, "the device sleeps through a request");
        assert!(!(kicked && self.device_suppressed), "a kick that was not wanted");
        self.device_sleeps &= !kicked;
    }

    fn take(&mut self, max: u16) {
        let visible = self.sent.len() - self.unkicked - self.next_to_take;
        let fetched = self.device.fetch(max);
        assert_eq!(usize::from(fetched), visible.min(usize::from(max)));
        for _ in 0..fetched {
            let chain = self.rig.next(&mut self.device);
            let sent = &self.sent[self.next_to_take];
            assert_eq!(self.rig.segments(&chain), (sent.readable.clone(), sent.writable.clone()));
            self.taken.push((self.next_to_take, chain));
            self.next_to_take += 1;
        }
        assert_eq!(usize::from(self.device.in_flight()), self.taken.len());
    }

    /// Only the newest chain may go back, and only while it is not completed.
    fn put_back(&mut self) {
        let Some((request, chain)) = self.taken.iter().max_by_key(|(request, _)| *request) else { return };
        let newest = *request + 1 == self.next_to_take;
        assert_eq!(self.device.unfetch(chain), newest);
        if newest {
            self.next_to_take -= 1;
            let request = *request;
            self.taken.retain(|(taken, _)| *taken != request);
        }
    }

    fn complete(&mut self, place: usize, share: u8) {
        let (request, chain) = self.taken.swap_remove(place);
        let written = (chain.writable_len() * u64::from(share) / 255) as u32;
        self.device.complete(&self.rig.view, &chain, written);
        self.sent[request].written = Some(written);
    }

    fn publish(&mut self) {
        let pending = self.device.unpublished();
        let wanted = self.device.publish();
        if pending == 0 {
            assert!(!wanted, "an interrupt for nothing");
            return;
        }
        assert!(wanted || !self.driver_sleeps, "the driver sleeps through a completion");
        assert!(!(wanted && self.driver_suppressed && self.decided), "an interrupt that was not wanted");
        self.decided = true;
        self.driver_sleeps &= !wanted;
    }

    fn pop(&mut self) {
        let Some(Used { cookie, len }) = self.driver.pop() else { return };
        let in_order = self.sent.iter().position(|sent| !sent.popped) == Some(cookie as usize);
        let sent = &mut self.sent[cookie as usize];
        assert!(!std::mem::replace(&mut sent.popped, true), "request {cookie} came back twice");
        assert_eq!(Some(len), sent.written, "request {cookie} came back with another length");
        assert!(in_order || !self.rig.features.in_order);
    }

    /// Lets everything come back.
    fn finish(&mut self) {
        self.kick();
        for _ in 0..2 * self.sent.len() + 1 {
            self.take(u16::MAX);
            while !self.taken.is_empty() {
                self.complete(self.taken.len() - 1, 255);
            }
            self.publish();
            (0..self.sent.len()).for_each(|_| self.pop());
        }
        assert!(self.sent.iter().all(|sent| sent.popped), "a request was lost");
        assert_eq!(self.driver.free(), self.rig.size);
        assert_eq!(self.device.in_flight(), 0);
        assert_eq!(self.device.base(), self.expected_base());
    }

    /// After a drain both positions of a packed ring are the same.
    fn expected_base(&self) -> u32 {
        self.driver.base_for_restart()
    }
}

/// Sizes of the format, and a base close to the wrap-around.
fn start(features: RingFeatures, pick: u16) -> (u16, u32) {
    if features.packed {
        let size = [1, 2, 3, 5, 7, 16][usize::from(pick) % 6];
        let at = u32::from((pick / 6) % size) | u32::from(pick & 64) << 9;
        // Used (0, 0) means "as avail".
        (size, at | at << 16)
    } else {
        ([1, 2, 4, 8, 16][usize::from(pick) % 5], u32::from(65535 - pick % 40))
    }
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 2 } else { 512 };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_request_comes_back_once_and_nobody_sleeps_through_it(
        features in 0usize..16,
        pick in any::<u16>(),
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 40 } else { 250 }),
    ) {
        let features = all_features().nth(features).unwrap();
        let (size, base) = start(features, pick);
        let mut world = World::new(features, size, base);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}

#[test]
fn the_split_indices_wrap_many_times_without_losing_a_request() {
    wrap_many_times(super::rig::SPLIT, 4);
}

#[test]
fn the_packed_wrap_counters_flip_many_times_without_losing_a_request() {
    wrap_many_times(super::rig::PACKED, 5);
}

/// More requests than 2^16, in bursts of all sizes.
fn wrap_many_times(format: RingFeatures, size: u16) {
    let rounds = if cfg!(miri) { 30u32 } else { 70_000 };
    let rig = Rig::new(size, RingFeatures { event_idx: true, ..format });
    let (mut driver, mut device) = (rig.driver(), rig.device());
    let buffer = rig.buffer(8);
    let (mut sent, mut done) = (0u32, 0u32);
    let mut chain = Chain::new();
    for round in 0..rounds {
        for _ in 0..round % u32::from(size) + 1 {
            if driver.add(&[buffer], &[], sent).is_ok() {
                sent += 1;
            }
        }
        let _ = driver.publish();
        for _ in 0..device.fetch(size) {
            device.next(&rig.view, &mut chain).unwrap();
            device.complete(&rig.view, &chain, 0);
        }
        let _ = device.publish();
        while let Some(used) = driver.pop() {
            assert_eq!(used.cookie, done);
            done += 1;
        }
    }
    assert_eq!((done, driver.free()), (sent, size));
}
