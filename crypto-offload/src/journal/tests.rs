//! The journal across processes, which are played by one opening after another of the same memory.

use super::*;
use memory::{GuestAddr, OwnMemory};
use proptest::prelude::*;

const LEN: usize = DATA + 256 * BLOCK;

fn fd() -> OwnedFd {
    Area::shared(LEN, "journal").expect("memory").1
}

fn again(fd: &OwnedFd) -> Journals {
    Journals::from_fd(fd.try_clone().expect("a descriptor")).expect("a journal")
}

fn place(id: u16) -> Place {
    Place { device: device_key("a"), queue: 3, id }
}

struct Guest(OwnMemory);

impl Guest {
    fn new() -> Self {
        Self(OwnMemory::new(1 << 20, GuestAddr(1 << 20)).expect("memory"))
    }

    fn view(&self) -> MemoryView {
        MemoryView::new(self.0.table().clone())
    }

    fn range(&self, at: u64, len: usize) -> HostRange {
        self.0.table().slice(GuestAddr((1 << 20) + at), len).expect("inside").range()
    }

    fn fill(&self, at: u64, len: usize, seed: u8) {
        let bytes: Vec<u8> = (0..len).map(|byte| (byte as u8).wrapping_mul(31) ^ seed).collect();
        self.0.table().slice(GuestAddr((1 << 20) + at), len).expect("inside").write(0, &bytes);
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.table().slice(GuestAddr((1 << 20) + at), len).expect("inside").read(0, &mut bytes);
        bytes
    }
}

#[test]
fn a_source_in_place_is_brought_back_for_the_request_that_comes_again() {
    let (fd, guest) = (fd(), Guest::new());
    guest.fill(0, 10_000, 1);
    let before = guest.bytes(0, 10_000);
    // Several pieces of any length, the destination elsewhere but for one byte.
    let source = [guest.range(0, 7), guest.range(7, 4100), guest.range(4107, 5893)];
    let destination = [guest.range(9_999, 5000)];
    let saved = again(&fd).worker(0, 1).protect(place(9), &guest.view(), &source, &destination);
    assert!(saved.unwrap().is_some());
    guest.fill(0, 20_000, 99);
    // Any worker of the next process, of which there may be another number.
    let mut next = again(&fd).worker(2, 3);
    assert!(!next.restore(place(8), &guest.view(), &source));
    assert!(next.restore(place(9), &guest.view(), &source));
    assert_eq!(guest.bytes(0, 10_000), before);
}

#[test]
fn it_comes_back_in_the_process_after_the_next_as_well() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 5000)], guest.view());
    guest.fill(0, 5000, 1);
    let before = guest.bytes(0, 5000);
    again(&fd).worker(0, 2).protect(place(1), &view, &range, &range).unwrap();
    for _ in 0..3 {
        // Each is killed before it has brought it back, after that, and after it has set it aside once more.
        guest.fill(0, 5000, 77);
        drop(again(&fd).worker(0, 2));
        let mut worker = again(&fd).worker(1, 2);
        assert!(worker.restore(place(1), &view, &range));
        assert_eq!(guest.bytes(0, 5000), before);
        guest.fill(0, 5000, 78);
        let mut worker = again(&fd).worker(0, 2);
        assert!(worker.restore(place(1), &view, &range));
        assert!(worker.protect(place(1), &view, &range, &range).unwrap().is_some());
    }
    assert_eq!(again(&fd).0.left.len(), 1);
}

#[test]
fn what_was_published_does_not_come_back() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 5000)], guest.view());
    let mut worker = again(&fd).worker(0, 1);
    let saved = worker.protect(place(1), &view, &range, &range).unwrap().unwrap();
    worker.release(saved);
    assert!(!again(&fd).worker(0, 1).restore(place(1), &view, &range));
}

#[test]
fn a_later_request_of_the_same_name_takes_the_place_of_one_that_was_published_after_all() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 3000)], guest.view());
    guest.fill(0, 3000, 1);
    // Killed between publication and release.
    again(&fd).worker(0, 1).protect(place(1), &view, &range, &range).unwrap();
    guest.fill(0, 3000, 2);
    let later = guest.bytes(0, 3000);
    again(&fd).worker(0, 1).protect(place(1), &view, &range, &range).unwrap();
    guest.fill(0, 3000, 3);
    let mut next = again(&fd).worker(0, 1);
    assert_eq!(next.left.len(), 1);
    assert!(next.restore(place(1), &view, &range));
    assert_eq!(guest.bytes(0, 3000), later);
}

#[test]
fn a_request_out_of_place_takes_no_room() {
    let (fd, guest) = (fd(), Guest::new());
    let mut worker = again(&fd).worker(0, 1);
    let (source, destination) = ([guest.range(0, 4096)], [guest.range(4096, 4096)]);
    assert_eq!(worker.protect(place(1), &guest.view(), &source, &destination), Ok(None));
}

#[test]
fn a_full_journal_says_so_and_has_room_again_after_a_release() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 16 * BLOCK)], guest.view());
    // Half of 256 blocks.
    let mut worker = again(&fd).worker(1, 2);
    let mut saved: Vec<_> =
        (0..8).map(|id| worker.protect(place(id), &view, &range, &range).unwrap().unwrap()).collect();
    assert_eq!(worker.protect(place(8), &view, &range, &range), Err(Full));
    worker.release(saved.remove(3));
    assert!(worker.protect(place(8), &view, &range, &range).is_ok());
    let whole = [guest.range(0, 200 * BLOCK)];
    assert_eq!(worker.protect(place(9), &view, &whole, &whole), Err(Full));
}

#[test]
fn what_a_predecessor_left_is_not_overwritten_by_other_requests() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 16 * BLOCK)], guest.view());
    guest.fill(0, 16 * BLOCK, 5);
    let before = guest.bytes(0, 16 * BLOCK);
    again(&fd).worker(0, 2).protect(place(1), &view, &range, &range).unwrap();
    let mut next = again(&fd).worker(0, 2);
    guest.fill(0, 16 * BLOCK, 6);
    let mut ids = 100..200;
    while next.protect(place(ids.next().unwrap()), &view, &range, &range).is_ok() {}
    assert!(next.restore(place(1), &view, &range));
    assert_eq!(guest.bytes(0, 16 * BLOCK), before);
}

#[test]
fn a_request_of_another_length_is_another_request() {
    let (fd, guest) = (fd(), Guest::new());
    let view = guest.view();
    let (range, shorter) = ([guest.range(0, 3000)], [guest.range(0, 2999)]);
    again(&fd).worker(0, 1).protect(place(1), &view, &range, &range).unwrap();
    assert!(!again(&fd).worker(0, 1).restore(place(1), &view, &shorter));
}

#[test]
fn data_that_looks_like_an_entry_is_none() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 64 * BLOCK)], guest.view());
    let mut forged = [0u8; ENTRY];
    forged[0] = 1;
    forged[field::LEN] = 8;
    let slice = guest.0.table().slice(GuestAddr(1 << 20), 64 * BLOCK).unwrap();
    (0..64 * BLOCK).step_by(ENTRY).for_each(|at| slice.write(at, &forged));
    let mut worker = again(&fd).worker(0, 1);
    let saved = worker.protect(place(1), &view, &range, &range).unwrap().unwrap();
    worker.release(saved);
    assert!(again(&fd).0.left.is_empty());
}

proptest! {
    #[test]
    fn overlaps_are_found_in_lists_of_any_length(
        source in prop::collection::vec((0u64..4000, 0usize..90), 0..20),
        destination in prop::collection::vec((0u64..4000, 0usize..90), 0..20),
    ) {
        let guest = Guest::new();
        let ranges = |list: &[(u64, usize)]| list.iter().map(|(at, len)| guest.range(*at, *len)).collect::<Vec<_>>();
        let bytes = |list: &[(u64, usize)]| {
            list.iter().flat_map(|(at, len)| *at..*at + *len as u64).collect::<std::collections::HashSet<_>>()
        };
        let expected = !bytes(&source).is_disjoint(&bytes(&destination));
        prop_assert_eq!(overlaps(&ranges(&source), &ranges(&destination)), expected);
    }
}

#[test]
fn a_journal_that_was_full_when_its_process_died_serves_the_same_requests_again() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 16 * BLOCK)], guest.view());
    let mut worker = again(&fd).worker(0, 1);
    let mut ids = 0..;
    while worker.protect(place(ids.next().unwrap()), &view, &range, &range).is_ok() {}
    for workers in [1, 2] {
        // Killed again before anything is released, then brought to its end.
        let mut next = again(&fd).worker(workers - 1, workers);
        let saved: Vec<_> = (0..ids.start - 1)
            .map(|id| {
                assert!(next.restore(place(id), &view, &range));
                next.protect(place(id), &view, &range, &range).unwrap().unwrap()
            })
            .collect();
        if workers == 2 {
            saved.into_iter().for_each(|saved| next.release(saved));
            assert!(next.protect(place(1), &view, &range, &range).is_ok());
        }
    }
    assert_eq!(again(&fd).0.left.len(), 1);
}

#[test]
fn what_is_left_of_a_device_without_frontend_makes_room() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 16 * BLOCK)], guest.view());
    let mut worker = again(&fd).worker(0, 1);
    let mut ids = 0..;
    while worker.protect(place(ids.next().unwrap()), &view, &range, &range).is_ok() {}
    let journals = again(&fd);
    let mut next = journals.worker(0, 1);
    assert_eq!(next.protect(place(900), &view, &range, &range), Err(Full));
    journals.forget(device_key("b"));
    assert_eq!(next.protect(place(900), &view, &range, &range), Err(Full));
    journals.forget(device_key("a"));
    assert!(!next.restore(place(0), &view, &range));
    assert!(next.protect(place(900), &view, &range, &range).is_ok());
}

#[test]
fn what_served_a_device_once_is_not_taken_from_the_next() {
    let (fd, guest) = (fd(), Guest::new());
    let (range, view) = ([guest.range(0, 3000)], guest.view());
    again(&fd).worker(0, 1).protect(place(1), &view, &range, &range).unwrap();
    let journals = again(&fd);
    let mut worker = journals.worker(0, 1);
    assert!(worker.restore(place(1), &view, &range));
    let saved = worker.protect(place(1), &view, &range, &range).unwrap().unwrap();
    worker.release(saved);
    // The entry given back last is taken first.
    let other = Place { device: device_key("b"), queue: 0, id: 1 };
    assert_eq!(worker.protect(other, &view, &range, &range), Ok(Some(saved)));
    journals.forget(device_key("a"));
    assert!(again(&fd).worker(0, 1).restore(other, &view, &range));
}

#[test]
fn a_source_longer_than_the_part_of_a_worker_is_never_held() {
    let (fd, guest) = (fd(), Guest::new());
    let view = guest.view();
    let mut worker = again(&fd).worker(1, 2);
    for (len, holds) in [(128 * BLOCK, true), (128 * BLOCK + 1, false)] {
        let range = [guest.range(0, len)];
        assert_eq!(worker.holds(len), holds);
        match worker.protect(place(1), &view, &range, &range) {
            Ok(saved) => worker.release(saved.unwrap()),
            Err(Full) => assert!(!holds),
        }
    }
}

/// As many blocks as it takes for entries to run out first.
fn large() -> OwnedFd {
    Area::shared(DATA + 2 * ENTRIES * BLOCK, "journal").expect("memory").1
}

#[test]
fn a_journal_is_crowded_while_more_than_half_of_its_entries_are_taken() {
    let (fd, guest) = (large(), Guest::new());
    let (range, view) = ([guest.range(0, 16)], guest.view());
    let mut worker = again(&fd).worker(3, 64);
    let mut last = None;
    for id in 0..33 {
        assert!(!worker.is_crowded(), "{id} of 64 are taken");
        last = worker.protect(place(id), &view, &range, &range).unwrap();
    }
    assert!(worker.is_crowded());
    worker.release(last.unwrap());
    assert!(!worker.is_crowded());
}

#[test]
fn entries_that_another_worker_has_served_are_used_again() {
    let (fd, guest) = (large(), Guest::new());
    let (range, view) = ([guest.range(0, 16)], guest.view());
    let mut worker = again(&fd).worker(0, 64);
    (0..64).for_each(|id| assert!(worker.protect(place(id), &view, &range, &range).is_ok()));
    assert_eq!(worker.protect(place(64), &view, &range, &range), Err(Full));
    let journals = again(&fd);
    let (mut owner, mut other) = (journals.worker(0, 64), journals.worker(1, 64));
    assert_eq!(owner.protect(place(64), &view, &range, &range), Err(Full));
    assert!(other.restore(place(5), &view, &range));
    let saved = other.protect(place(5), &view, &range, &range).unwrap().unwrap();
    other.release(saved);
    assert!(owner.protect(place(64), &view, &range, &range).is_ok());
}
