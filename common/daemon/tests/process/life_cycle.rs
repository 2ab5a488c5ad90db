//! How a daemon ends: fast, cleanly, and whatever happens.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::toy::{self, Toy};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGUSR1: i32 = 10;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
const SIGXFSZ: i32 = 25;

#[test]
fn sigterm_and_sigint_exit_0_in_under_a_second_and_remove_the_sockets() {
    for signal in [SIGTERM, SIGINT] {
        let mut toy = Toy::start(&[]);
        let _frontend = UnixStream::connect(toy.socket()).unwrap();
        let _operator = UnixStream::connect(toy.control()).unwrap();
        let start = Instant::now();
        toy.signal(signal);
        let status = toy.wait();
        let took = start.elapsed();
        assert_eq!(status.code(), Some(0), "{}", toy.log());
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(!toy.socket().exists() && !toy.control().exists());
    }
}

#[test]
fn a_drain_that_hangs_is_cut_off_with_a_message_within_a_second() {
    let mut toy = Toy::start(&["--drain-ms", "60000"]);
    let start = Instant::now();
    toy.signal(SIGTERM);
    let status = toy.wait();
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(toy.log().contains("did not drain"), "{}", toy.log());
}

#[test]
fn a_second_sigterm_ends_the_process_at_once() {
    let mut toy = Toy::start(&["--drain-ms", "60000"]);
    toy.signal(SIGTERM);
    toy.wait_for("drain", || toy.log().contains("draining"));
    let start = Instant::now();
    toy.signal(SIGTERM);
    assert!(!toy.wait().success());
    assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
}

#[test]
fn sighup_sigpipe_and_sigxfsz_change_nothing_and_sigusr1_logs_the_counters() {
    let toy = Toy::start(&[]);
    toy.signal(SIGHUP);
    toy.signal(SIGPIPE);
    toy.signal(SIGXFSZ);
    toy.signal(SIGUSR1);
    toy.wait_for("counters in the log", || toy.log().contains("\"operations\""));
    toy.call("status", Value::Null).unwrap();
}

#[test]
fn shutdown_is_answered_before_the_process_ends() {
    let mut toy = Toy::start(&[]);
    assert_eq!(toy.call("shutdown", Value::Null), Ok(json!({})));
    assert_eq!(toy.wait().code(), Some(0));
    assert!(!toy.control().exists());
}

#[test]
fn drain_ends_the_sessions_and_keeps_the_process() {
    let toy = Toy::start(&[]);
    assert_eq!(toy.call("drain", json!({"timeout_ms": 5000})), Ok(json!({"unfinished": []})));
    assert!(!toy.socket().exists());
    let status = toy.call("status", Value::Null).unwrap();
    assert_eq!((status["state"].as_str(), status["sessions"].clone()), (Some("drained"), json!({})));
    let refusal = toy.call("disk.resize", json!({"disk": "disk0"})).unwrap_err();
    assert!(refusal.contains("draining"), "{refusal}");
}

#[test]
fn a_drain_that_does_not_finish_names_what_is_left() {
    let toy = Toy::start(&["--drain-ms", "300"]);
    assert_eq!(toy.call("drain", json!({"timeout_ms": 100})), Ok(json!({"unfinished": ["workers"]})));
}

#[test]
fn devices_come_and_go_while_the_process_runs() {
    let toy = Toy::start(&[]);
    let path = toy.dir.path().join("added");
    // The directory is open to the sandbox because the first socket is in it.
    let add = json!({"id": "added", "socket": path});
    toy.call("disk.add", add.clone()).unwrap();
    UnixStream::connect(&path).unwrap();
    let taken = toy.call("disk.add", add).unwrap_err();
    assert!(taken.contains("in use"), "{taken}");
    toy.call("disk.remove", json!({"disk": "added"})).unwrap();
    assert!(!path.exists());
    assert!(toy.call("disk.remove", json!({"disk": "added"})).unwrap_err().contains("no session"));
}

#[test]
fn an_idle_daemon_uses_no_cpu_time() {
    let toy = Toy::start(&[]);
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", toy.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime are fields 14 and 15 of proc(5), and the name before them has been cut off.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(200));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ticks(), before);
}

#[test]
fn an_idle_daemon_fits_in_ten_megabytes() {
    let toy = Toy::start(&[]);
    let kilobytes: u64 = toy.proc_status("VmRSS").trim_end_matches(" kB").trim().parse().unwrap();
    assert!(kilobytes < 10 << 10, "{kilobytes} kB");
}

#[test]
fn a_start_that_fails_half_way_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let output = toy::run(&["--fail", "start", "--socket-path", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("toy: Told to fail"));
    assert!(!path.exists());
}

#[test]
fn a_session_that_panics_ends_a_process_that_has_no_other() {
    let mut toy = Toy::start(&["--fail", "session"]);
    drop(UnixStream::connect(toy.socket()).unwrap());
    assert_eq!(toy.wait().code(), Some(1));
    toy.wait_for("the reason", || {
        toy.log().contains("Device 'disk0' ended: the thread panicked: told to fail")
    });
    assert!(!toy.socket().exists() && !toy.control().exists());
}

#[test]
fn a_session_that_panics_harms_no_other() {
    let mut toy = Toy::start(&["--fail", "session"]);
    let path = toy.dir.path().join("added");
    toy.call("disk.add", json!({"id": "added", "socket": path})).unwrap();
    drop(UnixStream::connect(toy.socket()).unwrap());
    let state = |name: &str| toy.call("status", Value::Null).unwrap()["sessions"][name]["state"].clone();
    toy.wait_for("a failed session", || state("disk0") == "failed");
    assert_eq!(state("added"), "running");
    toy.signal(SIGTERM);
    assert_eq!(toy.wait().code(), Some(0), "{}", toy.log());
}

#[test]
fn a_daemon_that_connects_does_so_again_after_the_frontend_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("frontend");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut command = Command::new(toy::program());
    command.arg("--connect").arg(&path);
    let mut toy = Toy::start_as(command, dir, &[]);
    for _ in 0..3 {
        drop(listener.accept().unwrap());
    }
    toy.signal(SIGTERM);
    assert_eq!(toy.wait().code(), Some(0), "{}", toy.log());
    assert!(path.exists());
}

#[test]
fn the_socket_has_the_mode_and_group_asked_for() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let gid = std::fs::metadata(dir.path()).unwrap().gid().to_string();
    let toy = Toy::start(&["--socket-mode", "0660", "--socket-group", &gid]);
    let metadata = std::fs::metadata(toy.socket()).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.gid().to_string()), (0o660, gid));
}

#[test]
fn json_logs_are_one_object_a_line() {
    let mut toy = Toy::start(&["--log-format", "json"]);
    toy.signal(SIGTERM);
    toy.wait();
    toy.wait_for("the last line", || toy.log().contains("drained"));
    for line in toy.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"] == "INFO" && line["message"].is_string(),
            "{line}"
        );
    }
}

/// A daemon started by a VMM with one end of a socket pair as descriptor 3.
fn with_inherited_socket(theirs: UnixStream, dir: tempfile::TempDir) -> Toy {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec \"$0\" \"$@\" 3<&0 0</dev/null").arg(toy::program()).args(["--fd", "3"]);
    shell.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    Toy::start_as(shell, dir, &[])
}

#[test]
fn a_daemon_on_an_inherited_connection_ends_with_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut toy = with_inherited_socket(theirs, tempfile::tempdir().unwrap());
    assert_eq!(toy.call("status", Value::Null).unwrap()["sessions"]["disk0"]["state"], "running");
    drop(ours);
    assert_eq!(toy.wait().code(), Some(0), "{}", toy.log());
}
