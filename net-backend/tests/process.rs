//! The daemon as a whole: command line, ports, control socket, kills.

mod process_support;

use net_backend::frame::MacAddr;
use process_support::{Guest, PROGRAM, frame, mac, refuses, run, start};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TWO: [&str; 4] =
    ["--port", "id=a,socket=a,mac=52:54:00:00:00:01", "--port", "id=b,socket=b,mac=52:54:00:00:00:02"];

#[test]
fn what_cannot_be_served_is_one_sentence_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("file", "not a socket");
    write("unknown.toml", "[[port]]\nsocket = 'a'\ncolour = 'red'\n");
    write("twice.toml", "[[port]]\nid = 'a'\nsocket = 'a'\n[[port]]\nid = 'a'\nsocket = 'b'\n");
    write("uplink.toml", "[uplink]\ndevice = 'eth0'\n[[port]]\nsocket = 'a'\n");
    let long = "x".repeat(120);
    // Arguments, and words that the sentence must have.
    let cases: &[(&[&str], &str)] = &[
        (&[], "No socket"),
        (&["--port", "id=a"], "No socket"),
        (&["--port", "sockt=a"], "did you mean 'socket'?"),
        (&["--port", "socket=a,mac=52:54"], "52:54"),
        (&["--port", "socket=a,mac=01:00:5e:00:00:01"], "not one a station can have"),
        (&["--port", "socket=a,mtu=65536"], "'65536' is not a number"),
        (&["--port", "socket=a,mtu=67"], "67 for mtu"),
        (&["--port", "socket=a,queues=0"], "queues is not between 1 and 16"),
        (&["--port", "socket=a,queues=17"], "queues is not between 1 and 16"),
        (&["--port", "socket=a,queue-size=1"], "queue-size"),
        (&["--port", "socket=a,queue-size=3"], "3 for queue-size is not a power of two"),
        (&["--port", "socket=a,vlan=4095"], "vlan"),
        (&["--port", "socket=a,vlan=1,trunk=all"], "both vlan and trunk"),
        (&["--port", "socket=a,native=1"], "no trunk"),
        (&["--port", "socket=a,trunk=9-1"], "list of VLANs"),
        (&["--port", "socket=a,anti-spoof"], "no mac"),
        (&["--port", "socket=a,tx-bps=fast"], "'fast' is not a rate"),
        (&["--port", "socket=a,tx-bps=0:0"], "'0:0' is not a limit"),
        (&["--port", "socket=a,mirror=nobody"], "'nobody' is no port"),
        (&["--port", "socket=a,mirror-direction=in"], "without mirror"),
        (&["--port", "socket=a,mirror=pcapng:/no/such/dir/x"], "/no/such/dir/x"),
        (&["--port", "socket=a,id=a b"], "port id 'a b'"),
        (&["--port", "socket=file"], "file"),
        (&["--port", "socket=/no/such/dir/a"], "/no/such/dir/a"),
        (&["--port", &format!("socket={long}")], "107"),
        (&["--port", "id=a,socket=a", "--port", "id=a,socket=b"], "There is a port 'a' already"),
        (&["--port", "socket=a", "--port", "socket=a"], "Two ports have the socket a"),
        (
            &[
                "--port",
                "id=a,socket=a,mac=52:54:00:00:00:01",
                "--port",
                "id=b,socket=b,mac=52:54:00:00:00:01",
            ],
            "of port 'b' is already that of port 'a'",
        ),
        (&["--port", "socket=a", "--mac", "52:54:00:00:00:01"], "without --socket-path"),
        (&["--socket-path", "s", "--uplink", "eth0"], "'eth0' is not tap:NAME, af_xdp:INTERFACE or none"),
        (&["--socket-path", "s", "--uplink", "tap:"], "cannot be the name of an interface"),
        (&["--socket-path", "s", "--uplink", "tap:a-very-long-name"], "longer than 15 characters"),
        (&["--socket-path", "s", "--uplink", "tap:t,mode=copy"], "mode is not one of a tap uplink"),
        (&["--socket-path", "s", "--uplink", "tap:t", "--uplink", "tap:u"], "Two uplinks"),
        (&["--socket-path", "s", "--uplink", "af_xdp:nosuchif0"], "nosuchif0"),
        (&["--socket-path", "s", "--mac-table-size", "1"], "mac-table-size"),
        (&["--socket-path", "s", "--workers", "17"], "17 workers are too many"),
        (&["--socket-path", "s", "--colour"], "--colour"),
        (&["--config", "unknown.toml"], "line 3"),
        (&["--config", "twice.toml"], "There is a port 'a' already"),
        (&["--config", "uplink.toml"], "'eth0' is not tap:NAME"),
        (&["--config", "none.toml"], "none.toml"),
    ];
    for (args, words) in cases {
        refuses(PROGRAM, dir.path(), args, words);
    }
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"not a socket", "which is left alone");
}

#[test]
fn capabilities_follow_qemus_conventions() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["--print-capabilities"]);
    assert!(output.status.success());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, json!({"type": "net", "features": []}));
}

#[test]
fn a_configuration_file_is_the_same_as_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[switch]\naging = 60\n[[port]]\nid = 'a'\nsocket = 'a'\nmac = '52:54:00:00:00:01'\nvlan = 10\n\
        [[port]]\nid = 'b'\nsocket = 'b'\ntrunk = [10, '20-29']\ntx-bps = '1G:10M'\n";
    std::fs::write(dir.path().join("net.toml"), text).unwrap();
    let by_file = start(dir.path(), &["--config", "net.toml"]).call("port.list", Value::Null);
    let args = [
        "--aging",
        "60",
        "--port",
        "id=a,socket=a,mac=52:54:00:00:00:01,vlan=10",
        "--port",
        "id=b,socket=b,trunk=10+20-29,tx-bps=1G:10M",
    ];
    let by_line = start(dir.path(), &args).call("port.list", Value::Null);
    assert_eq!(by_file, by_line);
    assert_eq!(
        by_file[1]["policy"]["limits"]["ingress"]["bits"],
        json!({"rate": 1_000_000_000, "burst": 10_000_000})
    );
}

#[test]
fn an_argument_wins_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[switch]\naging = 60\n[uplink]\ndevice = 'tap:nobody-has-it'\n[[port]]\nsocket = 'a'\n";
    std::fs::write(dir.path().join("net.toml"), text).unwrap();
    let args = ["--config", "net.toml", "--uplink", "none", "--aging", "90"];
    let daemon = start(dir.path(), &args);
    assert_eq!(daemon.call("uplink.get", json!({})), Value::Null);
    assert_eq!(daemon.call("switch.set", json!({}))["aging"], 90);
}

#[test]
fn two_guests_talk_and_every_frame_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    for packed in [false, true] {
        let mut a = Guest::start(daemon.connect("a"), packed);
        let mut b = Guest::start(daemon.connect("b"), !packed);
        for seed in 0..100 {
            a.send(&frame(mac(2), mac(1), seed));
            b.expect(&frame(mac(2), mac(1), seed));
            b.send(&frame(mac(1), mac(2), seed));
            a.expect(&frame(mac(1), mac(2), seed));
        }
    }
    let stats = daemon.stats("a");
    assert_eq!((stats.kind.as_str(), stats.operations["tx"].requests), ("net", 200));
    assert_eq!((stats.operations["rx"].requests, stats.operations["rx"].bytes), (200, 200 * 100));
    assert_eq!(stats.operations["tx"].errors, 0);
}

#[test]
fn a_single_port_needs_no_more_than_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &["--socket-path", "s", "--loopback"]);
    let mut guest = Guest::start(daemon.connect("s"), false);
    guest.send(&frame(mac(9), mac(1), 7));
    guest.expect(&frame(mac(9), mac(1), 7));
    assert_eq!(daemon.call("port.list", Value::Null)[0]["id"], "port0");
}

#[test]
fn ports_come_and_go_without_the_others_noticing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    for round in 0..5 {
        daemon.call("port.add", json!({"id": "c", "socket": "c", "mac": "52:54:00:00:00:03"}));
        let mut c = Guest::start(daemon.connect("c"), round % 2 == 0);
        a.send(&frame(mac(3), mac(1), round));
        c.expect(&frame(mac(3), mac(1), round));
        c.send(&frame(MacAddr::BROADCAST, mac(3), round));
        a.expect(&frame(MacAddr::BROADCAST, mac(3), round));
        b.expect(&frame(MacAddr::BROADCAST, mac(3), round));
        daemon.call("port.remove", json!({"port": "c"}));
        assert!(!daemon.path("c").exists(), "the socket goes with the port");
        a.send(&frame(mac(2), mac(1), round));
        b.expect(&frame(mac(2), mac(1), round));
    }
    assert_eq!(daemon.call("port.list", Value::Null).as_array().unwrap().len(), 2);
    let refused = |params: Value| daemon.refused("port.add", params);
    assert!(refused(json!({"id": "a", "socket": "x"})).contains("a port 'a' already"));
    assert!(refused(json!({"id": "x", "socket": "x", "mac": "52:54:00:00:00:01"})).contains("port 'a'"));
    assert!(refused(json!({"id": "x", "socket": "a"})).contains('a'));
    assert!(refused(json!({"id": "x", "socket": "x", "colour": 1})).contains("colour"));
    assert!(refused(json!({"socket": "x"})).contains("id"));
    assert!(daemon.refused("port.remove", json!({"port": "x"})).contains("There is no port 'x'"));
    assert!(!daemon.path("x").exists());
}

#[test]
fn vlans_isolation_and_spoofing_change_while_frames_flow() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    let set = |params: Value| daemon.call("port.set", params);
    let (there, forged) = (frame(mac(2), mac(1), 1), frame(mac(2), mac(7), 2));
    a.send(&there);
    b.expect(&there);
    set(json!({"port": "a", "vlan": 10}));
    a.send(&there);
    let tagged = [&there[..12], &[0x81, 0, 0, 10], &there[12..]].concat();
    b.expect(&tagged);
    set(json!({"port": "b", "vlan": 20}));
    a.send(&there);
    b.hears_nothing();
    set(json!({"port": "b", "vlan": 10}));
    a.send(&there);
    b.expect(&there);
    set(json!({"port": "a", "isolated": true}));
    set(json!({"port": "b", "isolated": true}));
    a.send(&there);
    b.hears_nothing();
    set(json!({"port": "b", "isolated": false}));
    a.send(&forged);
    b.expect(&forged);
    set(json!({"port": "a", "anti-spoof": true}));
    a.send(&forged);
    b.hears_nothing();
    let drops = daemon.stats("a").extra;
    assert_eq!(drops["tx_dropped_spoofed_mac"], 1, "{drops:?}");
    let refused = |params: Value| daemon.refused("port.set", params);
    assert!(refused(json!({"port": "a", "mac": "52:54:00:00:00:02"})).contains("port 'b'"));
    assert!(refused(json!({"port": "a", "vlan": 4095})).contains("4095"));
    assert!(refused(json!({"port": "a", "native": 5})).contains("no trunk"));
    assert!(refused(json!({"port": "x", "vlan": 1})).contains("There is no port 'x'"));
    assert!(refused(json!({"port": "a", "colour": 1})).contains("colour"));
}

#[test]
fn a_rate_limit_drops_what_a_guest_would_get_too_much_of() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    daemon.call("port.set", json!({"port": "b", "rx-pps": "1:5"}));
    (0..20).for_each(|seed| a.send(&frame(mac(2), mac(1), seed)));
    let got = std::iter::from_fn(|| b.receive(Duration::from_millis(50))).count();
    assert!((5..=8).contains(&got), "{got} of 20 with a burst of 5");
    assert!(daemon.stats("b").extra["rx_dropped_rate_limited"] >= 12);
    daemon.call("port.set", json!({"port": "b", "rx-pps": 0}));
    a.send(&frame(mac(2), mac(1), 99));
    b.expect(&frame(mac(2), mac(1), 99));
}

#[test]
fn a_link_goes_down_and_up() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    let shown = daemon.call("port.set", json!({"port": "b", "link": "down"}));
    assert_eq!(shown["link"], "down");
    a.send(&frame(mac(2), mac(1), 1));
    b.hears_nothing();
    daemon.call("port.set", json!({"port": "b", "link": "up"}));
    a.send(&frame(mac(2), mac(1), 2));
    b.expect(&frame(mac(2), mac(1), 2));
    assert!(daemon.stats("b").extra["rx_dropped_link_down"] >= 1);
}

#[test]
fn addresses_are_listed_added_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    a.send(&frame(MacAddr::BROADCAST, mac(7), 1));
    let known = |params: Value| {
        let list = daemon.call("mac.list", params);
        let of = |entry: &Value| {
            (entry["mac"].as_str().unwrap().to_owned(), entry["port"].as_str().unwrap().to_owned())
        };
        list.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let entry = |mac: MacAddr, port: &str| (mac.to_string(), port.to_owned());
    assert!(known(json!({})).contains(&entry(mac(7), "a")));
    assert!(!known(json!({"port": "b"})).contains(&entry(mac(7), "a")));
    assert_eq!(daemon.call("mac.flush", json!({"port": "a"}))["forgotten"], 1);
    assert!(!known(json!({})).contains(&entry(mac(7), "a")));
    a.send(&frame(MacAddr::BROADCAST, mac(7), 2));
    daemon.call("port.set", json!({"port": "a", "link": "down"}));
    assert!(!known(json!({})).contains(&entry(mac(7), "a")), "nobody is behind a link that is down");
    daemon.call("mac.add", json!({"mac": mac(8).to_string(), "port": "b"}));
    assert!(known(json!({})).contains(&entry(mac(8), "b")));
    assert_eq!(daemon.call("mac.remove", json!({"mac": mac(8).to_string()}))["removed"], true);
    assert!(daemon.refused("mac.add", json!({"mac": "ff:ff:ff:ff:ff:ff", "port": "b"})).contains("ff:ff"));
    assert!(daemon.refused("mac.add", json!({"mac": mac(1).to_string(), "port": "b"})).contains("already"));
}

#[test]
fn rules_are_added_counted_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    let rules = daemon.call("filter.add", json!({"port": "a", "rule": "out deny ethertype 0x88b5"}));
    assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
    a.send(&frame(mac(2), mac(1), 1));
    b.hears_nothing();
    assert_eq!(daemon.call("filter.list", json!({"port": "a"}))[0]["frames"], 1);
    daemon.call("filter.remove", json!({"port": "a", "at": 0}));
    a.send(&frame(mac(2), mac(1), 2));
    b.expect(&frame(mac(2), mac(1), 2));
    assert!(daemon.refused("filter.remove", json!({"port": "a", "at": 0})).contains("no rule 0"));
    assert!(daemon.refused("filter.add", json!({"port": "a", "rule": "perhaps"})).contains("perhaps"));
}

#[test]
fn a_mirror_shows_a_third_port_what_passes() {
    let dir = tempfile::tempdir().unwrap();
    let args = [&TWO[..], &["--port", "id=probe,socket=p"]].concat();
    let daemon = start(dir.path(), &args);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    let mut probe = Guest::start(daemon.connect("p"), false);
    daemon.call("mirror.set", json!({"port": "a", "to": "probe"}));
    a.send(&frame(mac(2), mac(1), 1));
    b.expect(&frame(mac(2), mac(1), 1));
    probe.expect(&frame(mac(2), mac(1), 1));
    assert!(daemon.refused("port.remove", json!({"port": "probe"})).contains("mirror of port 'a'"));
    daemon.call("mirror.remove", json!({"port": "a"}));
    a.send(&frame(mac(2), mac(1), 2));
    b.expect(&frame(mac(2), mac(1), 2));
    probe.hears_nothing();
    daemon.call("port.remove", json!({"port": "probe"}));
}

#[test]
fn a_mirror_file_is_written_inside_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let first = "id=a,socket=a,mac=52:54:00:00:00:01,mirror=pcapng:trace.pcapng";
    let mut daemon = start(dir.path(), &["--port", first, "--port", TWO[3]]);
    let mut a = Guest::start(daemon.connect("a"), false);
    let sent = frame(mac(2), mac(1), 0x5a);
    a.send(&sent);
    let (code, _) = daemon.terminate();
    assert_eq!(code, Some(0));
    let trace = std::fs::read(dir.path().join("trace.pcapng")).unwrap();
    assert_eq!(trace[..4], [0x0a, 0x0d, 0x0d, 0x0a], "a section header block");
    assert!(trace.windows(sent.len()).any(|window| window == sent), "with the frame");
}

#[test]
fn sigterm_ends_cleanly_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let _b = Guest::start(daemon.connect("b"), true);
    (0..50).for_each(|seed| a.send(&frame(mac(2), mac(1), seed)));
    let (code, took) = daemon.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!daemon.path("a").exists() && !daemon.path("b").exists(), "the sockets are gone");
}

#[test]
fn a_killed_daemon_is_replaced_and_the_guests_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), true);
    for round in 0..5 {
        a.send(&frame(mac(2), mac(1), round));
        b.expect(&frame(mac(2), mac(1), round));
        daemon.kill();
        daemon = start(dir.path(), &TWO);
        a.session.reconnect(daemon.connect("a")).unwrap();
        b.session.reconnect(daemon.connect("b")).unwrap();
    }
    b.send(&frame(mac(1), mac(2), 9));
    a.expect(&frame(mac(1), mac(2), 9));
}

#[test]
fn an_idle_switch_uses_no_cpu_time() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &TWO);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    a.send(&frame(mac(2), mac(1), 1));
    b.expect(&frame(mac(2), mac(1), 1));
    std::thread::sleep(Duration::from_millis(500));
    let before = daemon.ticks();
    std::thread::sleep(Duration::from_secs(3));
    assert!(daemon.ticks() - before <= 1, "{} ticks", daemon.ticks() - before);
}

#[test]
fn the_metrics_have_every_drop_by_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let args = [&TWO[..], &["--metrics", "unix:metrics"]].concat();
    let daemon = start(dir.path(), &args);
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    a.send(&frame(mac(2), mac(1), 1));
    b.expect(&frame(mac(2), mac(1), 1));
    let text = daemon.scrape("metrics");
    let dropped =
        "vhostd_net_dropped_frames_total{device=\"b\",direction=\"rx\",reason=\"no_receive_buffer\"} 0";
    assert!(text.contains(dropped), "{text}");
    assert!(
        text.contains("vhostd_net_queue_frames_total{device=\"b\",direction=\"rx\",pair=\"0\"} 1"),
        "{text}"
    );
    assert!(text.contains("vhostd_net_link_up{device=\"a\"} 1"), "{text}");
    let pairs = &daemon.call("port.list", json!({}))[1]["pairs"];
    assert_eq!(pairs, &json!([{"rx": {"frames": 1, "bytes": 100}, "tx": {"frames": 0, "bytes": 0}}]));
}

#[test]
fn polling_changes_while_the_workers_run() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), &[&TWO[..], &["--workers", "2", "--poll", "off"]].concat());
    let set = daemon.call("poll.set", json!({"poll": "adaptive", "max-us": 20}));
    assert_eq!((set["poll"].as_str(), set["max-us"].as_u64()), (Some("adaptive"), Some(20)));
    let mut a = Guest::start(daemon.connect("a"), false);
    let mut b = Guest::start(daemon.connect("b"), false);
    let start = Instant::now();
    a.send(&frame(mac(2), mac(1), 1));
    b.expect(&frame(mac(2), mac(1), 1));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(daemon.call("status", Value::Null)["details"]["workers"].as_array().unwrap().len(), 2);
}
