//! The load generator against a backend in this process, honest and lying.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::backend::Backend;
use crate::memory_disk::{Lie, Shared};
use benches::blk::client::{Disk, Operation, QueueError, Setup};
use benches::blk::wire::status;
use benches::blk::{self, Load, Report};
use benches::guest::Shown;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

struct Bench {
    _folder: TempDir,
    shared: Arc<Shared>,
    socket: PathBuf,
    backend: Option<Backend>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("disk.sock");
        let shared = Shared::new(4 * MIB);
        let backend = Some(Backend::start(&socket, &shared));
        Self { _folder: folder, shared, socket, backend }
    }

    fn try_run(&self, options: &str) -> anyhow::Result<Report> {
        let load = Load::parse(options).unwrap();
        blk::run(&self.socket, &load, &mut |_| {})
    }

    fn run(&self, options: &str) -> Report {
        self.try_run(options).unwrap()
    }
}

#[test]
fn a_load_of_given_length_completes_exactly_its_requests() {
    let report = Bench::new().run("--rw randread --number-ios 5000 --numjobs 2 --iodepth 16 --runtime 60");
    assert_eq!((report.operations, report.errors), (10_000, 0));
    assert!(report.iops > 0.0 && report.seconds < 60.0);
    assert!((report.mb_per_second / report.iops * 1e6 - 4096.0).abs() < 100.0, "{report:?}");
    assert!(report.latency.p50_us > 0.0 && report.latency.p50_us <= report.latency.max_us);
    assert!(report.batch >= 1.0);
    assert!(report.cpu_us_per_op.is_some(), "the backend is this very process");
}

#[test]
fn writes_are_read_back_and_every_block_is_right_in_both_ring_formats() {
    for format in
        ["", "--packed", "--indirect", "--packed --indirect", "--packed --in-order", "--no-event-idx"]
    {
        let bench = Bench::new();
        let report = bench.run(&format!("--rw randrw --verify --number-ios 4000 --numjobs 2 {format}"));
        assert!(report.is_clean(), "{format}: {}", report.table());
        assert!(report.verified_blocks > 800, "{format}: {}", report.table());
    }
}

#[test]
fn interrupts_instead_of_polling_lose_no_completion() {
    for options in ["--iodepth 1", "--iodepth 32", "--packed --iodepth 32", "--iodepth 8 --no-event-idx"] {
        let bench = Bench::new();
        let report = bench.run(&format!("--rw randwrite --verify --number-ios 3000 --interrupt {options}"));
        assert!(report.is_clean() && report.operations == 3000, "{options}: {}", report.table());
        assert!(report.interrupts_per_op > 0.0, "{options}: {}", report.table());
    }
}

#[test]
fn a_polling_driver_asks_for_no_interrupts() {
    let report = Bench::new().run("--rw randread --number-ios 5000 --poll");
    assert!(report.interrupts_per_op < 0.1, "{}", report.table());
}

#[test]
fn a_read_run_verifies_what_an_earlier_run_wrote_and_finds_what_it_did_not() {
    let bench = Bench::new();
    let whole = "--bs 16k --number-ios 256 --seed 5";
    assert!(bench.run(&format!("--rw write --verify {whole}")).is_clean());
    let report = bench.run(&format!("--rw read --verify {whole}"));
    assert!(report.is_clean() && report.verified_blocks == 256, "{}", report.table());
    bench.shared.bytes.lock().unwrap()[MIB + 77] ^= 0x80;
    let report = bench.run(&format!("--rw read --verify {whole}"));
    assert_eq!(report.wrong_blocks, 1, "{}", report.table());
    assert!(report.mismatches[0].contains(&format!("Byte {} ", MIB + 77)), "{:?}", report.mismatches);
}

#[test]
fn every_kind_of_lie_is_caught() {
    for (lie, options) in [
        (Lie::CorruptRead, "--rw randwrite"),
        (Lie::DropWrite, "--rw write"),
        (Lie::MisplaceWrite, "--rw write"),
        (Lie::SkipRead, "--rw randrw"),
    ] {
        let bench = Bench::new();
        bench.shared.lie(lie);
        let report = bench.run(&format!("{options} --verify --number-ios 900 --iodepth 4"));
        assert!(report.wrong_blocks > 0, "{lie:?} went unnoticed: {}", report.table());
        assert!(!report.mismatches.is_empty() && !report.is_clean());
    }
}

#[test]
fn a_failing_request_ends_the_run_unless_told_otherwise() {
    let bench = Bench::new();
    bench.shared.lie(Lie::Fail);
    let report = bench.run("--rw randread --number-ios 5000 --iodepth 8");
    assert!((1..=8).contains(&report.errors), "{}", report.table());
    assert_eq!(report.first_error.as_deref(), Some("1 (IOERR)"));
    let report = bench.run("--rw randread --number-ios 5000 --iodepth 8 --continue-on-error");
    assert_eq!((report.operations, report.errors), (5000, 100));
}

#[test]
fn a_completion_without_a_status_is_an_error() {
    let bench = Bench::new();
    bench.shared.lie(Lie::NoStatus);
    let report = bench.run("--rw randread --number-ios 1000");
    assert!(report.errors > 0);
    assert!(report.first_error.as_ref().unwrap().contains("wrote no status"));
}

#[test]
fn discards_zeroes_and_flushes_reach_the_backend() {
    let bench = Bench::new();
    bench.shared.bytes.lock().unwrap().fill(0xff);
    assert!(bench.run("--rw zero --bs 64k --number-ios 64 --iodepth 4").is_clean());
    assert!(bench.shared.bytes.lock().unwrap().iter().all(|&byte| byte == 0));
    assert!(bench.run("--rw trim --bs 64k --number-ios 64 --iodepth 4").is_clean());
    assert_eq!(bench.shared.discarded.load(Ordering::Relaxed), 4 * MIB as u64);
    assert!(bench.run("--rw flush --number-ios 10").is_clean());
    assert!(bench.run("--rw write --number-ios 110 --fsync 10 --iodepth 1").is_clean());
    assert_eq!(bench.shared.flushes.load(Ordering::Relaxed), 10 + 10);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    for waiting in ["--poll", "--interrupt"] {
        let report = Bench::new().run(&format!("--rw randread --rate 2000 --runtime 1 {waiting}"));
        assert!((1000.0..2100.0).contains(&report.iops), "{waiting}: {}", report.table());
    }
}

#[test]
fn segments_split_a_request_without_mixing_its_bytes() {
    let report =
        Bench::new().run("--rw randwrite --bs 64k --segments 16 --iodepth 8 --verify --number-ios 300");
    assert!(report.is_clean() && report.verified_blocks > 30, "{}", report.table());
}

#[test]
fn what_the_backend_lacks_is_refused_in_one_sentence() {
    let bench = Bench::new();
    let error = |options: &str| format!("{:#}", bench.try_run(options).unwrap_err());
    assert!(error("--numjobs 8").contains("has 4 queues, 8 are asked for"));
    assert!(error("--size 4k --iodepth 2 --verify --rw write").contains("1 blocks, at least 2"));
    bench.shared.set_read_only();
    assert!(error("--rw randwrite").contains("read-only"));
    let gone = blk::run("/nonexistent/x.sock".as_ref(), &Load::default(), &mut |_| {}).unwrap_err();
    assert!(format!("{gone:#}").starts_with("Cannot connect to /nonexistent/x.sock: No such file"));
}

#[test]
fn a_backend_that_goes_away_ends_the_run_with_a_sentence() {
    let mut bench = Bench::new();
    let backend = bench.backend.take();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(backend);
    });
    let error = bench.try_run("--rw randread --runtime 20").unwrap_err().to_string();
    closer.join().unwrap();
    assert!(error.contains("closed the connection"), "{error}");
}

/// The backend takes requests, never completes them, goes away, and comes back honest: what was in flight must be
/// completed by the new one, and every byte must be right.
#[test]
fn requests_in_flight_at_a_crash_are_completed_after_it() {
    for options in ["--poll", "--interrupt", "--poll --packed", "--interrupt --packed", "--poll --indirect"] {
        let mut bench = Bench::new();
        let (socket, shared) = (bench.socket.clone(), Arc::clone(&bench.shared));
        let first = bench.backend.take().unwrap();
        let crash = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            shared.lie(Lie::Swallow);
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
            shared.lie(Lie::None);
            Backend::start(&socket, &shared)
        });
        let report =
            bench.run(&format!("--rw randrw --verify --reconnect --numjobs 2 --runtime 0.6 {options}"));
        let second = crash.join().unwrap();
        assert!(report.is_clean() && report.verified_blocks > 0, "{options}: {}", report.table());
        assert_eq!(report.outages_ms.len(), 1, "{options}: {}", report.table());
        drop(second);
    }
}

#[test]
fn single_requests_can_be_executed_without_a_load() {
    let bench = Bench::new();
    let (disk, mut queues) = Disk::attach(&bench.socket, &Setup { depth: 1, ..Setup::default() }).unwrap();
    assert_eq!(disk.capacity(), 4 * MIB as u64);
    assert!(disk.has_inflight() && !disk.is_read_only());
    assert_eq!(disk.backend_pid(), Some(std::process::id() as i32));
    let queue = &mut queues[0];
    queue.write_data(0, &[7; 4096]);
    queue.execute(Operation::Write, 8192, 4096).unwrap();
    queue.write_data(0, &[0; 4096]);
    queue.execute(Operation::Read, 8192, 4096).unwrap();
    assert_eq!(queue.read_data(0, 4096), [7; 4096]);
    assert_eq!(
        queue.execute(Operation::Read, 4 * MIB as u64, 4096),
        Err(QueueError::Status(status::IOERR)),
        "past the end"
    );
    disk.detach(queues).unwrap();
}
