//! `vhostctl` against running daemons.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::toy::Toy;

fn vhostctl(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhostctl"));
    command.env("VHOSTD_RUN_DIR", "/nonexistent").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs a command on one daemon, and expects it to work.
fn on(toy: &Toy, args: &[&str]) -> String {
    let control = toy.control();
    let output = vhostctl(&[&["--socket", control.to_str().unwrap()], args].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that fails, and returns its exit code and sentence.
fn failing(args: &[&str]) -> (i32, String) {
    let output = vhostctl(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("vhostctl: "), "{args:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    (output.status.code().unwrap(), text)
}

#[test]
fn status_names_the_daemon_its_state_and_its_sessions() {
    let toy = Toy::start(&[]);
    let text = on(&toy, &["status"]);
    assert!(text.contains(&format!("toy 0.1.0, pid {}, running", toy.pid())), "{text}");
    assert!(text.contains("session disk0: running"), "{text}");
    let json: Value = serde_json::from_str(&on(&toy, &["--json", "status"])).unwrap();
    assert_eq!(json["sessions"]["disk0"]["state"], "running");
}

#[test]
fn stats_show_every_operation_with_its_latency() {
    let toy = Toy::start(&[]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let text = on(&toy, &["stats"]);
    assert!(text.contains("OPERATION") && text.contains("read") && text.contains(" us"), "{text}");
    assert!(text.contains("worker-0"), "{text}");
}

#[test]
fn top_prints_lines_when_its_output_is_no_terminal() {
    let (one, other) = (Toy::start(&[]), Toy::start(&[]));
    let second = other.control();
    let args = ["--socket", second.to_str().unwrap(), "top", "--interval-ms", "200", "--count", "2"];
    let text = on(&one, &args);
    assert_eq!(text.lines().filter(|line| line.starts_with("DAEMON")).count(), 2, "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("disk0")).count(), 4, "{text}");
    assert!(text.contains("polls that paid 100.0%"), "{text}");
}

#[test]
fn top_as_json_has_the_rates_of_the_interval() {
    let toy = Toy::start(&[]);
    let text = on(&toy, &["--json", "top", "--interval-ms", "500", "-n", "1"]);
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    let device = &line["rates"]["devices"][0];
    let iops = device["iops"].as_f64().unwrap();
    // The toy counts one read a millisecond.
    assert!((500.0..2000.0).contains(&iops), "{text}");
    assert!((device["kicks_per_request"].as_f64().unwrap() - 0.5).abs() < 0.1, "{text}");
    assert!(device["p50_ns"].as_f64().is_some_and(|ns| (8192.0..16384.0).contains(&ns)), "{text}");
}

#[test]
fn devices_are_added_changed_and_removed() {
    let toy = Toy::start(&[]);
    let path = toy.dir.path().join("vol1");
    on(&toy, &["add", "id=vol1", &format!("socket={}", path.display())]);
    assert!(path.exists());
    let asked = |args: &[&str]| serde_json::from_str::<Value>(&on(&toy, args)).unwrap()["asked"].clone();
    assert_eq!(asked(&["--json", "resize", "vol1", "20G"]), json!({"disk": "vol1", "size": 20_u64 << 30}));
    assert_eq!(asked(&["--json", "resize", "vol1"]), json!({"disk": "vol1"}));
    let limit = asked(&["--json", "limit", "vol1", "iops=5000", "bandwidth=200M"]);
    assert_eq!(limit, json!({"disk": "vol1", "iops": 5000, "bandwidth": "200M"}));
    let poll = asked(&["--json", "poll", "adaptive", "--max-us", "20", "--preset", "qemu-aio"]);
    assert_eq!(poll, json!({"poll": "adaptive", "max-us": 20, "preset": "qemu-aio"}));
    on(&toy, &["remove", "vol1"]);
    assert!(!path.exists());
}

#[test]
fn log_level_methods_and_raw_calls_reach_the_daemon() {
    let toy = Toy::start(&[]);
    assert_eq!(on(&toy, &["log-level", "debug"]), "debug\n");
    assert_eq!(on(&toy, &["log-level"]), "debug\n");
    assert!(on(&toy, &["methods"]).contains("disk.resize {disk: string, size?: integer}"));
    let answer: Value =
        serde_json::from_str(&on(&toy, &["call", "log_level", r#"{"level":"warn"}"#])).unwrap();
    assert_eq!(answer, json!({"level": "warn"}));
}

#[test]
fn drain_and_shutdown_end_what_they_say() {
    let mut toy = Toy::start(&[]);
    assert_eq!(on(&toy, &["drain"]), "Drained\n");
    on(&toy, &["shutdown"]);
    assert!(toy.wait().success());
}

#[test]
fn daemons_are_found_in_the_run_directory_and_changes_need_one_name() {
    let run = tempfile::tempdir().unwrap();
    let found = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhostctl"));
        command.env("VHOSTD_RUN_DIR", run.path()).args(args).output().unwrap()
    };
    let one = Toy::start(&[]);
    std::os::unix::fs::symlink(one.control(), run.path().join("one.sock")).unwrap();
    std::fs::write(run.path().join("stale.sock"), "").unwrap();
    assert!(found(&["log-level", "info"]).status.success());
    let other = Toy::start(&[]);
    std::os::unix::fs::symlink(other.control(), run.path().join("two.sock")).unwrap();
    let text = String::from_utf8(found(&["status"]).stdout).unwrap();
    assert!(text.contains(&one.pid().to_string()) && text.contains(&other.pid().to_string()), "{text}");
    let refused = found(&["shutdown"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("two.sock"));
    assert!(one.call("version", Value::Null).is_ok());
}

#[test]
fn what_a_daemon_refuses_is_exit_code_1_with_its_sentence() {
    let toy = Toy::start(&[]);
    let control = toy.control();
    let socket = control.to_str().unwrap();
    let (code, text) = failing(&["--socket", socket, "remove", "nothing"]);
    assert!(code == 1 && text.contains("There is no session 'nothing'"), "{text}");
    let (code, text) = failing(&["--socket", socket, "call", "no.such"]);
    assert!(code == 1 && text.contains("no method 'no.such'"), "{text}");
    assert_eq!(failing(&["--socket", "/nonexistent/c", "status"]).0, 1);
    assert_eq!(failing(&["status"]).0, 1);
}

#[test]
fn bad_usage_is_exit_code_2() {
    let cases: [&[&str]; 9] = [
        &[],
        &["frobnicate"],
        &["resize"],
        &["resize", "a", "3 apples"],
        &["add", "novalue"],
        &["poll", "maybe"],
        &["call", "m", "[1]"],
        &["top", "--interval-ms", "1"],
        &["log-level", "loud"],
    ];
    for args in cases {
        assert_eq!(failing(args).0, 2, "{args:?}");
    }
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = vhostctl(&["completions", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("log-level"));
    }
}
