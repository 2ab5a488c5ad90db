//! The virtio-crypto driver against a card in this process, honest and lying.

use std::path::PathBuf;
use std::sync::Arc;

use benches::crypto::{self, Load, Report, Target};
use benches::guest::Shown;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::crypto_card::{Card, Lie};

struct Bench {
    _folder: TempDir,
    card: Arc<Card>,
    socket: PathBuf,
    _backend: Backend,
}

impl Bench {
    fn new(lie: Lie) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("crypto.sock");
        let card = Card::new(lie);
        let backend = Backend::start(&socket, &card);
        Self { _folder: folder, card, socket, _backend: backend }
    }

    fn try_run(&self, options: &str) -> anyhow::Result<Report> {
        let load = Load::parse(options).unwrap();
        let target = Target { socket: &self.socket, control: None };
        crypto::run(target, &load, &mut |_| {})
    }

    fn run(&self, options: &str) -> Report {
        self.try_run(options).unwrap_or_else(|error| panic!("{options}: {error:#}"))
    }
}

/// Each result is right, each request was counted, and no session is left open.
fn all_right(options: &str) {
    let bench = Bench::new(Lie::None);
    let report = bench.run(&format!("--requests 300 --verify {options}"));
    assert!(report.is_clean(), "{options}: {}", report.table());
    assert_eq!((report.verified, report.operations), (300, 300), "{options}: {}", report.table());
    assert_eq!(bench.card.open(), 0, "{options}");
}

#[test]
fn every_symmetric_service_is_driven_in_sessions_of_both_revisions_and_without_any() {
    for algorithm in [
        "aes-128-cbc",
        "aes-256-ctr",
        "aes-192-ecb",
        "aes-256-xts",
        "aes-128-cbc-hmac-sha1",
        "sha256",
        "hmac-sha512",
        "aes-128-gcm",
        "aes-256-ccm",
        "chacha20-poly1305",
    ] {
        for format in ["", "--revision-1", "--stateless"] {
            all_right(&format!("--algorithm {algorithm} --size 208 {format}"));
        }
    }
    for algorithm in ["aes-128-cbc", "aes-128-cbc-hmac-sha256", "aes-256-gcm", "aes-128-ccm"] {
        all_right(&format!("--algorithm {algorithm} --direction decrypt --size 1k"));
    }
}

#[test]
fn public_key_operations_are_driven_with_either_half_of_the_key() {
    for direction in ["sign", "verify", "encrypt", "decrypt"] {
        for format in ["", "--stateless"] {
            all_right(&format!("--algorithm rsa-1024 --direction {direction} --depth 4 {format}"));
        }
    }
    for direction in ["sign", "verify"] {
        all_right(&format!("--algorithm ecdsa-p256 --direction {direction} --revision-1"));
    }
}

#[test]
fn sessions_come_by_messages_of_both_sizes_through_the_door_of_qemu() {
    for door in ["a", "a632"] {
        for algorithm in ["aes-128-cbc", "aes-256-xts", "aes-256-cbc-hmac-sha1"] {
            all_right(&format!("--door {door} --algorithm {algorithm} --jobs 4"));
        }
        all_right(&format!("--door {door} --interrupt --indirect --depth 64"));
    }
    all_right("--door a --algorithm rsa-1024 --depth 4");
    all_right("--door a --algorithm ecdsa-p384 --direction verify --depth 4");
}

#[test]
fn what_a_message_cannot_say_is_refused_in_one_sentence() {
    for options in [
        "--door a632 --algorithm rsa-1024",
        "--door a --algorithm rsa-2048",
        "--door a --algorithm sha1",
        "--door a --algorithm aes-128-gcm",
    ] {
        let error = Bench::new(Lie::None).try_run(options).err().unwrap();
        assert!(format!("{error:#}").contains("use --door b"), "{options}: {error:#}");
    }
}

#[test]
fn requests_are_right_in_every_kind_of_ring_cut_into_pieces_and_in_place() {
    for options in [
        "--packed",
        "--packed --indirect --in-order",
        "--indirect --segments 7 --size 4k",
        "--segments 3 --size 48 --depth 8",
        "--no-event-idx --interrupt",
        "--in-place --size 64k --depth 4",
        "--in-place --algorithm aes-128-gcm",
        "--in-place --algorithm aes-128-gcm --direction decrypt --segments 2 --indirect",
        "--depth 1",
        "--rate 20k --interrupt",
    ] {
        all_right(options);
    }
}

#[test]
fn every_queue_and_every_job_has_a_session_of_its_own() {
    let bench = Bench::new(Lie::None);
    let report = bench.run("--queues 2 --jobs 8 --depth 16 --requests 400 --verify");
    assert!(report.is_clean() && report.verified == 800, "{}", report.table());
}

#[test]
fn every_kind_of_lie_is_caught() {
    for lie in [Lie::Corrupt, Lie::Skip, Lie::WrongKeys] {
        let report = Bench::new(lie).run("--jobs 2 --requests 500 --verify");
        assert_eq!((report.wrong, report.verified), (10, 500), "{lie:?} went unnoticed: {}", report.table());
        assert!(report.mismatches[0].contains("aes-128-cbc, 4096 bytes: byte "), "{:?}", report.mismatches);
    }
}

#[test]
fn a_failing_request_ends_the_run_unless_told_otherwise() {
    let bench = Bench::new(Lie::Fail);
    let report = bench.run("--requests 5000 --depth 8");
    assert!((1..=8).contains(&report.errors), "{}", report.table());
    assert_eq!(report.first_error.as_deref(), Some("1 (ERR)"));
    let report = bench.run("--requests 5000 --depth 8 --continue-on-error");
    assert_eq!((report.operations, report.errors), (5000, 100));
    let report = Bench::new(Lie::NoStatus).run("--requests 1000");
    assert!(report.first_error.as_ref().unwrap().contains("wrote no status"));
}

#[test]
fn a_device_that_is_not_ready_or_makes_no_session_is_refused_in_one_sentence() {
    let error = |lie, options| format!("{:#}", Bench::new(lie).try_run(options).err().unwrap());
    assert!(error(Lie::NotReady, "").contains("not ready"));
    assert!(error(Lie::NoSessions, "").contains("refused a session for aes-128-cbc: status 3 (NOTSUPP)"));
    assert!(error(Lie::NoSessions, "--door a").contains("refused a session for aes-128-cbc"));
    assert!(error(Lie::None, "--queues 3").contains("has 2 data queues, 3 are asked for"));
}

#[test]
fn figures_of_an_open_loop_count_what_was_due() {
    let report = Bench::new(Lie::None).try_run("--rate 2000 --runtime 1 --interrupt --size 256").unwrap();
    assert!((1000.0..2100.0).contains(&report.ops_per_second), "{}", report.table());
    assert!(report.interrupts_per_op > 0.0 && report.kicks_per_op > 0.0, "{}", report.table());
    assert!(report.cpu_us_per_op.is_some(), "the backend is this very process");
}
