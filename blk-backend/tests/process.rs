//! The daemon as a whole: command line, connections, kills, full disks, control socket.

#[path = "support/process.rs"]
mod process;

use blk_backend::request::*;
use daemon::testing::{refuses, run};
use process::{Daemon, Guest, PROGRAM};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn image(dir: &Path, bytes: u64) -> String {
    let path = dir.join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path.to_str().unwrap().into()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |i: u64| (seed.wrapping_mul(31).wrapping_add(i) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len.div_ceil(8) as u64).flat_map(|i| word(i).to_le_bytes()).take(len).collect()
}

#[test]
fn what_cannot_be_served_is_one_sentence_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let good = image(dir.path(), MIB);
    std::fs::write(path("odd"), [0; 1000]).unwrap();
    std::fs::write(path("empty"), []).unwrap();
    std::fs::write(path("bad.toml"), "[[disk]]\npath = 'mem:1M'\ncolour = 'red'\n").unwrap();
    let (socket, long) = (path("s"), path(&"x".repeat(120)));
    let cases: &[&[&str]] = &[
        &["--blk-file", &path("missing")],
        &["--blk-file", &path("odd")],
        &["--blk-file", &path("empty")],
        &["--blk-file", dir.path().to_str().unwrap()],
        &["--blk-file", "/dev/null"],
        &["--blk-file", "mem:1000"],
        &["--blk-file", "null:"],
        &["--blk-file", &good, "--num-queues", "0"],
        &["--blk-file", &good, "--block-size", "1000"],
        &["--blk-file", "mem:1536", "--block-size", "4096"],
        &["--blk-file", &good, "--serial", "a serial that is too long"],
        &["--blk-file", &good, "--iops", "fast"],
        &["--blk-file", &good, "--iops", "0:0"],
        &["--blk-file", &good, "--queue-size", "3"],
        &["--blk-file", "mem:1M", "--direct"],
        &["--blk-file", &good, "--colour"],
        &["--read-only"],
        &["--disk", "id=a,path=mem:1M,socket=a", "--disk", "id=a,path=mem:1M,socket=b"],
        &["--config", &path("bad.toml")],
        &["--config", &path("none.toml")],
        &[],
    ];
    for args in cases {
        let mut all = vec!["--socket-path", &socket];
        // A socket of the command line needs a disk of the command line.
        if args.first() == Some(&"--disk") && args.len() > 2 {
            all.clear();
        }
        all.extend_from_slice(args);
        refuses(PROGRAM, dir.path(), &all, "");
    }
    for taken in [&long, &path("odd")] {
        refuses(PROGRAM, dir.path(), &["--blk-file", &good, "--socket-path", taken], taken);
    }
    assert_eq!(std::fs::read(path("odd")).unwrap().len(), 1000, "which is left alone");
}

#[test]
fn capabilities_follow_qemus_conventions() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(PROGRAM, dir.path(), &["--print-capabilities"]);
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, json!({"type": "block", "features": ["blk-file", "read-only"]}));
}

#[test]
fn sigterm_under_load_ends_cleanly_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 16 * MIB);
    let mut daemon = Daemon::start(dir.path(), &["--blk-file", &image]);
    let mut guest = Guest::start(daemon.connect(), false);
    let (data, status) = (guest.alloc(MIB as usize), guest.alloc(20));
    for i in 0..20 {
        guest.add(VIRTIO_BLK_T_OUT, i * 8, data, MIB as u32, memory::GuestAddr(status.0 + i));
    }
    guest.publish();
    let (code, took) = daemon.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!daemon.path("s").exists(), "the socket is gone");
}

#[test]
fn one_guest_after_another_finds_what_the_last_one_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 4 * MIB);
    let daemon = Daemon::start(dir.path(), &["--blk-file", &image]);
    for round in 0..10u64 {
        let mut guest = Guest::start(daemon.connect(), round % 2 == 1);
        if round > 0 {
            let (status, found) = guest.request(VIRTIO_BLK_T_IN, 8 * (round - 1), &[], 4096);
            assert!(status == 0 && found == pattern(round - 1, 4096), "round {round}");
        }
        let (status, _) = guest.request(VIRTIO_BLK_T_OUT, 8 * round, &pattern(round, 4096), 0);
        assert_eq!(status, 0);
    }
}

/// Overwrites blocks with rising versions while the daemon is killed again and again; every write that was
/// answered must be there, and no block may hold an older version than the last one answered.
fn kills(packed: bool, extra: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4 * MIB);
    let args: Vec<&str> = ["--blk-file", &path].into_iter().chain(extra.iter().copied()).collect();
    let mut daemon = Daemon::start(dir.path(), &args);
    let mut guest = Guest::start(daemon.connect(), packed);
    const BLOCKS: usize = 16;
    let buffers: Vec<_> = (0..BLOCKS).map(|_| (guest.alloc(16384), guest.alloc(1))).collect();
    let mut versions = [0u64; BLOCKS];
    let mut cookies = std::collections::HashMap::new();
    let mut answered = 0u64;
    for round in 0..20u32 {
        let kill_at = answered + 100 + u64::from(round * 37 % 91);
        let mut killed = false;
        loop {
            for block in 0..BLOCKS {
                if cookies.values().any(|b| *b == block) || killed {
                    continue;
                }
                versions[block] += 1;
                let (data, status) = buffers[block];
                let content = pattern(versions[block] * 1000 + block as u64, 16384);
                guest.memory.slice(data, 16384).unwrap().write(0, &content);
                guest.memory.slice(status, 1).unwrap().write(0, &[0xee]);
                let cookie = guest.add(VIRTIO_BLK_T_OUT, block as u64 * 32, data, 16384, status);
                cookies.insert(cookie, block);
            }
            guest.publish();
            if answered >= kill_at && !killed {
                daemon.kill();
                killed = true;
                daemon = Daemon::start(dir.path(), &args);
                guest.session.reconnect(daemon.connect()).unwrap();
            }
            let start = Instant::now();
            while let Some(used) = guest.pop() {
                let block = cookies.remove(&used.cookie).expect("each request is answered once");
                assert_eq!(guest.bytes(buffers[block].1, 1), [0], "block {block} got an error");
                answered += 1;
            }
            if killed && cookies.is_empty() {
                break;
            }
            if start.elapsed() < Duration::from_micros(50) {
                std::thread::sleep(Duration::from_micros(50));
            }
            assert!(guest.memory.table().generation() > 0);
        }
        let content = std::fs::read(&path).unwrap();
        for block in 0..BLOCKS {
            let expected = pattern(versions[block] * 1000 + block as u64, 16384);
            assert!(content[block * 16384..(block + 1) * 16384] == expected, "round {round}, block {block}");
        }
    }
    assert!(answered >= 20 * 100);
}

#[test]
fn twenty_kills_under_load_lose_nothing_with_split_rings() {
    kills(false, &[]);
}

#[test]
fn twenty_kills_under_load_lose_nothing_with_packed_rings() {
    kills(true, &[]);
}

#[test]
fn twenty_kills_under_load_lose_nothing_with_the_thread_engine() {
    kills(false, &["--io", "threads"]);
}

#[test]
fn the_control_socket_shows_resizes_limits_adds_and_removes() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4 * MIB);
    let allow = dir.path().to_str().unwrap();
    let daemon = Daemon::start(dir.path(), &["--blk-file", &path, "--id", "root", "--allow-path", allow]);
    let mut guest = Guest::start(daemon.connect(), false);
    let mut back = guest.session.frontend.open_back_channel().unwrap();
    let capacity = |guest: &mut Guest| {
        let mut bytes = [0; 8];
        guest.session.get_config(0, &mut bytes).unwrap();
        u64::from_le_bytes(bytes) * 512
    };
    assert_eq!(capacity(&mut guest), 4 * MIB);

    let answer = daemon.call("disk.resize", json!({"disk": "root", "size": "8M"}));
    assert_eq!(answer["bytes"], 8 * MIB);
    let message = back.receive(Duration::from_secs(5)).unwrap().expect("the frontend is told");
    back.acknowledge(message.message.header, 0).unwrap();
    assert_eq!(capacity(&mut guest), 8 * MIB);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 8 * MIB / 512 - 1, &[5; 512], 0).0, 0);

    // The file grows by itself.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(12 * MIB).unwrap();
    let message = back.receive(Duration::from_secs(20)).unwrap().expect("growth is noticed");
    back.acknowledge(message.message.header, 0).unwrap();
    assert_eq!(capacity(&mut guest), 12 * MIB);

    daemon.call("disk.limit", json!({"disk": "root", "iops": "50:1"}));
    let start = Instant::now();
    (0..10).for_each(|i| assert_eq!(guest.request(VIRTIO_BLK_T_IN, i, &[], 512).0, 0));
    assert!(start.elapsed() > Duration::from_millis(140), "{:?}", start.elapsed());
    daemon.call("disk.limit", json!({"disk": "root", "iops": 0}));

    let (second, image) = (dir.path().join("s2"), dir.path().join("second.img"));
    std::fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    daemon.call("disk.add", json!({"id": "second", "path": image, "socket": second}));
    let mut other = Guest::start(std::os::unix::net::UnixStream::connect(&second).unwrap(), true);
    assert_eq!(other.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).0, 0);
    let names: Vec<_> = daemon.call("disk.list", json!({})).as_array().unwrap().clone();
    assert_eq!(names.iter().map(|disk| disk["id"].as_str().unwrap()).collect::<Vec<_>>(), ["root", "second"]);
    daemon.call("disk.remove", json!({"disk": "second"}));
    assert!(!second.exists());
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, 0, "the first disk goes on");

    let stats = daemon.call("stats", json!({}));
    let root = &stats["devices"][0];
    assert_eq!(root["name"], "root");
    assert!(root["operations"]["read"]["requests"].as_u64().unwrap() >= 11, "{root}");
    assert!(root["extra"]["throttled"].as_u64().unwrap() > 0);
}

#[test]
fn polling_is_read_and_changed_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--blk-file", "mem:1M", "--poll-max-us", "30"];
    let daemon = Daemon::start(dir.path(), &args);
    let set = |params| daemon.call("poll.set", params);
    assert_eq!(set(json!({})), json!({"poll": "adaptive", "max-us": 30, "preset": "kvm"}));
    assert_eq!(set(json!({"poll": "off"})), json!({"poll": "off", "max-us": 30, "preset": "kvm"}));
    set(json!({"poll": "adaptive", "preset": "haltpoll"}));
    assert_eq!(set(json!({"max-us": 20})), json!({"poll": "adaptive", "max-us": 20, "preset": "haltpoll"}));
    assert!(daemon.refused("poll.set", json!({"max-us": 1_000_001})).contains("1000000"));
}

#[test]
fn a_guest_of_several_processors_finds_a_queue_for_each_without_being_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &["--blk-file", "mem:1M"]);
    let guest = Guest::start(daemon.connect(), false);
    assert_eq!(guest.session.max_queues(), 16);
    let task = format!("/proc/{}/task", daemon.child.id());
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap();
    let threads = std::fs::read_dir(task).unwrap().map(|task| name(task.unwrap()));
    assert_eq!(threads.filter(|name| name.trim() == "blk-1").count(), 0, "queues nobody uses make no worker");
}

#[test]
fn an_image_that_the_sandbox_closes_off_is_refused_with_what_it_leaves_open() {
    let dir = tempfile::tempdir().unwrap();
    let allowed = dir.path().join("allowed");
    std::fs::create_dir(&allowed).unwrap();
    let path = image(dir.path(), MIB);
    let allow = allowed.to_str().unwrap();
    let args = ["--blk-file", "mem:1M", "--allow-path", allow];
    let daemon = Daemon::start(dir.path(), &args);
    let status = daemon.call("status", json!({}));
    let added = daemon.ask("disk.add", json!({"id": "a", "path": path, "socket": dir.path().join("a")}));
    if added.is_ok() && status["sandbox"] == "enforce" {
        assert!(std::env::var_os("CI").is_none(), "this kernel has no Landlock");
        return eprintln!("SKIPPED: an_image_that_the_sandbox_closes_off: this kernel has no Landlock");
    }
    let refusal = added.unwrap_err();
    assert!(refusal.contains(&format!("--allow-path {allow}")), "{refusal}");
    assert!(!dir.path().join("a").exists());
}

#[test]
fn the_log_says_what_is_served_where_and_to_which_disk_a_line_belongs() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, text) = logging(dir.path(), &["--blk-file", "mem:1M", "--id", "root"]);
    drop(daemon.connect());
    eventually("the frontend is gone", || text().contains("disconnected"));
    daemon.terminate();
    let text = text();
    let line = |word: &str| text.lines().find(|line| line.contains(word)).expect(&text).to_owned();
    assert!(line(" serving ").contains(daemon.path("s").to_str().unwrap()), "{text}");
    assert!(line("disconnected").contains("root"), "{text}");
    assert!(!text.contains("vhost-user-blk-pci"), "words for people at a terminal only: {text}");
}

/// A daemon whose log is in a file.
fn logging(dir: &Path, args: &[&str]) -> (Daemon, impl Fn() -> String + use<>) {
    let log = dir.join("log");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("exec {PROGRAM} \"$@\" 2>{}", log.display()), "sh"]);
    let daemon = Daemon::start_command(command, dir, args);
    (daemon, move || std::fs::read_to_string(&log).unwrap())
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_second_frontend_waits_and_the_log_and_a_counter_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, text) = logging(dir.path(), &["--blk-file", "mem:1M", "--id", "root"]);
    let mut first = Guest::start(daemon.connect(), false);
    assert_eq!(daemon.stats("root").extra["connection_waits"], 0);
    let second = daemon.connect();
    eventually("the second frontend is noticed", || daemon.stats("root").extra["connection_waits"] == 1);
    let third = daemon.connect();
    assert_eq!(first.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, 0, "the first one is served as before");
    let waiting = |text: &str| text.lines().filter(|line| line.contains("it waits until")).count();
    assert_eq!(waiting(&text()), 1, "{}", text());
    assert!(
        text().lines().any(|line| line.contains("it waits until") && line.contains("root")),
        "{}",
        text()
    );
    // The one that waited is served when it is its turn, and then the next one waits for it.
    drop(first);
    let mut second = Guest::start(second, true);
    assert_eq!(second.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, 0);
    eventually("the third frontend is noticed", || waiting(&text()) == 2);
    assert_eq!(daemon.stats("root").extra["connection_waits"], 2);
    drop((second, third));
}

#[test]
fn a_frontend_that_connects_in_a_loop_cannot_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, text) =
        logging(dir.path(), &["--disk", "id=a,path=mem:1M,socket=a", "--blk-file", "mem:1M", "--id", "b"]);
    // Each of them is refused some messages on top.
    let nonsense = [200u32, 1, 0].map(u32::to_ne_bytes).concat().repeat(20);
    for _ in 0..1000 {
        std::io::Write::write_all(&mut daemon.connect(), &nonsense).unwrap();
    }
    let counted = || daemon.stats("b").extra["connections"];
    eventually("all connections are counted", || counted() == 1000);
    let unlogged = daemon.stats("b").extra["connections_unlogged"];
    assert!((970..=990).contains(&unlogged), "{unlogged}");
    // Two lines, sixteen refusals and a frontend that waits for each of ten a minute; two minutes may have a part in it.
    let lines = text().lines().count();
    assert!(lines < 2 * 10 * 19 + 20, "{lines} lines");
    // The other device has lines of its own.
    drop(std::os::unix::net::UnixStream::connect(daemon.path("a")).unwrap());
    let said =
        || text().lines().any(|line| line.contains("front-end connected") && line.contains("name=\"a\""));
    eventually("the other device's connection is logged", said);
}

#[test]
fn a_full_filesystem_is_an_error_for_the_guest_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    // A namespace of its own with a filesystem of one mebibyte, and a disk that promises four.
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m none {0} && truncate -s 4M {0}/disk.img && exec {1} \"$@\"",
        mount.display(),
        PROGRAM
    );
    let probe = std::process::Command::new("unshare").args(["-rm", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "namespaces are not allowed here");
        eprintln!("SKIPPED: a_full_filesystem: namespaces are not allowed here");
        return;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["-rm", "sh", "-ec", &script, "sh"]);
    let image = mount.join("disk.img");
    let daemon = Daemon::start_command(command, dir.path(), &["--blk-file", image.to_str().unwrap()]);
    let mut guest = Guest::start(daemon.connect(), false);
    let statuses: Vec<u8> =
        (0..16).map(|i| guest.request(VIRTIO_BLK_T_OUT, i * 512, &vec![1; 256 << 10], 0).0).collect();
    assert_eq!(statuses[0], 0);
    assert!(statuses.contains(&1), "no space is an I/O error: {statuses:?}");
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, &[], 4096), (0, vec![1; 4096]));
    let zeroes = WireRange { sector: 0.into(), num_sectors: 4096.into(), flags: 1.into() };
    let status = guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, zerocopy::IntoBytes::as_bytes(&zeroes), 0).0;
    assert_eq!(status, 0, "zeroing frees space");
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 6144, &[2; 4096], 0).0, 0, "and the guest can go on");
}

#[test]
fn fifty_idle_disks_cost_no_cpu_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), MIB);
    let disks: Vec<String> = (0..50)
        .map(|i| {
            format!("id=d{i},path={path},read-only,socket={}", dir.path().join(format!("d{i}")).display())
        })
        .collect();
    let args: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", disk]).collect();
    let daemon = Daemon::start(dir.path(), &[&["--blk-file", "mem:1M"], &args[..]].concat());
    let mut guests: Vec<_> = (0..50)
        .map(|i| {
            let socket = std::os::unix::net::UnixStream::connect(dir.path().join(format!("d{i}"))).unwrap();
            Guest::start(socket, false)
        })
        .collect();
    assert!(guests.iter_mut().all(|guest| guest.request(VIRTIO_BLK_T_IN, 0, &[], 512).0 == 0));
    std::thread::sleep(Duration::from_millis(300));
    let before = daemon.ticks();
    std::thread::sleep(Duration::from_secs(3));
    let spent = daemon.ticks() - before;
    // One tick may be what was rounded down before.
    assert!(spent <= 1, "{spent} ticks in three idle seconds");
}
