//! Regions on hugetlbfs, whose pages are larger than the machine's.

mod support;

use std::fs;
use std::io::Write;
use std::sync::Mutex;

use memory::{GuestAddr, MemoryMap, sigbus};
use support::{PAGE, memfd, region, send};

const HUGE: u64 = 2 << 20;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// The pool is one for the whole machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Reserved pages, given back at the end.
struct Reserved {
    before: u64,
}

impl Reserved {
    fn pages(count: u64) -> Result<Self, String> {
        let read = || -> Result<u64, String> {
            let text = fs::read_to_string(POOL).map_err(|error| format!("{POOL}: {error}"))?;
            text.trim().parse().map_err(|error| format!("{POOL}: {error}"))
        };
        let before = read()?;
        fs::write(POOL, (before + count).to_string()).map_err(|error| format!("{POOL}: {error}"))?;
        let reserved = Self { before };
        let now = read()?;
        if now < before + count {
            return Err(format!("only {} of {count} huge pages of 2 MiB could be reserved", now - before));
        }
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // A pool that cannot be shrunk again is left as it is.
        let _ = fs::write(POOL, self.before.to_string());
    }
}

/// Says, past the capturing of the test harness, that a test could not run; in CI that is a failure.
fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}");
    assert!(std::env::var_os("CI").is_none(), "{line}");
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn with_huge_pages(test: &str, count: u64, body: impl FnOnce()) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match Reserved::pages(count) {
        Ok(_reserved) => body(),
        Err(why) => skipped(test, &why),
    }
}

#[test]
fn regions_at_any_page_of_a_huge_page_are_mapped() {
    with_huge_pages("regions_at_any_page_of_a_huge_page_are_mapped", 2, || {
        let file = memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, 2 * HUGE).expect("a huge memfd");
        let mut map = MemoryMap::new();
        // What QEMU sends for a PC: the hole below 1 MiB cuts the first huge page.
        let low = region(0, 0xa0, 0);
        let high = region(0xc_0000, (2 * HUGE - 0xc_0000) / PAGE, 0xc_0000);
        let table = map.set_table(vec![(low, send(&file)), (high, send(&file))]).expect("usable regions");
        table.slice(GuestAddr(0x9_fff8), 8).expect("inside").fill(0x11);
        table.slice(GuestAddr(0xc_0000), 8).expect("inside").fill(0x22);
        table.slice(GuestAddr(2 * HUGE - 8), 8).expect("inside").fill(0x33);

        let all = map.set_table(vec![(region(0, 2 * HUGE / PAGE, 0), send(&file))]).expect("a usable region");
        let word = |at| support::word(&all, at);
        assert_eq!(word(0x9_fff8), 0x1111_1111_1111_1111);
        assert_eq!(word(0xc_0000), 0x2222_2222_2222_2222);
        assert_eq!(word(2 * HUGE - 8), 0x3333_3333_3333_3333);
        drop(table);
        assert_eq!(
            word(0xc_0000),
            0x2222_2222_2222_2222,
            "unmapping the old regions took nothing else with it"
        );
    });
}

#[test]
fn a_truncated_huge_page_becomes_zeros() {
    with_huge_pages("a_truncated_huge_page_becomes_zeros", 2, || {
        sigbus::install().expect("handler");
        let file = memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, 2 * HUGE).expect("a huge memfd");
        let mut map = MemoryMap::new();
        let table =
            map.set_table(vec![(region(0, 2 * HUGE / PAGE, 0), send(&file))]).expect("a usable region");
        table.slice(GuestAddr(0), 8).expect("inside").fill(0x11);
        table.slice(GuestAddr(HUGE), 8).expect("inside").fill(0x22);
        file.set_len(HUGE).expect("truncate");
        assert_eq!(support::word(&table, HUGE), 0);
        assert_eq!(support::word(&table, 2 * HUGE - 8), 0);
        assert_eq!(support::word(&table, 0), 0x1111_1111_1111_1111);
        assert!(table.failed());
        map.clear();
    });
}
