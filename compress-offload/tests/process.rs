//! The daemon as a whole: command line, configuration file, control socket, metrics, both doors, crashes, its end.

#[path = "device/frontend/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of the device use the rest")]
mod frontend;

use compress_protocol::{Config, Format, Header, Opcode, Status, flag};
use daemon::testing::{self, Daemon, refuses};
use frontend::{Link, PACKED, Request, SPLIT, Vmm, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-compress");

fn start(dir: &Path, args: &[&str]) -> Daemon {
    Daemon::start(PROGRAM, dir, args)
}

fn run(dir: &Path, args: &[&str]) -> Output {
    testing::run(PROGRAM, dir, args)
}

/// A guest at a socket of the daemon.
fn guest(daemon: &Daemon, socket: &str, queues: u16, link: impl Into<Link>) -> Vmm {
    Vmm::dial(daemon.connect(socket), queues, link)
}

/// Compresses a text on a queue, and gets it back.
fn round_trip(guest: &mut Vmm, queue: usize, format: Format) {
    let text = b"the same words, and the same words again, and again the same words. ".repeat(80);
    let len = text.len() as u32;
    let packed = guest.ask_on(queue, Request::new(Header::compress(format, len, len), &text));
    let packed = packed.result().to_vec();
    assert!(packed.len() < text.len() / 4, "{} bytes", packed.len());
    let plain =
        guest.ask_on(queue, Request::new(Header::decompress(format, packed.len() as u32, len), &packed));
    assert_eq!(plain.result(), text);
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
    write("verify.toml", "[[device]]\nsocket = 'a'\nverify = 'often'\n");
    write("poll.toml", "[daemon]\npoll = 'always'\n[[device]]\nsocket = 'a'\n");
    let long = format!("socket={}", "x".repeat(120));
    // Arguments, and words that the sentence must have.
    let cases: &[(&[&str], &str)] = &[
        (&[], "No socket"),
        (&["--device", "id=a"], "No socket"),
        (&["--device", "sockt=a"], "did you mean 'socket'?"),
        (&["--device", "socket=a,queues=0"], "queues is not between 1 and 256"),
        (&["--device", "socket=a,queues=257"], "queues is not between 1 and 256"),
        (&["--device", "socket=a,queues=70000"], "'70000' is not a number from 0 to 65535"),
        (&["--device", "socket=a,queue-size=3"], "queue-size is not a power of two"),
        (&["--device", "socket=a,streams=65537"], "streams is not between 0 and 65536"),
        (&["--device", "socket=a,max-size=1"], "max-size is not between 4096"),
        (&["--device", "socket=a,max-size=1G"], "max-size is not between 4096"),
        (&["--device", "socket=a,max-size=big"], "Size 'big'"),
        (&["--device", "socket=a,max-in-flight=1"], "max-in-flight is not between 2 and 16384"),
        (&["--device", "socket=a,max-size=8M,max-in-flight=8"], "max-in-flight is not between 16"),
        (&["--device", "socket=a,verify=often"], "off, all or 1/N"),
        (&["--device", "socket=a,verify=1/0"], "off, all or 1/N"),
        (&["--device", "socket=a,id=a b"], "device id 'a b'"),
        (&["--device", "socket=file"], "file"),
        (&["--device", "socket=/no/such/dir/a"], "/no/such/dir/a"),
        (&["--device", &long], "107"),
        (&["--device", "id=a,socket=a", "--device", "id=a,socket=b"], "Two devices have the name 'a'"),
        (&["--device", "socket=a", "--device", "socket=a"], "Two devices have the socket a"),
        (&["--device", "socket=a", "--queues", "2"], "without --socket-path"),
        (&["--socket-path", "s", "--mode", "fast"], "interrupt, timer=PERIOD"),
        (&["--socket-path", "s", "--mode", "timer=2s"], "interrupt, timer=PERIOD"),
        (&["--socket-path", "s", "--batch", "0"], "batch is not between 1 and 1024"),
        (&["--socket-path", "s", "--deadline-us", "0"], "deadline-us is not between 1 and 1000000"),
        (&["--socket-path", "s", "--inline-bytes", "1M"], "inline-bytes is not between 0 and 65536"),
        (&["--socket-path", "s", "--engine", "magic"], "libdeflate, zlib-rs"),
        (&["--socket-path", "s", "--verify", "1/x"], "off, all or 1/N"),
        (&["--socket-path", "s", "--poll", "off"], "--mode interrupt"),
        (&["--socket-path", "s", "--poll", "always"], "--mode busy"),
        (&["--socket-path", "s", "--colour"], "--colour"),
        (&["--config", "unknown.toml"], "line 3"),
        (&["--config", "twice.toml"], "Two devices have the name 'a'"),
        (&["--config", "mode.toml"], "line 2"),
        (&["--config", "batch.toml"], "batch is not between 1 and 1024"),
        (&["--config", "verify.toml"], "line 3"),
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
    assert_eq!(json, json!({"type": "compress", "features": []}));
}

#[test]
fn help_explains_every_option() {
    let dir = tempfile::tempdir().unwrap();
    let text = String::from_utf8(run(dir.path(), &["--help"]).stdout).unwrap();
    for option in [
        "--device",
        "--queues",
        "--max-size",
        "--max-in-flight",
        "--streams",
        "--verify",
        "--zero-copy",
        "--mode",
        "--batch",
        "--deadline-us",
        "--inline-bytes",
        "--engine",
        "--supervise",
    ] {
        assert!(text.contains(option), "{option}");
    }
    assert!(!text.contains("--kept"), "that is for the keeper");
}

#[test]
fn a_configuration_file_is_the_same_as_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[scheduling]\nmode = 'timer=100us'\nbatch = 16\ninline-bytes = '2K'\nengine = 'zlib-rs'\n\
        [[device]]\nid = 'a'\nsocket = 'a'\nqueues = 4\nzero-copy = true\n\
        [[device]]\nid = 'b'\nsocket = 'b'\nstreams = 7\nverify = '1/8'\nmax-in-flight = 8\n";
    std::fs::write(dir.path().join("compress.toml"), text).unwrap();
    let shown = |args: &[&str]| {
        let daemon = start(dir.path(), args);
        (daemon.call("device.list", Value::Null), daemon.call("mode.get", Value::Null))
    };
    let by_file = shown(&["--config", "compress.toml"]);
    let devices = ["--device", "id=a,socket=a,queues=4,zero-copy", "--device"];
    let other = "id=b,socket=b,streams=7,verify=1/8,max-in-flight=8";
    let scheduling =
        ["--mode", "timer=100us", "--batch", "16", "--inline-bytes", "2048", "--engine", "zlib-rs"];
    let by_line = shown(&[&scheduling[..], &devices, &[other]].concat());
    assert_eq!(by_file, by_line);
    assert_eq!((&by_file.0[1]["streams"]["limit"], &by_file.0[1]["verify"]), (&json!(7), &json!("1/8")));
    assert_eq!((&by_file.1["mode"], &by_file.1["engine"]), (&json!("timer=100us"), &json!("zlib-rs")));
    let over = shown(&["--config", "compress.toml", "--mode", "busy"]);
    assert_eq!((&over.1["mode"], &over.1["batch"]), (&json!("busy"), &json!(16)), "an argument wins");
}

#[test]
fn both_doors_serve_every_format_and_every_request_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--queues", "2"]);
    for (link, door) in [(Link::carrier(), "vhost-user-fs"), (PACKED.into(), "vhost-user-test-device")] {
        let mut guest = guest(&daemon, "s", 2, link);
        let answer = guest.ask(Header::get_config());
        let config = Config::decode(answer.result().try_into().unwrap());
        assert_eq!((config.check(), config.num_queues), (Ok(()), 2));
        for format in Format::ALL {
            round_trip(&mut guest, usize::from(format.wire()) % 2, format);
        }
        let listed = &daemon.call("device.list", Value::Null)[0];
        assert_eq!((&listed["door"], &listed["connected"]), (&json!(door), &json!(true)));
        assert!(listed["ratios"]["zstd"].as_f64().unwrap() > 4.0, "{listed}");
    }
    let stats = daemon.stats("compress0");
    let done = ["compress", "decompress", "other"].map(|name| stats.operations[name].requests);
    assert_eq!((stats.kind.as_str(), done), ("compress", [12, 12, 2]));
    let text = 12 * 80 * 68;
    assert_eq!(["compress", "decompress"].map(|name| stats.operations[name].bytes), [text, text]);
    assert_eq!(stats.extra["uncompressed_bytes"], text);
    assert!(stats.extra["compressed_bytes"] < text / 4);
    let workers = daemon.snapshot().workers;
    let sum = |name: &str| workers.iter().map(|worker| worker.extra[name]).sum::<u64>();
    let flushes = ["full", "empty", "deadline", "timer"].map(|reason| sum(&format!("flushes_{reason}")));
    assert_eq!(flushes.iter().sum::<u64>(), sum("batches"));
}

#[test]
fn all_queues_are_served_in_every_mode_and_modes_change_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--queues", "3", "--workers", "2"]);
    let mut guest = guest(&daemon, "s", 3, SPLIT);
    for mode in ["interrupt", "timer=100us", "heuristic", "busy", "heuristic"] {
        assert_eq!(daemon.call("mode.set", json!({"mode": mode}))["mode"], mode);
        (0..3).for_each(|queue| round_trip(&mut guest, queue, Format::Gzip));
    }
    let change = json!({"mode": "interrupt", "batch": 8, "deadline-us": 30, "inline-bytes": "2K", "max-us": 10,
        "preset": "haltpoll"});
    let after = daemon.call("mode.set", change);
    let names = ["mode", "batch", "deadline-us", "inline-bytes", "max-us", "preset"];
    let shown = names.map(|name| after[name].to_string());
    assert_eq!(shown, ["\"interrupt\"", "8", "30", "2048", "10", "\"haltpoll\""]);
    for (wrong, words) in [
        (json!({"mode": "fast"}), "interrupt"),
        (json!({"batch": 0}), "batch"),
        (json!({"mode": "busy", "deadline-us": 0}), "deadline-us"),
        (json!({"max-us": 2_000_000}), "max-us"),
        (json!({"asym-batch": 4}), "asym-batch"),
    ] {
        let sentence = daemon.refused("mode.set", wrong);
        assert!(sentence.contains(words), "{sentence}");
    }
    assert_eq!(daemon.call("mode.get", Value::Null), after, "what is refused changes nothing");
    round_trip(&mut guest, 0, Format::Zstd);
}

#[test]
fn devices_come_and_go_without_the_others_noticing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--device", "id=a,socket=a"]);
    let mut first = guest(&daemon, "a", 1, SPLIT);
    round_trip(&mut first, 0, Format::Zlib);
    daemon.call("device.add", json!({"id": "b", "socket": daemon.path("b"), "queues": 2}));
    let mut second = guest(&daemon, "b", 2, SPLIT);
    round_trip(&mut second, 1, Format::Zlib);
    let again = daemon.refused("device.add", json!({"id": "b", "socket": "c"}));
    assert_eq!(again, "There is a device 'b' already");
    daemon.call("device.remove", json!({"device": "b"}));
    assert!(!daemon.path("b").exists(), "its socket is gone");
    assert_eq!(daemon.refused("device.remove", json!({"device": "b"})), "There is no device 'b'");
    round_trip(&mut first, 0, Format::Zlib);
}

#[test]
fn limits_of_a_device_change_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--streams", "1"]);
    let mut guest = guest(&daemon, "s", 1, SPLIT);
    let mut open = || guest.ask(Header::open_compressor(Format::Gzip, 0)).status();
    assert_eq!([open(), open()], [Status::Ok, Status::NoSpace]);
    let change =
        json!({"device": "compress0", "streams": 2, "max-size": "4K", "verify": "all", "max-in-flight": 3});
    let set = daemon.call("device.set", change);
    assert_eq!(set, json!({"streams": 2, "max-size": 4096, "verify": "all", "max-in-flight": 3 << 20}));
    assert_eq!([open(), open()], [Status::Ok, Status::NoSpace]);
    let text = vec![b'a'; 5000];
    let too_long = guest.ask(Request::new(Header::compress(Format::Gzip, 5000, 100), &text));
    assert_eq!(too_long.status(), Status::BadRequest);
    let config = guest.ask(Header::get_config());
    let config = Config::decode(config.result().try_into().unwrap());
    assert_eq!((config.max_src, config.max_streams), (4096, 2), "and the guest can read it");
    guest.ask(Request::new(Header::compress(Format::Gzip, 4096, 100), &text[..4096])).result();
    assert_eq!(daemon.stats("compress0").extra["verified"], 1);
    for wrong in
        [json!({"device": "compress0", "max-size": 1}), json!({"device": "compress0", "verify": "x"})]
    {
        assert!(!daemon.refused("device.set", wrong).is_empty());
    }
    assert!(daemon.refused("device.set", json!({"device": "x"})).contains("no device 'x'"));
}

#[test]
fn the_metrics_name_operations_statuses_and_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--metrics", "unix:m"]);
    let mut guest = guest(&daemon, "s", 1, SPLIT);
    round_trip(&mut guest, 0, Format::Lz4Frame);
    let text = daemon.scrape("m");
    for line in [
        "vhostd_compress_requests_total{device=\"compress0\",operation=\"compress\",format=\"lz4\"} 1",
        "vhostd_compress_source_bytes_total{device=\"compress0\",operation=\"compress\",format=\"lz4\"} 5440",
        "vhostd_compress_result_bytes_total{device=\"compress0\",operation=\"decompress\",format=\"lz4\"} 5440",
        "vhostd_compress_status_total{device=\"compress0\",status=\"bad_data\"} 0",
        "vhostd_compress_streams{device=\"compress0\"} 0",
        "vhostd_compress_in_flight_bytes{device=\"compress0\"} 0",
        "vhostd_compress_flushes_total{worker=\"compress-0\",reason=\"empty\"}",
        "vhostd_compress_batch_requests_bucket{worker=\"compress-0\",le=\"1\"}",
        "vhostd_compress_stolen_total{worker=\"compress-0\"} 0",
        "vhostd_requests_total{device=\"compress0\",operation=\"compress\"} 1",
    ] {
        assert!(text.lines().any(|have| have.starts_with(line)), "{line} is missing in:\n{text}");
    }
}

#[test]
fn an_idle_device_uses_no_cpu_time() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--workers", "2"]);
    for mode in ["interrupt", "timer=100us", "heuristic"] {
        daemon.call("mode.set", json!({"mode": mode}));
        let mut guest = guest(&daemon, "s", 1, SPLIT);
        round_trip(&mut guest, 0, Format::Zstd);
        std::thread::sleep(Duration::from_millis(200));
        let before = daemon.ticks();
        std::thread::sleep(Duration::from_secs(1));
        assert!(daemon.ticks() - before <= 1, "{mode}");
    }
}

#[test]
fn sigterm_ends_cleanly_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = start(dir.path(), &["--socket-path", "s"]);
    let mut guest = guest(&daemon, "s", 1, SPLIT);
    round_trip(&mut guest, 0, Format::Gzip);
    let (code, took) = daemon.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!daemon.path("s").exists() && !daemon.path("control").exists());
}

#[test]
fn requests_survive_the_death_of_supervised_workers_behind_both_doors_and_streams_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let devices = ["--supervise", "--device", "id=a,socket=a,queues=2", "--device", "id=b,socket=b"];
    let mut daemon = start(dir.path(), &devices);
    let mut carried = guest(&daemon, "a", 2, Link::carrier());
    let mut whole = guest(&daemon, "b", 1, PACKED);
    let noise: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..3 {
        round_trip(&mut carried, 1, Format::Gzip);
        let stream = whole.ask(Header::open_compressor(Format::Zstd, 0));
        let stream = stream.response.stream_id();
        // Level 12 takes long enough to be interrupted.
        let slow = Header::compress(Format::Deflate, 1 << 20, 2 << 19).with_level(12);
        let cookies: Vec<u32> = (0..8).map(|_| carried.send(0, Request::new(slow, &noise))).collect();
        daemon.kill_worker();
        for answer in carried.wait_all(&cookies) {
            assert!(matches!(answer.status(), Status::Ok | Status::Incompressible), "{:?}", answer.response);
        }
        let more = Header::stream(Opcode::Compress, stream, flag::FLUSH, 0, 64);
        assert_eq!(whole.ask(more).status(), Status::BadStream);
        round_trip(&mut whole, 0, Format::Gzip);
        eventually("the next worker answers", || daemon.try_call("version", Value::Null).is_some());
    }
    let sentence = daemon.refused("device.add", json!({"id": "c", "socket": "c"}));
    assert!(sentence.contains("--supervise"), "{sentence}");
    assert_eq!(daemon.terminate().0, Some(0));
    assert!(!daemon.path("a").exists() && !daemon.path("b").exists());
}
