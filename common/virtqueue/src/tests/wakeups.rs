//! Both sides on threads of their own, sleeping whenever they may: nobody sleeps for good.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use super::rig::{Rig, all_features};
use crate::driver::DriverRing;
use crate::{Chain, DeviceRing, Ring, RingFeatures};

const REQUESTS: u32 = if cfg!(miri) { 20 } else { 100_000 };

/// An eventfd of two threads.
#[derive(Default)]
struct Doorbell(AtomicBool);

impl Doorbell {
    fn ring(&self, sleeper: &Thread) {
        self.0.store(true, Ordering::Release);
        sleeper.unpark();
    }

    fn sleep(&self) {
        while !self.0.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

fn serve(rig_view: &memory::MemoryView, ring: &mut Ring, kick: &Doorbell, call: &Doorbell, driver: &Thread) {
    let mut chains = vec![Chain::new(); 16];
    let mut served = 0;
    while served < REQUESTS {
        let count = ring.fetch(16);
        if count == 0 {
            if !ring.arm() {
                kick.sleep();
            }
            ring.suppress();
            continue;
        }
        for chain in &mut chains[..usize::from(count)] {
            ring.next(rig_view, chain).unwrap();
        }
        for chain in &chains[..usize::from(count)] {
            ring.complete(rig_view, chain, 4);
        }
        served += u32::from(count);
        if ring.publish() {
            call.ring(driver);
        }
    }
}

fn drive(driver: &mut DriverRing, rig: &Rig, kick: &Doorbell, call: &Doorbell, device: &Thread) {
    let buffer = rig.buffer(4);
    let (mut sent, mut done) = (0, 0);
    while done < REQUESTS {
        let before = (sent, done);
        while sent < REQUESTS && driver.add(&[], &[buffer], sent).is_ok() {
            sent += 1;
        }
        if driver.publish() {
            kick.ring(device);
        }
        while let Some(used) = driver.pop() {
            assert_eq!((used.cookie, used.len), (done, 4));
            done += 1;
        }
        if before == (sent, done) {
            if !driver.arm() {
                call.sleep();
            }
            driver.suppress();
        }
    }
}

fn nobody_sleeps_for_good(features: RingFeatures) {
    neither_sleeps_for_good(features, Rig::device);
}

/// The same with a device side of the caller's making.
pub fn neither_sleeps_for_good(features: RingFeatures, device: fn(&Rig) -> Ring) {
    let rig = Rig::with_memory(1 << 16, 8, features);
    let (mut driver, mut ring) = (rig.driver(), device(&rig));
    let (kick, call) = (Doorbell::default(), Doorbell::default());
    let table = std::sync::Arc::clone(rig.memory.table());
    let driver_thread = thread::current();
    thread::scope(|scope| {
        let (kick, call) = (&kick, &call);
        let device = scope.spawn(move || {
            let view = memory::MemoryView::new(table);
            serve(&view, &mut ring, kick, call, &driver_thread);
        });
        drive(&mut driver, &rig, kick, call, device.thread());
    });
}

#[test]
fn two_sleeping_sides_of_a_split_ring_never_miss_each_other() {
    all_features().filter(|it| !it.packed && !it.indirect && it.in_order).for_each(nobody_sleeps_for_good);
}

#[test]
fn two_sleeping_sides_of_a_packed_ring_never_miss_each_other() {
    all_features().filter(|it| it.packed && !it.indirect && it.in_order).for_each(nobody_sleeps_for_good);
}
