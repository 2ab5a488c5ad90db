//! The device is killed before every single store, and its successor before every one of its first: no request is lost,
//! none comes back twice, and those in flight are resubmitted in the order they were taken.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::rig::{Rig, all_features};
use crate::driver::{DriverRing, Segment};
use crate::shared::fuse;
use crate::{Chain, DeviceRing, Ring, RingFeatures};

/// Kill points tried in the successor, after each one in the first device.
const SUCCESSOR_STORES: u32 = if cfg!(miri) { 1 } else { 36 };

/// The guest: sends requests that carry their cookie and checks what comes back.
struct Guest<'a> {
    rig: &'a Rig,
    driver: DriverRing,
    buffers: Vec<(Segment, Segment)>,
    /// Only chains of one descriptor.
    short: bool,
    sent: u32,
    /// How often each request came back.
    back: Vec<u32>,
}

impl<'a> Guest<'a> {
    fn new(rig: &'a Rig, short: bool) -> Self {
        let buffers = (0..64).map(|_| (rig.buffer(4), rig.buffer(300))).collect();
        Self { rig, driver: rig.driver(), buffers, short, sent: 0, back: Vec::new() }
    }

    /// Chains of one, two and three descriptors, and tables.
    fn send(&mut self) {
        let (name, data) = self.buffers[self.sent as usize % self.buffers.len()];
        self.rig.memory.slice(name.addr, 4).unwrap().write(0, &self.sent.to_le_bytes());
        let half = Segment { len: 150, ..data };
        let rest = Segment { addr: memory::GuestAddr(data.addr.0 + 150), len: 150 };
        let (one, two) = ([data], [half, rest]);
        let shape = if self.short { 2 } else { self.sent as usize % 3 };
        let writable: &[Segment] = [&one[..], &two[..], &[]][shape];
        let added = if self.rig.features.indirect && self.sent.is_multiple_of(2) {
            self.driver.add_indirect(&[name], writable, self.sent)
        } else {
            self.driver.add(&[name], writable, self.sent)
        };
        if added.is_ok() {
            self.sent += 1;
            self.back.push(0);
        }
    }

    fn harvest(&mut self) {
        while let Some(used) = self.driver.pop() {
            let oldest = self.back.iter().position(|&times| times == 0);
            assert!(!self.rig.features.in_order || oldest == Some(used.cookie as usize), "out of order");
            assert_eq!(used.len, written(used.cookie), "the length of another request");
            self.back[used.cookie as usize] += 1;
        }
        assert!(!self.driver.broken(), "a request came back that was not in flight");
        assert!(self.back.iter().all(|&times| times <= 1), "a request came back twice");
    }
}

/// What the device says it wrote; names the request, as the driver does not look at the buffers.
fn written(cookie: u32) -> u32 {
    1 + cookie % 300
}

/// One life of the device beside the guest: bursts, completions out of order, until it has done its rounds or dies.
struct Life<'a, 'g> {
    guest: &'g mut Guest<'a>,
    ring: Ring,
    held: Vec<(u32, Chain)>,
    last_taken: Option<u32>,
}

impl Life<'_, '_> {
    fn take(&mut self, max: u16) {
        for _ in 0..self.ring.fetch(max) {
            let mut chain = self.guest.rig.next(&mut self.ring);
            let mut cookie = [0; 4];
            chain.read_prefix(&self.guest.rig.view, &mut cookie).unwrap();
            let cookie = u32::from_le_bytes(cookie);
            assert!(self.last_taken.replace(cookie) < Some(cookie), "not in the order taken");
            self.held.push((cookie, chain));
        }
    }

    fn complete(&mut self, place: usize) {
        let (cookie, chain) = self.held.remove(place);
        self.ring.complete(&self.guest.rig.view, &chain, written(cookie));
    }

    fn rounds(&mut self) {
        for round in 0..4 {
            (0..3 + round % 3).for_each(|_| self.guest.send());
            let _ = self.guest.driver.publish();
            self.take(2 + round);
            for step in 0..(self.held.len() * 2).div_ceil(3) {
                self.complete((step * 5 + usize::from(round)) % self.held.len());
            }
            // A chain taken between the completions of a batch and its publication.
            self.take(1);
            let _ = self.ring.publish();
            if round % 2 == 1 {
                self.guest.harvest();
            }
            self.put_one_back();
        }
        self.guest.harvest();
    }

    /// The whole ring in one batch: a packed ring is then at the same slot, one round further.
    fn full_rounds(&mut self) {
        for _ in 0..3 {
            (0..self.guest.rig.size).for_each(|_| self.guest.send());
            let _ = self.guest.driver.publish();
            self.take(u16::MAX);
            (0..self.held.len()).rev().for_each(|place| self.complete(place));
            let _ = self.ring.publish();
            self.guest.harvest();
        }
    }

    fn put_one_back(&mut self) {
        if let Some(place) = self.held.iter().position(|(cookie, _)| Some(*cookie) == self.last_taken)
            && self.ring.unfetch(&self.held[place].1)
        {
            self.held.remove(place);
            self.last_taken = self.last_taken.and_then(|cookie| cookie.checked_sub(1));
        }
    }

    fn drain(&mut self) {
        loop {
            self.take(u16::MAX);
            (0..self.held.len()).rev().for_each(|place| self.complete(place));
            let idle = self.ring.unpublished() == 0;
            let _ = self.ring.publish();
            self.guest.harvest();
            if idle {
                break;
            }
        }
    }
}

/// Runs a device until its fuse burns; whether it got to its end.
fn live(guest: &mut Guest<'_>, base: u32, stores: u32) -> bool {
    fuse::set(Some(stores));
    let end = catch_unwind(AssertUnwindSafe(|| {
        let ring = guest.rig.tracked(base).unwrap();
        let full = guest.short;
        let mut life = Life { guest, ring, held: Vec::new(), last_taken: None };
        if full { life.full_rounds() } else { life.rounds() }
    }));
    fuse::set(None);
    match end {
        Ok(()) => true,
        Err(panic) if panic.is::<fuse::Killed>() => false,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Kills two devices, lets the third drain, and counts. Whether the first came to its end instead.
fn kill_twice(features: RingFeatures, size: u16, full: bool, first: u32, second: u32) -> bool {
    let rig = Rig::with_memory(1 << 16, size, features);
    let mut guest = Guest::new(&rig, full);
    let survived = live(&mut guest, rig.start(), first);
    // What the frontend says as base does not count any more.
    live(&mut guest, rig.start(), second);
    let ring = rig.tracked(rig.start()).unwrap();
    Life { guest: &mut guest, ring, held: Vec::new(), last_taken: None }.drain();
    assert!(
        guest.back.iter().all(|&times| times == 1),
        "a request was lost: {:?}, killed at {first}, {second}, {features:?}",
        guest.back
    );
    assert_eq!(guest.driver.free(), size);
    survived
}

fn kill_everywhere(packed: bool, size: u16, full: bool) {
    for features in all_features().filter(|it| it.packed == packed && !it.event_idx) {
        let step = if cfg!(miri) { 29 } else { 1 };
        let mut points = 0;
        for first in (0..).step_by(step) {
            points = first;
            // Every second point is tried, whatever the first led to.
            let killed = (0..SUCCESSOR_STORES)
                .filter(|&second| !kill_twice(features, size, full, first, second))
                .count();
            if killed == 0 {
                break;
            }
        }
        assert!(points > 40, "the device had only {points} stores to be killed at");
    }
}

#[test]
fn a_split_ring_killed_before_any_store_loses_and_repeats_nothing() {
    kill_everywhere(false, 8, false);
}

#[test]
fn a_packed_ring_killed_before_any_store_loses_and_repeats_nothing() {
    kill_everywhere(true, 8, false);
}

#[test]
fn a_packed_ring_of_odd_size_killed_before_any_store_loses_and_repeats_nothing() {
    kill_everywhere(true, 7, false);
}

#[test]
fn a_batch_of_the_whole_ring_killed_before_any_store_loses_and_repeats_nothing() {
    kill_everywhere(false, 4, true);
    kill_everywhere(true, 3, true);
}
