use super::*;
use crate::options::{DiskOptions, Source};
use memory::{GuestAddr, MemoryView, OwnMemory};
use proptest::prelude::*;
use std::sync::Arc;
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{DeviceRing, Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};

/// A transfer with all that its steps may use.
struct Bench {
    chain: Chain,
    mem: MemoryView,
    file: FileBackend,
    _dir: tempfile::NamedTempFile,
    pool: BouncePool,
    stats: QueueCounters,
    transfer: Transfer,
}

/// A chain whose data segments have these lengths, device-writable for a read.
fn chain_of(kind: Kind, lengths: &[u32]) -> (Chain, MemoryView) {
    let memory = OwnMemory::new(64 << 20, GuestAddr(0)).unwrap();
    let features = RingFeatures::default();
    let (desc, driver, device) = ring_sizes(features.format(), 4096);
    let area = |len| memory.alloc(len, 4096).unwrap();
    let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
    let mut ring =
        DriverRing::in_table(memory.table(), &addresses, features.format(), 4096, features).unwrap();
    let segment = |len: &u32| Segment { addr: memory.alloc(*len as usize + 512, 512).unwrap(), len: *len };
    let segments: Vec<_> = lengths.iter().map(segment).collect();
    let one = [Segment { addr: area(16), len: 16 }];
    let (readable, writable) =
        if kind == Kind::Read { (&one[..], &segments[..]) } else { (&segments[..], &one[..]) };
    ring.add(readable, writable, 0).unwrap();
    let _ = ring.publish();
    let setup = RingSetup {
        size: 4096,
        features,
        table: memory.table(),
        addresses,
        base: 0,
        inflight: None,
        log: None,
        used_log_addr: None,
    };
    let mut queue = Queue::new(setup).unwrap();
    let (mem, mut chain) = (MemoryView::new(Arc::clone(memory.table())), Chain::new());
    assert_eq!(queue.ring.fetch(1), 1);
    queue.ring.next(&mem, &mut chain).unwrap();
    (chain, mem)
}

fn bench(kind: Kind, lengths: &[u32], durable: bool) -> Bench {
    let dir = tempfile::NamedTempFile::new().unwrap();
    dir.as_file().set_len(64 << 20).unwrap();
    let options = DiskOptions::new("t", Source::File(dir.path().into()));
    let (file, _) = FileBackend::open(dir.path(), &options).unwrap();
    let (chain, mem) = chain_of(kind, lengths);
    let mut transfer = Transfer::default();
    let len = lengths.iter().map(|l| u64::from(*l)).sum();
    transfer.begin(kind, Extent { offset: 4096, len }, durable);
    let (pool, stats) = (BouncePool::default(), QueueCounters::default());
    Bench { chain, mem, file, _dir: dir, pool, stats, transfer }
}

/// A step without its borrows.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Read { segments: usize, bytes: u64, offset: u64 },
    Write { bytes: u64, offset: u64, durable: bool },
    Sync,
    Allocate { mode: i32, extent: Extent },
    Ioctl(RangeIoctl),
    Wait,
    Finished(Status),
}

fn bytes(segments: &[HostRange]) -> u64 {
    segments.iter().map(|s| s.len as u64).sum()
}

impl Bench {
    fn step(&mut self) -> Seen {
        let Self { chain, mem, file, pool, stats, transfer, .. } = self;
        match transfer.step(&mut StepContext { chain, mem, file, pool, stats }) {
            Step::Read { segments, offset } => {
                assert!(segments.len() <= MAX_SEGMENTS && !segments.is_empty());
                Seen::Read { segments: segments.len(), bytes: bytes(segments), offset }
            }
            Step::Write { segments, offset, durable } => {
                assert!(segments.len() <= MAX_SEGMENTS && !segments.is_empty());
                Seen::Write { bytes: bytes(segments), offset, durable }
            }
            Step::Sync => Seen::Sync,
            Step::Allocate { mode, extent } => Seen::Allocate { mode, extent },
            Step::Ioctl { which, .. } => Seen::Ioctl(which),
            Step::Wait => Seen::Wait,
            Step::Finished(status) => Seen::Finished(status),
        }
    }

    fn result(&mut self, result: i32) {
        let Self { chain, mem, file, pool, stats, transfer, .. } = self;
        transfer.result(result, &mut StepContext { chain, mem, file, pool, stats });
    }

    fn fault(&self, fault: Fault) -> u64 {
        self.stats.snapshot().fault(fault)
    }
}

const EXTENT: Extent = Extent { offset: 8192, len: 200 << 10 };

fn ranges(op: RangeOp, unmap: bool, durable: bool) -> Bench {
    let mut bench = bench(Kind::Write, &[512], false);
    bench.transfer.begin(Kind::Ranges(op), Extent::default(), durable);
    bench.transfer.add_range(Range { extent: EXTENT, unmap });
    bench
}

#[test]
fn a_durable_write_asks_for_dsync_and_a_volatile_one_does_not() {
    for durable in [false, true] {
        let mut bench = bench(Kind::Write, &[4096], durable);
        assert_eq!(bench.step(), Seen::Write { bytes: 4096, offset: 4096, durable });
        bench.result(4096);
        assert_eq!(bench.step(), Seen::Finished(Status::Ok));
    }
}

#[test]
fn durable_ranges_end_with_a_sync() {
    let mut bench = ranges(RangeOp::Discard, true, true);
    assert!(matches!(bench.step(), Seen::Allocate { .. }));
    bench.result(0);
    assert_eq!(bench.step(), Seen::Sync);
    bench.result(0);
    assert_eq!(bench.step(), Seen::Finished(Status::Ok));
}

#[test]
fn short_transfers_go_on_with_the_rest() {
    let mut bench = bench(Kind::Read, &[512, 1024, 2048], false);
    assert_eq!(bench.step(), Seen::Read { segments: 3, bytes: 3584, offset: 4096 });
    bench.result(1000);
    assert_eq!(bench.step(), Seen::Read { segments: 2, bytes: 2584, offset: 5096 });
    bench.result(536);
    assert_eq!(bench.step(), Seen::Read { segments: 1, bytes: 2048, offset: 5632 });
    bench.result(2048);
    assert_eq!(bench.step(), Seen::Finished(Status::Ok));
    assert_eq!(bench.stats.snapshot().partial, 2);
}

#[test]
fn interrupted_operations_are_tried_again_but_not_for_ever() {
    let mut bench = bench(Kind::Write, &[512], false);
    for errno in [libc::EINTR, libc::EAGAIN, libc::EINTR] {
        assert!(matches!(bench.step(), Seen::Write { .. }));
        bench.result(-errno);
    }
    assert!(matches!(bench.step(), Seen::Write { .. }));
    bench.result(512);
    assert_eq!(bench.step(), Seen::Finished(Status::Ok));

    let mut stubborn = self::bench(Kind::Write, &[512], false);
    let tries = (0..10_000).take_while(|_| {
        let going = stubborn.step() != Seen::Finished(Status::IoErr);
        if going {
            stubborn.result(-libc::EAGAIN);
        }
        going
    });
    assert!(tries.count() < 2000, "it must end");
}

#[test]
fn host_errors_and_the_end_of_the_file_are_io_errors_of_their_kind() {
    let cases = [
        (-libc::EIO, Fault::Host),
        (-libc::ENOSPC, Fault::NoSpace),
        (-libc::EDQUOT, Fault::NoSpace),
        (0, Fault::EndOfFile),
    ];
    for (result, fault) in cases {
        let mut bench = bench(Kind::Read, &[4096], false);
        bench.step();
        bench.result(result);
        assert_eq!(bench.step(), Seen::Finished(Status::IoErr));
        assert_eq!(bench.fault(fault), 1);
    }
}

#[test]
fn a_full_disk_in_the_middle_of_a_write_is_not_hidden() {
    let mut bench = bench(Kind::Write, &[4096], false);
    bench.step();
    bench.result(1024);
    bench.step();
    bench.result(-libc::ENOSPC);
    assert_eq!(bench.step(), Seen::Finished(Status::IoErr));
}

#[test]
fn after_a_failed_flush_no_flush_succeeds() {
    let mut bench = bench(Kind::Flush, &[512], false);
    assert_eq!(bench.step(), Seen::Sync);
    bench.result(-libc::EIO);
    assert_eq!(bench.step(), Seen::Finished(Status::IoErr));
    bench.transfer.begin(Kind::Flush, Extent::default(), false);
    assert_eq!(bench.step(), Seen::Finished(Status::IoErr), "the kernel would say that all is well");
}

#[test]
fn zeroing_falls_back_from_hole_to_range_to_writing() {
    let mut bench = ranges(RangeOp::WriteZeroes, true, false);
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(bench.step(), Seen::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | keep, extent: EXTENT });
    bench.result(-libc::EOPNOTSUPP);
    assert_eq!(bench.step(), Seen::Allocate { mode: libc::FALLOC_FL_ZERO_RANGE | keep, extent: EXTENT });
    bench.result(-libc::EOPNOTSUPP);
    assert_eq!(bench.step(), Seen::Write { bytes: EXTENT.len, offset: EXTENT.offset, durable: false });
    bench.result(100 << 10);
    assert_eq!(
        bench.step(),
        Seen::Write { bytes: 100 << 10, offset: EXTENT.offset + (100 << 10), durable: false }
    );
    bench.result(100 << 10);
    assert_eq!(bench.step(), Seen::Finished(Status::Ok));
    // What the host cannot do is not tried again.
    bench.transfer.begin(Kind::Ranges(RangeOp::WriteZeroes), Extent::default(), false);
    bench.transfer.add_range(Range { extent: EXTENT, unmap: true });
    assert!(matches!(bench.step(), Seen::Write { .. }));
}

#[test]
fn zeroing_without_unmap_never_punches_holes() {
    let mut bench = ranges(RangeOp::WriteZeroes, false, false);
    let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(bench.step(), Seen::Allocate { mode, extent: EXTENT });
}

#[test]
fn a_refused_alignment_is_written_once_and_tried_again_for_the_next_range() {
    let mut bench = ranges(RangeOp::WriteZeroes, false, false);
    bench.transfer.add_range(Range { extent: EXTENT, unmap: false });
    bench.step();
    bench.result(-libc::EINVAL);
    assert!(matches!(bench.step(), Seen::Write { .. }));
    bench.result(EXTENT.len as i32);
    assert!(matches!(bench.step(), Seen::Allocate { .. }));
}

#[test]
fn a_discard_the_host_cannot_do_is_done() {
    for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
        let mut bench = ranges(RangeOp::Discard, true, false);
        bench.step();
        bench.result(-errno);
        assert_eq!(bench.step(), Seen::Finished(Status::Ok));
        assert_eq!(bench.stats.snapshot().discards_ignored, 1);
    }
    let mut failing = ranges(RangeOp::Discard, true, false);
    failing.step();
    failing.result(-libc::EIO);
    assert_eq!(failing.step(), Seen::Finished(Status::IoErr), "a failure is one");
}

#[test]
fn an_erase_that_does_not_erase_is_an_error() {
    let mut bench = ranges(RangeOp::SecureErase, false, false);
    assert_eq!(bench.step(), Seen::Ioctl(RangeIoctl::SecureErase));
    bench.result(-libc::EOPNOTSUPP);
    assert_eq!(bench.step(), Seen::Finished(Status::IoErr));
}

#[test]
fn requests_conflict_when_they_touch_and_one_of_them_changes() {
    let make = |kind, offset, len| {
        let mut transfer = Transfer::default();
        transfer.begin(kind, Extent { offset, len }, false);
        transfer
    };
    let write = make(Kind::Write, 0, 4096);
    assert!(write.conflicts(&make(Kind::Read, 4095, 1)));
    assert!(make(Kind::Read, 0, 1).conflicts(&write));
    assert!(!write.conflicts(&make(Kind::Write, 4096, 512)));
    assert!(!make(Kind::Read, 0, 512).conflicts(&make(Kind::Read, 0, 512)));
    let mut discard = make(Kind::Ranges(RangeOp::Discard), 0, 0);
    discard.add_range(Range { extent: Extent { offset: 8192, len: 512 }, unmap: true });
    assert!(!discard.conflicts(&write));
    assert!(discard.conflicts(&make(Kind::Read, 8192 + 511, 1)));
}

proptest! {
    /// However the host cuts a transfer, every byte is asked for once and in order, and it ends.
    #[test]
    fn every_byte_is_transferred_once(
        lengths in prop::collection::vec((1u32..5).prop_map(|n| n * 512), 1..40),
        cuts in prop::collection::vec(1u64..3000, 1..50),
    ) {
        let mut bench = bench(Kind::Read, &lengths, false);
        let total: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
        let (mut done, mut cuts) = (0, cuts.into_iter().cycle());
        while done < total {
            match bench.step() {
                Seen::Read { bytes, offset, .. } => {
                    prop_assert_eq!((offset, bytes), (4096 + done, total - done));
                    let cut = cuts.next().unwrap().min(bytes);
                    bench.result(cut as i32);
                    done += cut;
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(bench.step(), Seen::Finished(Status::Ok));
    }
}
