//! Memory files that are truncated under their mappings, and faults that are none of ours.

#![expect(unsafe_code, reason = "provokes faults outside any mapping of the crate")]

mod support;

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::Ordering;

use memory::{Area, DirtyLog, GuestAddr, MemoryMap, sigbus};
use support::{PAGE, memfd, pattern, patterned, region, send, word};

#[test]
fn a_truncated_file_fails_its_table_and_not_the_process() {
    sigbus::install().expect("handler");
    let (doomed, sound) = (patterned(1, 4), patterned(2, 4));
    let mut maps = [MemoryMap::new(), MemoryMap::new()];
    let failing = maps[0].set_table(vec![(region(0, 4, 0), send(&doomed))]).expect("a usable region");
    let other = maps[1].set_table(vec![(region(0, 4, 0), send(&sound))]).expect("a usable region");
    doomed.set_len(PAGE).expect("truncate");
    assert!(!failing.failed(), "nothing has touched it yet");

    let reader = std::thread::spawn({
        let table = failing.clone();
        move || (word(&table, 0), word(&table, 2 * PAGE), word(&table, 3 * PAGE))
    });
    assert_eq!(reader.join().expect("the thread survives"), (pattern(1, 0), 0, 0));
    assert!(failing.failed());
    failing.slice(GuestAddr(2 * PAGE), 8).expect("inside").fill(1);
    assert_eq!(word(&failing, 2 * PAGE), 0x0101_0101_0101_0101);
    assert!(!other.failed());
    assert_eq!(word(&other, 3 * PAGE), pattern(2, 3 * PAGE));
}

#[test]
fn a_copy_over_many_truncated_pages_gives_zeros() {
    sigbus::install().expect("handler");
    let file = patterned(1, 16);
    let mut map = MemoryMap::new();
    let table = map.set_table(vec![(region(0, 16, 0), send(&file))]).expect("a usable region");
    file.set_len(0).expect("truncate");
    let mut bytes = vec![1; 16 * PAGE as usize];
    table.slice(GuestAddr(0), bytes.len()).expect("inside").read(0, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == 0));
    assert!(table.failed());
}

#[test]
fn a_failed_mapping_is_not_kept_by_the_next_table() {
    sigbus::install().expect("handler");
    let file = patterned(1, 4);
    let mut map = MemoryMap::new();
    let first = map.set_table(vec![(region(0, 4, 0), send(&file))]).expect("a usable region");
    file.set_len(0).expect("truncate");
    word(&first, 0);
    file.set_len(4 * PAGE).expect("grow again");
    let second = map.set_table(vec![(region(0, 4, 0), send(&file))]).expect("a usable region");
    assert!(first.failed() && !second.failed());
    assert_ne!(support::host(&first, 0), support::host(&second, 0));
}

#[test]
fn a_ring_area_over_a_truncated_file_fails_and_reads_zeros() {
    sigbus::install().expect("handler");
    let file = memfd(0, 2 * PAGE).expect("memfd");
    let mut map = MemoryMap::new();
    let table = map.set_table(vec![(region(0, 2, 0), send(&file))]).expect("a usable region");
    let ring = table.area(GuestAddr(PAGE), 64).expect("inside");
    ring.store_u16(2, 7, Ordering::Release);
    file.set_len(0).expect("truncate");
    assert_eq!(ring.load_u16(2, Ordering::Acquire), 0);
    ring.store_u16(2, 9, Ordering::Release);
    assert_eq!(ring.load_u16(2, Ordering::Acquire), 9);
    assert!(ring.failed() && table.failed());
}

#[test]
fn areas_and_logs_of_their_own_files_survive_truncation_too() {
    sigbus::install().expect("handler");
    let file = memfd(0, PAGE).expect("memfd");
    let area = Area::map(&file, 4096, 0).expect("a usable file");
    let log = DirtyLog::map(send(&file), 4096, 0).expect("a usable file");
    file.set_len(0).expect("truncate");
    log.mark(GuestAddr(0), 1);
    assert_eq!(area.load_u64(8, Ordering::Relaxed), 0);
    assert!(area.failed());
}

#[test]
fn many_threads_may_fault_at_once() {
    sigbus::install().expect("handler");
    let file = patterned(1, 64);
    let mut map = MemoryMap::new();
    let table = map.set_table(vec![(region(0, 64, 0), send(&file))]).expect("a usable region");
    file.set_len(0).expect("truncate");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..64).for_each(|page| assert_eq!(word(&table, page * PAGE), 0)));
        }
    });
    assert!(table.failed());
}

/// Runs one of the tests below in a process of its own, with a switch that makes it do what its name says.
fn in_child(test: &str) -> ExitStatus {
    let this = std::env::current_exe().expect("this test binary");
    let mut child = Command::new(this);
    child.args(["--exact", test, "--test-threads=1"]).env("SIGBUS_CHILD", "1");
    child.output().expect("a child process").status
}

fn is_child() -> bool {
    std::env::var_os("SIGBUS_CHILD").is_some()
}

#[test]
fn a_fault_outside_our_mappings_ends_the_process() {
    if !is_child() {
        let status = in_child("a_fault_outside_our_mappings_ends_the_process");
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
        return;
    }
    sigbus::install().expect("handler");
    let file = memfd(0, PAGE).expect("memfd");
    let flags = libc::MAP_SHARED;
    // SAFETY: a fresh mapping; the read faults, which is the point, and ends this process.
    unsafe {
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, file.as_raw_fd(), 0);
        assert_ne!(page, libc::MAP_FAILED);
        file.set_len(0).expect("truncate");
        page.cast::<u8>().read_volatile();
    }
}

#[test]
fn a_signal_that_somebody_sent_ends_the_process() {
    if !is_child() {
        let status = in_child("a_signal_that_somebody_sent_ends_the_process");
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
        return;
    }
    sigbus::install().expect("handler");
    // SAFETY: a signal to ourselves.
    unsafe { libc::kill(libc::getpid(), libc::SIGBUS) };
    std::thread::sleep(std::time::Duration::from_secs(5));
}

#[test]
fn an_unmapped_mapping_is_no_longer_guarded() {
    if !is_child() {
        let status = in_child("an_unmapped_mapping_is_no_longer_guarded");
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
        return;
    }
    sigbus::install().expect("handler");
    let file = memfd(0, PAGE).expect("memfd");
    let mut map = MemoryMap::new();
    let table = map.add(region(0, 1, 0), send(&file)).expect("a usable region");
    let ours = support::host(&table, 0).base;
    map.clear();
    drop(table);
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: maps where nothing is mapped any more; the read faults and ends this process.
    unsafe {
        let page = libc::mmap(ours, 4096, libc::PROT_READ, flags, file.as_raw_fd(), 0);
        assert_eq!(page, ours);
        file.set_len(0).expect("truncate");
        page.cast::<u8>().read_volatile();
    }
}
