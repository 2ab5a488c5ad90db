//! What the sandbox stops and what it lets through, tried from inside by a real process.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use crate::toy::{self, Toy};

const DONE: i32 = 0;
const REFUSED: i32 = 3;
const SIGSYS: i32 = 31;

/// How a probe of the example daemon ends (`examples/toy/probe.rs`).
fn probe(what: &str, args: &[&str]) -> (ExitStatus, String) {
    let output = toy::run(&[&["--log-level", "warn", "--probe", what], args].concat());
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Whether this kernel has Landlock; the daemon warns where it has not.
fn landlock_here() -> bool {
    let (status, log) = probe("nothing", &[]);
    assert_eq!(status.code(), Some(DONE), "{log}");
    !log.contains("no Landlock")
}

#[test]
fn calls_only_an_intruder_makes_kill_the_process() {
    for what in ["execve", "ptrace"] {
        let (status, log) = probe(what, &[]);
        assert_eq!(status.signal(), Some(SIGSYS), "{what}: {status} {log}");
    }
}

#[test]
fn calls_a_daemon_never_needs_are_refused_and_it_lives_on() {
    for what in ["spawn", "kill-parent", "tcp", "mmap-exec", "ioctl", "setuid", "raise-limit"] {
        let (status, log) = probe(what, &[]);
        assert_eq!(status.code(), Some(REFUSED), "{what}: {status} {log}");
        assert!(log.contains("os error 1)"), "{what}: {log}");
    }
}

#[test]
fn without_the_sandbox_the_same_probes_succeed() {
    for what in ["execve", "spawn", "tcp", "mmap-exec", "read=/etc/passwd"] {
        let (status, log) = probe(what, &["--no-sandbox"]);
        assert_eq!(status.code(), Some(DONE), "{what}: {status} {log}");
    }
}

#[test]
fn in_log_mode_nothing_is_refused() {
    for what in ["execve", "tcp", "mmap-exec", "read=/etc/passwd", "capabilities"] {
        let (status, log) = probe(what, &["--sandbox", "log"]);
        assert_eq!(status.code(), Some(DONE), "{what}: {status} {log}");
    }
}

#[test]
fn no_capability_is_left() {
    let (status, log) = probe("capabilities", &[]);
    assert_eq!(status.code(), Some(DONE), "{log}");
    let toy = Toy::start(&[]);
    assert_eq!(toy.proc_status("CapEff"), "0000000000000000");
    assert_eq!(toy.proc_status("CapPrm"), "0000000000000000");
    assert_eq!(toy.proc_status("NoNewPrivs"), "1");
    assert_eq!(toy.proc_status("Seccomp"), "2");
}

#[test]
fn every_thread_is_confined() {
    let toy = Toy::start(&[]);
    let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", toy.pid())).unwrap().flatten().collect();
    // The thread of the client that saw the daemon start may end while we look.
    let alive = tasks.iter().filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let confined = alive.inspect(|status| {
        assert!(status.contains("Seccomp:\t2") && status.contains("CapEff:\t0000000000000000"), "{status}");
    });
    assert!(confined.count() >= 2, "main and session");
}

#[test]
fn files_outside_the_configuration_stay_closed_where_the_kernel_has_landlock() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new");
    let here = landlock_here();
    let expected = if here { REFUSED } else { DONE };
    let paths = ["read=/etc/passwd", "thread-read=/etc/passwd", "write=/etc/passwd"].map(str::to_owned);
    for what in
        paths.into_iter().chain([format!("create={}", new.display()), format!("socket={}", new.display())])
    {
        let (status, log) = probe(&what, &[]);
        assert_eq!(status.code(), Some(expected), "{what}: {log}");
        assert!(!here || log.contains("Permission denied"), "{what}: {log}");
    }
}

#[test]
fn an_allowed_directory_can_be_worked_in_by_every_system_call_a_worker_makes() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, [0; 8192]).unwrap();
    let allowed = ["--allow-path", path(dir.path())];
    for what in [format!("work={}", image.display()), format!("read={}", image.display())] {
        let (status, log) = probe(&what, &allowed);
        assert_eq!(status.code(), Some(DONE), "{what}: {status} {log}");
    }
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 20);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
