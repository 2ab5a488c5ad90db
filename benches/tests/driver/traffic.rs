//! The network driver against a backend in this process, honest and lying, and against testpmd where it is installed.

use std::path::PathBuf;
use std::time::Duration;

use crate::frame_bus::{Backend, Lie};
use benches::guest::Shown;
use benches::net::{self, Load, Report, Target};
use benches::process::find_program;
use benches::testpmd::{self, Testpmd};
use tempfile::TempDir;

struct Bench {
    _folder: TempDir,
    sockets: Vec<PathBuf>,
    backend: Option<Backend>,
}

impl Bench {
    fn new(ports: usize, lie: Lie) -> Self {
        let mut bench = Self::without_backend(ports);
        bench.backend = Some(Backend::start(&bench.sockets, lie));
        bench
    }

    fn without_backend(ports: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sockets = (0..ports).map(|port| folder.path().join(format!("{port}.sock"))).collect();
        Self { _folder: folder, sockets, backend: None }
    }

    fn try_run(&self, options: &str) -> anyhow::Result<Report> {
        let load = Load::parse(options).unwrap();
        let target = Target { sockets: self.sockets.clone(), server: false };
        net::run(&target, &load, None, &mut |_| {})
    }

    fn run(&self, options: &str) -> Report {
        self.try_run(options).unwrap()
    }
}

#[test]
fn every_frame_comes_back_with_every_byte_in_every_kind_of_ring() {
    for rings in [
        "",
        "--no-event-idx",
        "--in-order",
        "--indirect",
        "--no-mergeable",
        "--packed",
        "--packed --in-order",
        "--packed --indirect --no-mergeable",
        "--packed --ring-size 100",
    ] {
        let options = format!("loopback --verify --window 32 --packets 3000 --runtime 60 {rings}");
        let report = Bench::new(1, Lie::None).run(&options);
        assert!(report.is_clean(), "{rings}: {}", report.table());
        assert_eq!((report.sent, report.lost), (3000, Some(0)), "{rings}: {}", report.table());
        assert_eq!((report.verified_frames, report.reordered), (3000, 0), "{rings}");
        assert!(report.cpu_ns_per_packet.is_some(), "the backend is this very process");
    }
}

#[test]
fn two_guests_exchange_frames_both_ways_on_two_queues() {
    let options = "pair --bidirectional --queues 2 --verify --window 32 --packets 1000 --runtime 60";
    for rings in ["", "--packed"] {
        let report = Bench::new(2, Lie::None).run(&format!("{options} {rings}"));
        assert!(report.is_clean(), "{}", report.table());
        assert_eq!((report.lost, report.verified_frames), (Some(0), report.sent), "{}", report.table());
        assert!(report.sent >= 2000, "{}", report.table());
    }
}

#[test]
fn frames_larger_than_a_buffer_are_put_together_again() {
    for (size, rings) in [
        ("9000", ""),
        ("64k --tso", "--packed --rx-buffer 16k"),
        ("64k --tso", "--no-mergeable"),
        ("9000", "--blind"),
    ] {
        let verify = if rings == "--blind" { "" } else { "--verify" };
        let options = format!("pair --size {size} {rings} {verify} --window 4 --packets 200 --runtime 60");
        let report = Bench::new(2, Lie::None).run(&options);
        assert!(report.is_clean(), "{options}: {}", report.table());
        // What comes after the last frame was sent belongs to no measured time.
        let counted = if verify.is_empty() { report.packets } else { report.verified_frames };
        assert!(counted <= 201 && counted >= if verify.is_empty() { 190 } else { 200 }, "{}", report.table());
    }
}

#[test]
fn losses_duplicates_reordering_and_wrong_bytes_are_counted() {
    let options = "loopback --verify --window 64 --packets 5000 --runtime 60";
    let report = |lie| Bench::new(1, lie).run(options);
    let dropped = report(Lie::Drop);
    assert_eq!((dropped.lost, dropped.is_clean()), (Some(100), true), "{}", dropped.table());
    let repeated = report(Lie::Repeat);
    assert_eq!((repeated.lost, repeated.is_clean()), (Some(0), false), "{}", repeated.table());
    assert!(repeated.duplicates >= 100, "{}", repeated.table());
    let swapped = report(Lie::Swap);
    assert!(swapped.reordered > 0 && swapped.is_clean() && swapped.lost == Some(0), "{}", swapped.table());
    let corrupt = report(Lie::Corrupt);
    assert_eq!((corrupt.wrong_frames, corrupt.is_clean()), (100, false), "{}", corrupt.table());
    assert!(corrupt.mismatches[0].contains("byte 63 is"), "{:?}", corrupt.mismatches);
}

#[test]
fn a_backend_that_names_buffers_it_does_not_have_ends_the_run() {
    let error = Bench::new(1, Lie::Buffers).try_run("loopback --packets 5000 --runtime 60").unwrap_err();
    assert!(format!("{error:#}").contains("takes 1001 receive buffers"), "{error:#}");
}

#[test]
fn round_trips_are_measured_polled_and_with_interrupts() {
    for (ports, waiting) in [(2, "--poll"), (2, "--interrupt"), (1, "--interrupt --packed"), (1, "--poll")] {
        let options = format!("ping --packets 300 --runtime 60 {waiting}");
        let report = Bench::new(ports, Lie::None).run(&options);
        let latency = report.latency.unwrap();
        assert!(latency.p50_us > 0.0 && latency.p50_us <= latency.p99_us, "{options}: {}", report.table());
        assert!(report.sent >= 300 && report.timeouts == 0, "{options}: {}", report.table());
        let interrupted = report.interrupts_per_packet > 0.5;
        assert_eq!(interrupted, waiting.contains("interrupt"), "{options}: {}", report.table());
    }
}

#[test]
fn interrupts_instead_of_polling_lose_no_frame() {
    for rings in ["", "--packed", "--no-event-idx"] {
        let options =
            format!("loopback --interrupt --verify --window 32 --packets 3000 --runtime 60 {rings}");
        let report = Bench::new(1, Lie::None).run(&options);
        assert!(report.is_clean() && report.lost == Some(0), "{rings}: {}", report.table());
        assert!(report.interrupts_per_packet > 0.0, "{rings}: {}", report.table());
    }
}

#[test]
fn a_driver_that_listens_is_found_by_its_backend() {
    let bench = Bench::without_backend(2);
    let _backend = Backend::connect(&bench.sockets);
    let load = Load::parse("pair --verify --window 32 --packets 500 --runtime 60").unwrap();
    let target = Target { sockets: bench.sockets.clone(), server: true };
    let report = net::run(&target, &load, None, &mut |_| {}).unwrap();
    assert!(report.is_clean() && report.verified_frames == 500, "{}", report.table());
}

#[test]
fn a_rate_is_kept() {
    let report = Bench::new(1, Lie::None).run("loopback --rate 2000 --runtime 500ms");
    // A busy machine may fall behind; nothing may run ahead.
    assert!((0.4..=1.05).contains(&(report.pps / 2000.0)), "{}", report.table());
}

#[test]
fn a_dead_backend_is_waited_for_and_frames_flow_again() {
    for rings in ["", "--packed", "--packed --in-order"] {
        let mut bench = Bench::new(2, Lie::None);
        let (sockets, first) = (bench.sockets.clone(), bench.backend.take());
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(first);
            std::thread::sleep(Duration::from_millis(50));
            let second = Backend::start(&sockets, Lie::None);
            std::thread::sleep(Duration::from_secs(2));
            drop(second);
        });
        let options = format!("pair --rate 5k --verify --runtime 1 --reconnect {rings}");
        let report = bench.run(&options);
        killer.join().unwrap();
        assert_eq!(report.outages_ms.len(), 1, "{rings}: {}", report.table());
        assert_eq!((report.wrong_frames, report.duplicates), (0, 0), "{rings}: {}", report.table());
        assert!(report.lost.unwrap() < 256 && report.packets > 2000, "{rings}: {}", report.table());
    }
}

#[test]
fn a_backend_that_goes_away_ends_a_run_that_does_not_wait_for_it() {
    let mut bench = Bench::new(1, Lie::None);
    let backend = bench.backend.take();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(backend);
    });
    let error = bench.try_run("loopback --runtime 10").unwrap_err();
    killer.join().unwrap();
    assert!(format!("{error:#}").contains("--reconnect"), "{error:#}");
}

/// testpmd with a port for each socket, or the reason why there is none.
fn peer(bench: &Bench, topology: &str) -> Option<Testpmd> {
    if find_program("dpdk-testpmd").is_none() {
        eprintln!("skipped: dpdk-testpmd is not there; install the Debian package {}", testpmd::PACKAGE);
        return None;
    }
    let ports: String = bench
        .sockets
        .iter()
        .enumerate()
        .map(|(port, socket)| format!("--vdev net_vhost{port},iface={} ", socket.display()))
        .collect();
    let prefix = bench.sockets[0].parent().unwrap().file_name().unwrap().to_str().unwrap();
    let line = format!(
        "dpdk-testpmd --lcores 0@1,1@1 --no-huge -m 256 --no-pci --file-prefix={prefix} {ports} -- -i --auto-start \
         --no-mlockall --total-num-mbufs=8192 --port-topology={topology} --record-core-cycles"
    );
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Some(Testpmd::start(&words, &[]).unwrap())
}

#[test]
fn our_driver_and_testpmds_backend_understand_each_other() {
    let bench = Bench::without_backend(2);
    let Some(mut testpmd) = peer(&bench, "paired") else { return };
    let load = Load::parse("pair --verify --window 64 --runtime 500ms --warmup 100ms --packed").unwrap();
    let target = Target { sockets: bench.sockets.clone(), server: false };
    let report = net::run(&target, &load, Some(&mut testpmd), &mut |_| {}).unwrap();
    testpmd.quit();
    assert!(report.is_clean() && report.verified_frames > 0, "{}", report.table());
    assert!(report.cycles_are_busy, "{}", report.table());
}

#[test]
fn virtio_user_drives_testpmds_backend_on_the_path_that_was_asked_for() {
    let bench = Bench::without_backend(1);
    let Some(mut backend) = peer(&bench, "loop") else { return };
    let load =
        testpmd::Load::parse("loopback --path packed-in-order --runtime 500ms --warmup 200ms").unwrap();
    let report = testpmd::run(&bench.sockets, &load, Some(&mut backend)).unwrap();
    backend.quit();
    assert!(report.packets > 0 && report.cycles_per_packet.is_some(), "{}", report.table());
    assert!(report.cpu_ns_per_packet.is_some(), "{}", report.table());
}
