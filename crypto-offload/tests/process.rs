//! The daemon as a whole: command line, configuration file, control socket, metrics, both doors, its end.

mod frontend;

use daemon::testing::{self, Daemon, refuses};
use frontend::{Cryptodev, Served, Whole, eventually, wire};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use virtqueue::RingFeatures;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-crypto");

fn start(dir: &Path, args: &[&str]) -> Daemon {
    Daemon::start(PROGRAM, dir, args)
}

fn run(dir: &Path, args: &[&str]) -> Output {
    testing::run(PROGRAM, dir, args)
}

/// A device of a daemon.
struct Device<'a> {
    daemon: &'a Daemon,
    socket: &'a str,
    queues: u16,
}

impl Served for Device<'_> {
    fn dial(&self) -> UnixStream {
        self.daemon.connect(self.socket)
    }

    fn data_queues(&self) -> u16 {
        self.queues
    }
}

/// What QEMU's driver negotiates with QEMU.
fn linux() -> RingFeatures {
    RingFeatures { event_idx: true, indirect: true, ..RingFeatures::default() }
}

/// The whole device, with a driver that has every feature but REVISION_1 and the stateless modes, like Linux's.
fn whole(daemon: &Daemon, socket: &str, queues: u16) -> Whole {
    Whole::running(&Device { daemon, socket, queues }, !0x3f)
}

#[test]
fn what_cannot_be_served_is_one_sentence_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("file", "not a socket");
    write("unknown.toml", "[[device]]\nsocket = 'a'\ncolour = 'red'\n");
    write("twice.toml", "[[device]]\nid = 'a'\nsocket = 'a'\n[[device]]\nid = 'a'\nsocket = 'b'\n");
    write("mode.toml", "[scheduling]\nmode = 'fast'\n[[device]]\nsocket = 'a'\n");
    write("batch.toml", "[scheduling]\nbatch = 0\n[[device]]\nsocket = 'a'\n");
    write("poll.toml", "[daemon]\npoll = 'always'\n[[device]]\nsocket = 'a'\n");
    let long = format!("socket={}", "x".repeat(120));
    // Arguments, and words that the sentence must have.
    let cases: &[(&[&str], &str)] = &[
        (&[], "No socket"),
        (&["--device", "id=a"], "No socket"),
        (&["--device", "sockt=a"], "did you mean 'socket'?"),
        (&["--device", "socket=a,queues=0"], "queues is not between 1 and 255"),
        (&["--device", "socket=a,queues=256"], "queues is not between 1 and 255"),
        (&["--device", "socket=a,queues=70000"], "'70000' is not a number from 0 to 65535"),
        (&["--device", "socket=a,queue-size=1"], "queue-size is not between 2 and 32768"),
        (&["--device", "socket=a,sessions=0"], "sessions is not between 1 and 65536"),
        (&["--device", "socket=a,sessions=65537"], "sessions is not between 1 and 65536"),
        (&["--device", "socket=a,max-size=1"], "max-size is not between 4096"),
        (&["--device", "socket=a,max-size=1G"], "max-size is not between 4096"),
        (&["--device", "socket=a,max-size=big"], "Size 'big'"),
        (&["--device", "socket=a,id=a b"], "device id 'a b'"),
        (&["--device", "socket=file"], "file"),
        (&["--device", "socket=/no/such/dir/a"], "/no/such/dir/a"),
        (&["--device", &long], "107"),
        (&["--device", "id=a,socket=a", "--device", "id=a,socket=b"], "Two devices have the name 'a'"),
        (&["--device", "socket=a", "--device", "socket=a"], "Two devices have the socket a"),
        (&["--device", "socket=a", "--queues", "2"], "without --socket-path"),
        (&["--socket-path", "s", "--mode", "fast"], "interrupt, timer=PERIOD"),
        (&["--socket-path", "s", "--mode", "timer"], "interrupt, timer=PERIOD"),
        (&["--socket-path", "s", "--mode", "timer=2s"], "interrupt, timer=PERIOD"),
        (&["--socket-path", "s", "--batch", "0"], "batch is not between 1 and 1024"),
        (&["--socket-path", "s", "--asym-batch", "0"], "asym-batch is not between 1 and 1024"),
        (&["--socket-path", "s", "--deadline-us", "0"], "deadline-us is not between 1 and 1000000"),
        (&["--socket-path", "s", "--inline-bytes", "1M"], "inline-bytes is not between 0 and 65536"),
        (&["--socket-path", "s", "--asym-threads", "0"], "asym-threads is not between 1 and 256"),
        (&["--socket-path", "s", "--engine", "magic"], "auto, library or multibuffer"),
        (&["--socket-path", "s", "--poll", "off"], "--mode interrupt"),
        (&["--socket-path", "s", "--poll", "always"], "--mode busy"),
        (&["--socket-path", "s", "--colour"], "--colour"),
        (&["--config", "unknown.toml"], "line 3"),
        (&["--config", "twice.toml"], "Two devices have the name 'a'"),
        (&["--config", "mode.toml"], "line 2"),
        (&["--config", "batch.toml"], "batch is not between 1 and 1024"),
        (&["--config", "poll.toml"], "--mode busy"),
        (&["--config", "none.toml"], "none.toml"),
    ];
    for (args, words) in cases {
        refuses(PROGRAM, dir.path(), args, words);
        if *words != "file" {
            // The keeper says the same, and starts nothing.
            refuses(PROGRAM, dir.path(), &[args, &["--supervise"][..]].concat(), words);
        }
    }
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"not a socket", "which is left alone");
}

#[test]
fn capabilities_follow_qemus_conventions() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["--print-capabilities"]);
    assert!(output.status.success());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, json!({"type": "crypto", "features": []}));
}

#[test]
fn help_explains_every_option_and_has_no_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for option in
        ["--device", "--sessions", "--max-size", "--mode", "--batch", "--deadline-us", "--supervise"]
    {
        assert!(text.contains(option), "{option}");
    }
    for hidden in ["--kept", "--vault-fd", "--journal-fd"] {
        assert!(!text.contains(hidden), "{hidden} is for the keeper");
    }
}

#[test]
fn a_configuration_file_is_the_same_as_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[scheduling]\nmode = 'timer=100us'\nbatch = 16\ninline-bytes = '1K'\nengine = 'library'\n\
        [[device]]\nid = 'a'\nsocket = 'a'\nqueues = 4\n[[device]]\nid = 'b'\nsocket = 'b'\nsessions = 7\n";
    std::fs::write(dir.path().join("crypto.toml"), text).unwrap();
    let shown = |args: &[&str]| {
        let daemon = start(dir.path(), args);
        (daemon.call("device.list", Value::Null), daemon.call("mode.get", Value::Null))
    };
    let by_file = shown(&["--config", "crypto.toml"]);
    let by_line = shown(&[
        "--mode",
        "timer=100us",
        "--batch",
        "16",
        "--inline-bytes",
        "1024",
        "--engine",
        "library",
        "--device",
        "id=a,socket=a,queues=4",
        "--device",
        "id=b,socket=b,sessions=7",
    ]);
    assert_eq!(by_file, by_line);
    assert_eq!(by_file.0[1]["sessions"]["limit"], 7);
    assert_eq!(by_file.1["mode"], "timer=100us");
    let over = shown(&["--config", "crypto.toml", "--mode", "busy"]);
    assert_eq!((&over.1["mode"], &over.1["batch"]), (&json!("busy"), &json!(16)), "an argument wins");
}

#[test]
fn a_guest_of_any_qemu_encrypts_and_every_request_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s"]);
    let device = Device { daemon: &daemon, socket: "s", queues: 1 };
    let mut qemu = Cryptodev::running(&device, linux());
    let session = qemu.create(&wire::cbc_description(632));
    for _ in 0..10 {
        qemu.check_vector(session as u64);
    }
    let (_, status) = qemu.cipher(wire::ENCRYPT, 0x7777, &wire::IV, &wire::PLAIN);
    assert_eq!(status, wire::INVSESS);
    let listed = &daemon.call("device.list", Value::Null)[0];
    assert_eq!((&listed["door"], &listed["connected"]), (&json!("cryptodev-vhost-user"), &json!(true)));
    assert_eq!(listed["sessions"]["open"], 1);
    let stats = daemon.stats("crypto0");
    let cipher = &stats.operations["cipher"];
    assert!(cipher.requests >= 10 && cipher.bytes >= 320, "{cipher:?}");
    assert_eq!(stats.extra["status_invalid_session"], 1);
    assert_eq!(stats.kind, "crypto");
    let workers = daemon.snapshot().workers;
    let sum = |name: &str| workers.iter().map(|worker| worker.extra[name]).sum::<u64>();
    let flushes = ["full", "empty", "deadline", "timer"].map(|reason| sum(&format!("flushes_{reason}")));
    assert_eq!(flushes.iter().sum::<u64>(), sum("batches"));
    drop(qemu);
    eventually("the sessions of a guest that has gone are gone", || {
        daemon.call("device.list", Value::Null)[0]["sessions"]["open"] == 0
    });
}

#[test]
fn the_whole_device_serves_all_of_its_queues_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--queues", "3", "--workers", "2"]);
    let mut guest = whole(&daemon, "s", 3);
    let session = guest.session(&wire::create_cbc());
    for mode in ["interrupt", "timer=100us", "heuristic", "busy", "heuristic"] {
        assert_eq!(daemon.call("mode.set", json!({"mode": mode}))["mode"], mode);
        for queue in 0..3 {
            let (guest, queue) = guest.on(queue);
            guest.check_vector(queue, session);
        }
    }
    assert_eq!(daemon.call("device.list", Value::Null)[0]["door"], "virtio-crypto");
}

#[test]
fn modes_and_thresholds_change_while_it_runs_and_what_is_wrong_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--poll-max-us", "20"]);
    let before = daemon.call("mode.get", Value::Null);
    assert_eq!((&before["mode"], &before["max-us"]), (&json!("heuristic"), &json!(20)));
    let change = json!({"mode": "interrupt", "batch": 8, "asym-batch": 4, "deadline-us": 30, "inline-bytes": "1K",
        "max-us": 10, "preset": "haltpoll"});
    let after = daemon.call("mode.set", change);
    let names = ["mode", "batch", "asym-batch", "deadline-us", "inline-bytes", "max-us", "preset"];
    assert_eq!(
        names.map(|name| after[name].to_string()),
        ["\"interrupt\"", "8", "4", "30", "1024", "10", "\"haltpoll\""]
    );
    for (wrong, words) in [
        (json!({"mode": "fast"}), "interrupt"),
        (json!({"batch": 0}), "batch"),
        (json!({"mode": "busy", "deadline-us": 0}), "deadline-us"),
        (json!({"max-us": 2_000_000}), "max-us"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let sentence = daemon.refused("mode.set", wrong);
        assert!(sentence.contains(words), "{sentence}");
    }
    assert_eq!(daemon.call("mode.get", Value::Null), after);
}

#[test]
fn devices_come_and_go_without_the_others_noticing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--device", "id=a,socket=a"]);
    let mut first = whole(&daemon, "a", 1);
    let session = first.session(&wire::create_cbc());
    daemon.call("device.add", json!({"id": "b", "socket": daemon.path("b"), "queues": 2, "sessions": 3}));
    let mut second = whole(&daemon, "b", 2);
    let other = second.session(&wire::create_cbc());
    second.check_vector(other);
    first.check_vector(session);
    assert_eq!(
        daemon.refused("device.add", json!({"id": "b", "socket": "c"})),
        "There is a device 'b' already"
    );
    daemon.call("device.remove", json!({"device": "b"}));
    assert!(!daemon.path("b").exists(), "its socket is gone");
    assert_eq!(daemon.refused("device.remove", json!({"device": "b"})), "There is no device 'b'");
    first.check_vector(session);
}

#[test]
fn limits_of_a_device_change_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--sessions", "2"]);
    let mut guest = whole(&daemon, "s", 1);
    // A driver without REVISION_1 does not know NOSPC.
    let mut create = || guest.create(&wire::create_cbc()).1;
    assert_eq!([create(), create(), create()], [wire::OK, wire::OK, wire::ERR].map(u32::from));
    let set = daemon.call("device.set", json!({"device": "crypto0", "sessions": 3, "max-size": "64K"}));
    assert_eq!(set, json!({"sessions": 3, "max-size": 65536}));
    assert_eq!([create(), create()], [wire::OK, wire::ERR].map(u32::from));
    assert!(daemon.refused("device.set", json!({"device": "crypto0", "sessions": 0})).contains("sessions"));
    assert!(daemon.refused("device.set", json!({"device": "x"})).contains("no device 'x'"));
}

#[test]
fn the_metrics_name_algorithms_statuses_and_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--metrics", "unix:m"]);
    let mut guest = whole(&daemon, "s", 1);
    let session = guest.session(&wire::create_cbc());
    guest.check_vector(session);
    let text = daemon.scrape("m");
    for line in [
        "vhostd_crypto_requests_total{device=\"crypto0\",algorithm=\"aes-cbc\"} 1",
        "vhostd_crypto_bytes_total{device=\"crypto0\",algorithm=\"aes-cbc\"} 32",
        "vhostd_crypto_status_total{device=\"crypto0\",status=\"no_space\"} 0",
        "vhostd_crypto_sessions{device=\"crypto0\"} 1",
        "vhostd_crypto_flushes_total{worker=\"crypto-0\",reason=\"empty\"}",
        "vhostd_crypto_batch_requests_bucket{worker=\"crypto-0\",le=\"1\"}",
        "vhostd_requests_total{device=\"crypto0\",operation=\"cipher\"} 1",
    ] {
        assert!(text.lines().any(|have| have.starts_with(line)), "{line} is missing in:\n{text}");
    }
}

#[test]
fn an_idle_device_uses_no_cpu_time() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s"]);
    for mode in ["interrupt", "timer=100us", "heuristic"] {
        daemon.call("mode.set", json!({"mode": mode}));
        let mut guest = whole(&daemon, "s", 1);
        let session = guest.session(&wire::create_cbc());
        guest.check_vector(session);
        std::thread::sleep(Duration::from_millis(200));
        let before = daemon.ticks();
        std::thread::sleep(Duration::from_secs(1));
        assert!(daemon.ticks() - before <= 1, "{mode}");
    }
}

#[test]
fn no_core_file_and_no_other_process_gets_the_keys() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
}

#[test]
fn a_session_takes_less_than_4_kib_of_locked_memory() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s"]);
    let used = || daemon.call("status", Value::Null)["details"]["key_memory"]["used"].as_u64().unwrap();
    let mut guest = whole(&daemon, "s", 1);
    let mut session = || {
        let session = guest.session(&wire::create_cbc());
        guest.check_vector(session);
    };
    session();
    let before = used();
    (0..100).for_each(|_| session());
    let each = (used() - before) / 100;
    assert!((16..4096).contains(&each), "{each} bytes");
    drop(guest);
    eventually("the memory of sessions that are gone is free", || used() <= before);
}

#[test]
fn sigterm_ends_cleanly_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = start(dir.path(), &["--socket-path", "s"]);
    let mut guest = whole(&daemon, "s", 1);
    let session = guest.session(&wire::create_cbc());
    guest.check_vector(session);
    let (code, took) = daemon.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!daemon.path("s").exists() && !daemon.path("control").exists());
}

#[test]
fn sessions_survive_the_death_of_supervised_workers_behind_both_doors() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = start(
        dir.path(),
        &["--supervise", "--device", "id=a,socket=a", "--device", "id=b,socket=b,queues=2"],
    );
    let mut qemu = Cryptodev::running(&Device { daemon: &daemon, socket: "a", queues: 1 }, linux());
    let mut vmm = whole(&daemon, "b", 2);
    let first = qemu.create(&wire::cbc_description(1072)) as u64;
    let second = vmm.session(&wire::create_cbc());
    for _ in 0..3 {
        qemu.check_vector(first);
        vmm.check_vector(second);
        daemon.kill_worker();
        qemu.check_vector(first);
        vmm.check_vector(second);
        eventually("the next worker answers", || daemon.try_call("version", Value::Null).is_some());
    }
    let open = |index: usize| daemon.call("device.list", Value::Null)[index]["sessions"]["open"].clone();
    assert_eq!((open(0), open(1)), (json!(1), json!(1)), "no session is made twice");
    qemu.close(first);
    eventually("the closed session is gone", || {
        qemu.cipher(wire::ENCRYPT, first, &wire::IV, &wire::PLAIN).1 == wire::INVSESS
    });
    let sentence = daemon.refused("device.add", json!({"id": "c", "socket": "c"}));
    assert!(sentence.contains("--supervise"), "{sentence}");
    assert_eq!(daemon.terminate().0, Some(0));
    assert!(!daemon.path("a").exists() && !daemon.path("b").exists());
}
