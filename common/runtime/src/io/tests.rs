//! Both engines do the same things with real files, pipes and eventfds.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use memory::{GuestAddr, OwnMemory, RegionConfig, UserAddr};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::doorbell::Bell;

const SECOND: u64 = 1_000_000_000;

fn doorbell() -> Arc<Doorbell<EventBell>> {
    Arc::new(Doorbell::new(EventBell::new().unwrap()))
}

fn io(kind: IoKind) -> Io {
    Io::new(kind.into(), doorbell()).unwrap()
}

/// Runs a test on every engine this machine has, which must be both.
fn on_each(test: impl Fn(Io)) {
    for kind in [IoKind::Uring, IoKind::Threads] {
        let io = io(kind);
        assert_eq!(io.kind(), kind);
        test(io);
    }
}

/// Waits until `n` operations have completed; their results by user data.
fn complete(io: &mut Io, n: usize) -> Vec<(u64, i32)> {
    let mut done = Vec::new();
    let mut events = Vec::new();
    let start = Instant::now();
    while done.len() < n {
        assert!(start.elapsed() < Duration::from_secs(20), "{n} completions wanted, {done:?} came");
        io.harvest(&mut events).unwrap();
        done.extend(events.drain(..).filter_map(|event| match event {
            Event::Done { user_data, result } => Some((user_data, result)),
            _ => None,
        }));
        if done.len() < n {
            io.pause(Some(SECOND)).unwrap();
        }
    }
    done.sort_unstable();
    done
}

fn run(io: &mut Io, op: Op) -> i32 {
    // SAFETY: the callers keep their buffers until the completion, which is awaited here.
    unsafe { io.push(op, 7) }.unwrap();
    let done = complete(io, 1);
    assert_eq!(done[0].0, 7);
    assert_eq!(io.in_flight(), 0);
    done[0].1
}

fn iovecs(buffers: &mut [&mut [u8]]) -> Vec<libc::iovec> {
    let iovec = |b: &mut &mut [u8]| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
    buffers.iter_mut().map(iovec).collect()
}

fn read(io: &mut Io, file: FileSlot, buffers: &mut [&mut [u8]], offset: u64) -> i32 {
    let iov = iovecs(buffers);
    run(io, Op::Readv { file, iov: iov.as_ptr(), n: iov.len() as u32, offset, flags: 0 })
}

fn write(io: &mut Io, file: FileSlot, buffers: &mut [&mut [u8]], offset: u64, flags: i32) -> i32 {
    let iov = iovecs(buffers);
    run(io, Op::Writev { file, iov: iov.as_ptr(), n: iov.len() as u32, offset, flags })
}

fn scratch() -> File {
    tempfile::tempfile().unwrap()
}

#[test]
fn what_is_written_is_read_back_whatever_the_segments() {
    on_each(|mut io| {
        let file = io.add_file(scratch()).unwrap();
        let (mut a, mut b) = ([1u8; 700], [2u8; 3000]);
        assert_eq!(write(&mut io, file, &mut [&mut a, &mut b], 100, 0), 3700);
        assert_eq!(write(&mut io, file, &mut [&mut [3u8; 10]], 4000, libc::RWF_DSYNC), 10);
        assert_eq!(run(&mut io, Op::Fsync { file, data_only: true }), 0);
        assert_eq!(run(&mut io, Op::Fsync { file, data_only: false }), 0);
        let (mut hole, mut data) = ([9u8; 100], [9u8; 3700]);
        assert_eq!(read(&mut io, file, &mut [&mut hole, &mut data], 0), 3800);
        assert_eq!(hole, [0; 100]);
        assert!(data[..700].iter().all(|&x| x == 1) && data[700..].iter().all(|&x| x == 2));
        let mut tail = [0u8; 10];
        assert_eq!(read(&mut io, file, &mut [&mut tail], 4000), 10);
        assert_eq!(tail, [3; 10]);
    });
}

#[test]
fn reads_at_the_end_of_a_file_are_short_and_behind_it_empty() {
    on_each(|mut io| {
        let mut file = scratch();
        file.write_all(&[5; 1000]).unwrap();
        let file = io.add_file(file).unwrap();
        let mut buffer = [0u8; 512];
        assert_eq!(read(&mut io, file, &mut [&mut buffer], 800), 200);
        let (mut a, mut b) = ([0u8; 150], [0u8; 150]);
        assert_eq!(read(&mut io, file, &mut [&mut a, &mut b], 800), 200);
        assert_eq!(read(&mut io, file, &mut [&mut buffer], 1000), 0);
    });
}

#[test]
fn host_errors_come_back_as_errno() {
    on_each(|mut io| {
        // Address 0 of this process is not mapped: the kernel says EIO.
        let memory = io.add_file(File::open("/proc/self/mem").unwrap()).unwrap();
        assert_eq!(read(&mut io, memory, &mut [&mut [0; 512]], 0), -libc::EIO);
        let directory = io.add_file(File::open("/").unwrap()).unwrap();
        assert_eq!(read(&mut io, directory, &mut [&mut [0; 512]], 0), -libc::EISDIR);
        let full = io.add_file(OpenOptions::new().write(true).open("/dev/full").unwrap()).unwrap();
        assert_eq!(write(&mut io, full, &mut [&mut [0; 512]], 0, 0), -libc::ENOSPC);
        let read_only = tempfile::NamedTempFile::new().unwrap();
        let read_only = io.add_file(File::open(read_only.path()).unwrap()).unwrap();
        assert_eq!(write(&mut io, read_only, &mut [&mut [0; 512]], 0, 0), -libc::EBADF);
        let negative = u64::MAX;
        assert_eq!(
            run(&mut io, Op::Fallocate { file: read_only, mode: 0, offset: negative, len: 1 }),
            -libc::EINVAL
        );
    });
}

#[test]
fn a_hole_is_punched() {
    on_each(|mut io| {
        let mut file = scratch();
        file.write_all(&[5; 12288]).unwrap();
        let file = io.add_file(file).unwrap();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(run(&mut io, Op::Fallocate { file, mode, offset: 4096, len: 4096 }), 0);
        let mut all = [1u8; 12288];
        assert_eq!(read(&mut io, file, &mut [&mut all], 0), 12288);
        assert!(all[..4096].iter().chain(&all[8192..]).all(|&x| x == 5));
        assert!(all[4096..8192].iter().all(|&x| x == 0));
    });
}

#[test]
fn a_removed_file_is_no_file_and_its_slot_serves_another_one() {
    on_each(|mut io| {
        let first = io.add_file(scratch()).unwrap();
        io.remove_file(first);
        io.remove_file(first);
        assert_eq!(read(&mut io, first, &mut [&mut [0; 16]], 0), -libc::EBADF);
        let mut other = scratch();
        other.write_all(b"other").unwrap();
        let second = io.add_file(&other).unwrap();
        assert_eq!(second, first);
        let mut buffer = [0u8; 5];
        assert_eq!(read(&mut io, second, &mut [&mut buffer], 0), 5);
        assert_eq!(&buffer, b"other");
    });
}

#[test]
fn operations_pushed_before_a_removal_still_reach_their_file() {
    on_each(|mut io| {
        let mut file = scratch();
        file.write_all(&[8; 64]).unwrap();
        let slot = io.add_file(file).unwrap();
        let mut buffer = [0u8; 64];
        let iov = iovecs(&mut [&mut buffer]);
        // SAFETY: buffer and iovec live until the completion below.
        unsafe { io.push(Op::Readv { file: slot, iov: iov.as_ptr(), n: 1, offset: 0, flags: 0 }, 1) }
            .unwrap();
        io.remove_file(slot);
        assert_eq!(complete(&mut io, 1), [(1, 64)]);
        assert_eq!(buffer, [8; 64]);
    });
}

#[test]
fn more_files_than_the_table_holds_work_all_the_same() {
    on_each(|mut io| {
        let mut file = scratch();
        file.write_all(&[4; 8]).unwrap();
        let slots: Vec<_> = (0..300).map(|_| io.add_file(&file).unwrap()).collect();
        for slot in [slots[0], slots[255], slots[256], slots[299]] {
            assert_eq!(read(&mut io, slot, &mut [&mut [0; 8]], 0), 8);
        }
    });
}

#[test]
fn a_batch_longer_than_the_ring_completes_and_costs_few_enters() {
    on_each(|mut io| {
        let mut file = scratch();
        file.write_all(&[6; 4096]).unwrap();
        let file = io.add_file(file).unwrap();
        let mut buffers = vec![[0u8; 64]; 1000];
        let iov: Vec<_> = buffers.iter_mut().map(|b| iovecs(&mut [b])[0]).collect();
        let before = io.counters().enters;
        for (i, iov) in iov.iter().enumerate() {
            // SAFETY: buffers and iovecs live until all have completed.
            unsafe { io.push(Op::Readv { file, iov, n: 1, offset: 0, flags: 0 }, i as u64) }.unwrap();
        }
        io.flush().unwrap();
        let done = complete(&mut io, 1000);
        assert!(
            done.iter().enumerate().all(|(i, &(user_data, result))| (user_data, result) == (i as u64, 64))
        );
        assert!(buffers.iter().all(|buffer| *buffer == [6; 64]));
        if io.kind() == IoKind::Uring {
            assert!(io.counters().enters - before < 20, "{} enters", io.counters().enters - before);
        }
    });
}

#[test]
fn the_depth_is_a_limit_and_completions_make_room() {
    for kind in [IoKind::Uring, IoKind::Threads] {
        let mut io = Io::new(IoConfig { kind, depth: 4, ..IoConfig::default() }, doorbell()).unwrap();
        for i in 0..4 {
            // SAFETY: a no-op has no buffers.
            unsafe { io.push(Op::Nop, i) }.unwrap();
        }
        assert_eq!(io.room(), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { io.push(Op::Nop, 4) }, Err(Full));
        assert_eq!(io.offload(4, || 0), Err(Full));
        assert_eq!(complete(&mut io, 4), [(0, 0), (1, 0), (2, 0), (3, 0)]);
        assert_eq!(io.room(), 4);
        // SAFETY: as above.
        unsafe { io.push(Op::Nop, 4) }.unwrap();
        assert_eq!(complete(&mut io, 1), [(4, 0)]);
    }
}

#[test]
fn offloaded_calls_run_elsewhere_and_end_the_wait() {
    on_each(|mut io| {
        let here = thread::current().id();
        io.offload(1, move || {
            thread::sleep(Duration::from_millis(20));
            i32::from(thread::current().id() != here) * 42
        })
        .unwrap();
        io.offload(2, || panic!("a job panics: expected in this test")).unwrap();
        assert_eq!(complete(&mut io, 2), [(1, 42), (2, -libc::EIO)]);
    });
}

#[test]
fn a_job_that_has_not_begun_is_cancelled_and_a_running_one_is_not() {
    for kind in [IoKind::Uring, IoKind::Threads] {
        let mut io = Io::new(IoConfig { kind, threads: 1, ..IoConfig::default() }, doorbell()).unwrap();
        let (started, start) = mpsc::channel();
        let (release, released) = mpsc::channel();
        io.offload(1, move || {
            started.send(()).unwrap();
            released.recv().unwrap();
            1
        })
        .unwrap();
        io.flush().unwrap();
        start.recv().unwrap();
        io.offload(2, || 2).unwrap();
        io.flush().unwrap();
        // SAFETY: a cancellation has no buffers.
        unsafe { io.push(Op::Cancel { target: 2 }, 3) }.unwrap();
        assert_eq!(complete(&mut io, 2), [(2, -libc::ECANCELED), (3, 0)]);
        // SAFETY: as above.
        unsafe { io.push(Op::Cancel { target: 1 }, 4) }.unwrap();
        let refused = complete(&mut io, 1)[0].1;
        assert!(matches!(-refused, libc::ENOENT | libc::EALREADY), "{refused}");
        release.send(()).unwrap();
        assert_eq!(complete(&mut io, 1), [(1, 1)]);
    }
}

#[test]
fn drain_waits_for_everything_in_flight() {
    on_each(|mut io| {
        io.offload(1, || {
            thread::sleep(Duration::from_millis(30));
            0
        })
        .unwrap();
        // SAFETY: a no-op has no buffers.
        unsafe { io.push(Op::Nop, 2) }.unwrap();
        io.drain().unwrap();
        assert_eq!(io.in_flight(), 0);
    });
}

fn event_fd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// The watches that fire within `ms`.
fn fired(io: &mut Io, ms: u64) -> Vec<WatchId> {
    let mut events = Vec::new();
    let end = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < end && events.is_empty() {
        io.pause(Some(ms * 1_000_000)).unwrap();
        io.harvest(&mut events).unwrap();
    }
    events
        .into_iter()
        .filter_map(|event| if let Event::Ready(id) = event { Some(id) } else { None })
        .collect()
}

#[test]
fn each_kick_is_one_edge_and_nothing_has_to_be_read() {
    on_each(|mut io| {
        let (quiet, kick) = (event_fd(), event_fd());
        let _quiet = io.watch(quiet.as_raw_fd()).unwrap();
        let id = io.watch(kick.as_raw_fd()).unwrap();
        for _ in 0..5 {
            kick.write(1).unwrap();
            assert_eq!(fired(&mut io, 2000), [id]);
            assert_eq!(fired(&mut io, 20), [], "the counter is not read, and no new edge came");
        }
    });
}

#[test]
fn a_kick_before_the_watch_is_not_lost() {
    on_each(|mut io| {
        let kick = event_fd();
        kick.write(1).unwrap();
        let id = io.watch(kick.as_raw_fd()).unwrap();
        assert_eq!(fired(&mut io, 2000), [id]);
    });
}

#[test]
fn an_ended_watch_is_silent_and_its_descriptor_can_be_watched_again() {
    on_each(|mut io| {
        let kick = event_fd();
        let first = io.watch(kick.as_raw_fd()).unwrap();
        kick.write(1).unwrap();
        io.unwatch(first);
        assert_eq!(fired(&mut io, 20), []);
        let second = io.watch(kick.as_raw_fd()).unwrap();
        assert_ne!(first, second);
        assert_eq!(fired(&mut io, 2000), [second]);
        io.unwatch(first);
        kick.write(1).unwrap();
        assert_eq!(fired(&mut io, 2000), [second], "the old name does not end the new watch");
    });
}

#[test]
fn more_events_than_the_completion_queue_holds_all_arrive_and_go_on_arriving() {
    for kind in [IoKind::Uring, IoKind::Threads] {
        // The smallest completion queue there is: 512 entries.
        let mut io = Io::new(IoConfig { kind, depth: 1, ..IoConfig::default() }, doorbell()).unwrap();
        let kicks: Vec<_> = (0..600).map(|_| event_fd()).collect();
        let ids: Vec<_> = kicks.iter().map(|kick| io.watch(kick.as_raw_fd()).unwrap()).collect();
        for _ in 0..3 {
            kicks.iter().for_each(|kick| kick.write(1).unwrap());
            let mut seen = std::collections::HashSet::new();
            let start = Instant::now();
            while seen.len() < ids.len() {
                assert!(start.elapsed() < Duration::from_secs(10), "{} of {}", seen.len(), ids.len());
                seen.extend(fired(&mut io, 100));
            }
            // Polls that an overflow has ended are armed again, and look at their descriptor when they are.
            while !fired(&mut io, 20).is_empty() {}
        }
    }
}

#[test]
fn what_is_always_ready_or_has_ended_is_not_polled_for_ever() {
    on_each(|mut io| {
        assert!(io.watch(scratch().as_raw_fd()).is_err());
        let (reader, writer) = std::io::pipe().unwrap();
        let id = io.watch(reader.as_raw_fd()).unwrap();
        drop(writer);
        assert_eq!(fired(&mut io, 2000), [id], "the end is an event");
        let before = io.counters().enters;
        assert_eq!(fired(&mut io, 50), []);
        assert!(io.counters().enters - before < 10);
    });
}

#[test]
fn the_bell_ends_a_wait_and_a_timeout_too() {
    for kind in [IoKind::Uring, IoKind::Threads] {
        let doorbell = doorbell();
        let mut io = Io::new(kind.into(), doorbell.clone()).unwrap();
        // The end of another ring on this thread may interrupt a wait; a timeout that is no timeout returns at once.
        let start = Instant::now();
        let mut waits = 0;
        while start.elapsed() < Duration::from_millis(20) {
            io.pause(Some(20_000_000)).unwrap();
            waits += 1;
        }
        assert!(waits <= 3, "{kind:?}: {waits} waits, {:?}", start.elapsed());
        let other = {
            let doorbell = doorbell.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                doorbell.ring();
            })
        };
        let start = Instant::now();
        io.pause(Some(10 * SECOND)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        other.join().unwrap();
    }
}

#[test]
fn an_early_bell_is_not_slept_through() {
    on_each(|mut io| {
        io.doorbell().bell().ring();
        let start = Instant::now();
        io.wait(Some(10 * SECOND)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn every_mode_of_the_ladder_works() {
    for from in 0..uring::MODES.len() {
        let setup =
            Setup { config: IoKind::Uring.into(), doorbell: doorbell(), helpers: None, name: "t".into() };
        let engine = uring::Engine::with_modes(&setup, &uring::MODES[from..]).unwrap();
        let mut io = Io::Uring(engine);
        let mut file = scratch();
        file.write_all(&[6; 64]).unwrap();
        let file = io.add_file(file).unwrap();
        let mut buffer = [0u8; 64];
        assert_eq!(read(&mut io, file, &mut [&mut buffer], 0), 64);
        assert_eq!(buffer, [6; 64]);
        let kick = event_fd();
        let id = io.watch(kick.as_raw_fd()).unwrap();
        kick.write(1).unwrap();
        assert_eq!(fired(&mut io, 2000), [id]);
    }
}

#[test]
fn no_ring_of_any_mode_is_an_error_not_a_crash() {
    let setup = Setup { config: IoKind::Uring.into(), doorbell: doorbell(), helpers: None, name: "t".into() };
    assert!(uring::Engine::with_modes(&setup, &[]).is_err());
}

fn with_registered_memory() -> Io {
    let config = IoConfig { kind: IoKind::Uring, register_memory: true, ..IoConfig::default() };
    Io::new(config, doorbell()).unwrap()
}

#[test]
fn transfers_inside_registered_memory_are_fixed_and_move_the_same_bytes() {
    let mut io = with_registered_memory();
    let guest = OwnMemory::new(1 << 20, GuestAddr(0)).unwrap();
    io.register_memory(1, guest.table());
    let file = io.add_file(scratch()).unwrap();
    let slice = guest.slice(GuestAddr(4096), 8192).unwrap();
    slice.fill(0x5a);
    let range = slice.range();
    let iov = (&raw const range).cast();
    assert_eq!(run(&mut io, Op::Writev { file, iov, n: 1, offset: 0, flags: 0 }), 8192);
    slice.fill(0);
    assert_eq!(run(&mut io, Op::Readv { file, iov, n: 1, offset: 0, flags: 0 }), 8192);
    assert_eq!(slice.read_obj::<u64>(8184), Some(0x5a5a_5a5a_5a5a_5a5a));
    assert_eq!(io.counters().fixed, 2);
    io.register_memory(1, &memory::MemoryTable::empty());
    assert_eq!(run(&mut io, Op::Readv { file, iov, n: 1, offset: 0, flags: 0 }), 8192);
    assert_eq!(io.counters().fixed, 2, "forgotten memory goes the ordinary way");
    assert_eq!(io.counters().register_refused, 0);
}

#[test]
fn memory_that_cannot_be_registered_is_counted_and_used_all_the_same() {
    let mut io = with_registered_memory();
    // Nothing lies behind the second half of this mapping, so its pages cannot be pinned.
    let file = scratch();
    file.set_len(1 << 20).unwrap();
    let region = RegionConfig { guest: GuestAddr(0), len: 1 << 20, user: UserAddr(0), mmap_offset: 0 };
    let mut map = memory::MemoryMap::new();
    let table = map.add(region, file.try_clone().unwrap().into()).unwrap();
    file.set_len(1 << 19).unwrap();
    io.register_memory(1, &table);
    assert_eq!(io.counters().register_refused, 1);
    let mut data = scratch();
    data.write_all(&[3; 16]).unwrap();
    let data = io.add_file(data).unwrap();
    let slice = table.slice(GuestAddr(0), 16).unwrap();
    let range = slice.range();
    let iov = (&raw const range).cast();
    assert_eq!(run(&mut io, Op::Readv { file: data, iov, n: 1, offset: 0, flags: 0 }), 16);
    assert_eq!(slice.read_obj::<u8>(15), Some(3));
    assert_eq!(io.counters().fixed, 0);
}
