//! `vhostd-bench` as a program: exit codes, JSON, sentences.

use std::path::Path;
use std::process::{Command, Output};

use crate::backend::Backend;
use crate::compress_card;
use crate::crypto_card::{self, Card};
use crate::frame_bus;
use crate::memory_disk::{Lie, Shared};
use benches::blk::Report;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vhostd-bench")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn drive(socket: &Path, options: &[&str]) -> Output {
    let common =
        ["blk", "--socket", socket.to_str().unwrap(), "--rw", "randrw", "--number-ios", "2000", "--verify"];
    bench(&[&common[..], options].concat())
}

#[test]
fn json_output_is_a_report_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let _backend = Backend::start(&socket, &Shared::new(1 << 20));
    let output = drive(&socket, &["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.operations, report.wrong_blocks), (2000, 0));
    assert!(report.verified_blocks > 0);
    assert!(output.stderr.is_empty());
}

#[test]
fn a_wrong_byte_is_exit_code_1_and_in_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let shared = Shared::new(1 << 20);
    shared.lie(Lie::CorruptRead);
    let _backend = Backend::start(&socket, &shared);
    let output = drive(&socket, &["--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("MISMATCH"), "{}", text(&output.stdout));
}

#[test]
fn bad_usage_is_exit_code_2_and_one_sentence() {
    for (arguments, part) in [
        (&["blk", "--socket", "/x", "--bs", "1000"][..], "no multiple of 512"),
        (&["blk", "--socket", "/x", "--iodepth", "200"][..], "raise --queue-size"),
        (&["blk"][..], "--socket"),
        (&["net", "pair", "--socket", "/x"][..], "pair takes two sockets, 1 given"),
        (&["net", "loopback", "--socket", "/x", "--size", "20"][..], "no frame size"),
        (&["virtio-user", "pair", "--socket", "/x"][..], "pair takes 2 of --socket, 1 given"),
        (&["compare"][..], "SPEC.toml"),
        (&["crypto"][..], "--socket"),
        (&["crypto", "--socket", "/x", "--size", "100"][..], "whole blocks of 16"),
        (&["crypto", "--socket", "/x", "--engine-alone", "library"][..], "cannot be used with"),
        (&["crypto-modes", "--depths", "64", "--load", "--poll"][..], "raise --queue-size"),
        (&["compress"][..], "--socket"),
        (&["compress", "--socket", "/x", "--op", "checksum"][..], "needs --checksum"),
        (&["compress", "--socket", "/x", "--format", "rar"][..], "no format"),
        (&["compress-modes", "--depths", "128", "--load", "--poll"][..], "raise --queue-size"),
        (&["composite", "--record", "5000"][..], "multiple of 4096"),
    ] {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn nothing_listening_is_exit_code_1_and_names_the_socket() {
    let output = bench(&["blk", "--socket", "/nonexistent/s.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("Cannot connect to /nonexistent/s.sock"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_report_of_a_network_load_is_json_and_a_duplicate_is_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let drive = |lie, more: &str| {
        let _backend = frame_bus::Backend::start(std::slice::from_ref(&socket), lie);
        let line = "net loopback --window 32 --packets 2000 --runtime 60 --quiet --socket";
        let words: Vec<&str> = line.split(' ').chain([socket.to_str().unwrap(), more]).collect();
        bench(&words)
    };
    let output = drive(frame_bus::Lie::None, "--json");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: benches::net::Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.sent, report.lost), (2000, Some(0)));
    let output = drive(frame_bus::Lie::Repeat, "--poll");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(" twice"), "{}", text(&output.stdout));
}

#[test]
fn the_report_of_a_crypto_load_is_json_and_a_wrong_result_is_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let drive = |lie, more: &str| {
        let _backend = Backend::start(&socket, &Card::new(lie));
        let line = "crypto --verify --requests 500 --quiet --socket";
        let words: Vec<&str> = line.split(' ').chain([socket.to_str().unwrap(), more]).collect();
        bench(&words)
    };
    let output = drive(crypto_card::Lie::None, "--json");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: benches::crypto::Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.operations, report.verified, report.wrong), (500, 500, 0));
    let output = drive(crypto_card::Lie::Corrupt, "--poll");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("10 wrong"), "{}", text(&output.stdout));
}

#[test]
fn the_report_of_a_compression_load_is_json_and_a_wrong_result_is_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let drive = |lie, more: &str| {
        let _backend = Backend::start(&socket, &compress_card::Card::new(lie));
        let line =
            "compress --verify --size 8k --corpus text --corpus-size 64k --requests 500 --quiet --socket";
        let words: Vec<&str> = line.split(' ').chain([socket.to_str().unwrap(), more]).collect();
        bench(&words)
    };
    let output = drive(compress_card::Lie::None, "--json");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: benches::compress::Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.operations, report.verified, report.wrong), (500, 500, 0));
    assert!(report.ratio.unwrap() > 1.5 && report.corpus.starts_with("text, 64k in 8 blocks"), "{report:?}");
    let output = drive(compress_card::Lie::Corrupt, "--poll");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("10 wrong"), "{}", text(&output.stdout));
}

#[test]
fn an_engine_on_the_core_of_the_submitter_is_compared_with_zlib() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, json) = (folder.path().join("spec.toml"), folder.path().join("rows.json"));
    let contents = r#"
        title = "Engine"
        rounds = 1
        runtime = "500ms"
        warmup = "0"
        [backend.auto]
        command = "{bin}/vhostd-bench compress --engine-alone auto --json --quiet"
        kind = "engine"
        [backend.zlib]
        command = "{bin}/vhostd-bench compress --engine-alone zlib --json --quiet"
        kind = "submitter"
        [[row]]
        name = "level 6"
        ours = "auto"
        peer = "zlib"
        driver = "compress"
        load = "--format zlib --level 6 --size 16k --corpus-size 64k --depth 2"
        figures = [{ of = "ratio", aim = 0.9 }, { of = "bytes" }]
    "#;
    std::fs::write(&spec, contents).unwrap();
    let output = bench(&["compare", spec.to_str().unwrap(), "--json", json.to_str().unwrap(), "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(rows["rows"][0]["reached"].as_bool(), Some(true), "{rows}");
    assert!(rows["rows"][1]["ratio"].as_f64().unwrap() > 0.0, "{rows}");
}

#[test]
fn an_engine_is_compared_with_itself_round_by_round() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, json) = (folder.path().join("spec.toml"), folder.path().join("rows.json"));
    let contents = r#"
        title = "Engine"
        rounds = 2
        runtime = "30ms"
        warmup = "0"
        [backend.library]
        command = "{bin}/vhostd-bench crypto --engine-alone library --json --quiet"
        kind = "engine"
        [[row]]
        name = "twice the bytes"
        ours = "library"
        peer = "library"
        driver = "crypto"
        load = "--algorithm sha256 --size 32k --depth 2"
        peer_load = "--algorithm sha256 --size 64k --depth 2"
        figures = [{ of = "ops", aim = 1.2 }, { of = "bytes" }]
    "#;
    std::fs::write(&spec, contents).unwrap();
    let output = bench(&["compare", spec.to_str().unwrap(), "--json", json.to_str().unwrap(), "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    for row in 0..2 {
        for field in ["ours", "peer", "ratio"] {
            assert!(rows["rows"][row][field].as_f64().unwrap() > 0.0, "{field}: {rows}");
        }
    }
}

#[test]
fn a_comparison_without_its_peer_names_the_package_and_writes_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, json) = (folder.path().join("spec.toml"), folder.path().join("rows.json"));
    let contents = r#"
        title = "Missing"
        [backend.ours]
        command = "true"
        [backend.peer]
        command = "no-such-daemon"
        package = "its-package"
        [[row]]
        name = "row"
        ours = "ours"
        peer = "peer"
        load = ""
        figures = [{ of = "iops", aim = 1.0 }, { of = "cpu", aim = 1.0 }]
    "#;
    std::fs::write(&spec, contents).unwrap();
    let output = bench(&["compare", spec.to_str().unwrap(), "--json", json.to_str().unwrap(), "--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("install the Debian package its-package"),
        "{}",
        text(&output.stderr)
    );
    let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(rows["rows"].as_array().unwrap().len(), 2);
    assert!(rows["rows"][0]["ratio"].is_null() && rows["rows"][0]["reached"].is_null());
}

#[test]
fn a_missing_daemon_ends_the_demo_with_a_sentence() {
    let output = bench(&["demo", "--daemon", "/nonexistent/vhostd-blk", "--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("Cannot start /nonexistent/vhostd-blk"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn help_of_every_command_has_its_options() {
    for (command, option) in [
        ("blk", "--rwmixread"),
        ("demo", "--daemon"),
        ("compare", "--markdown"),
        ("idle", "--disks"),
        ("ring", "--instructions"),
        ("net", "--bidirectional"),
        ("virtio-user", "--path"),
        ("blackout", "--rounds"),
        ("crypto", "--engine-alone"),
        ("crypto-modes", "--plot"),
        ("compress", "--corpus"),
        ("compress-modes", "--plot"),
        ("composite", "--bandwidth"),
    ] {
        let output = bench(&[command, "--help"]);
        assert!(output.status.success() && text(&output.stdout).contains(option), "{command}");
    }
}
