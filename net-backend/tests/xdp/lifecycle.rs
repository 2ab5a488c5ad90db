//! How long the program is on the interface, and what becomes of an uplink whose interface changes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use net_backend::frame::NetHeader;
use net_backend::switch::Drop as Reason;
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::xdp::{self, ModeChoice, Queue, Spec};
use serde_json::{Value, json};

use crate::bed;
use crate::support::*;

#[test]
fn the_program_goes_with_the_last_of_its_owners() {
    let _far = bed!();
    for mode in MODES {
        let opened = open(&spec(mode));
        assert!(has_program("v0"), "{mode:?}");
        drop(opened.queues);
        assert!(has_program("v0"), "{mode:?}: the control is still there");
        drop(opened.control);
        wait_for("the program to go", || !has_program("v0"));
    }
}

#[test]
fn an_interface_can_be_opened_again_at_once() {
    let far = bed!();
    for round in 0..4 {
        let mut queue = open_one(&spec(MODES[round % 2]));
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        wire.send(&frame(60, round as u32));
        assert!(receive_one(&mut queue).1 == frame(60, round as u32));
    }
}

#[test]
fn a_killed_daemon_leaves_no_program_and_the_next_start_works() {
    let far = bed!();
    let folder = tempfile::tempdir().expect("a folder");
    for uplink in ["af_xdp:v0,mode=copy", "af_xdp:v0,mode=generic"] {
        let socket = folder.path().join("port.sock");
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_vhostd-net"))
            .args(["--socket-path".as_ref(), socket.as_os_str()])
            .args(["--uplink", uplink])
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the daemon starts");
        wait_for("the daemon", || has_program("v0") && socket.exists());
        assert!(daemon.try_wait().expect("a state").is_none(), "the daemon runs");
        daemon.kill().expect("killed");
        daemon.wait().expect("gone");
        wait_for("the program to go", || !has_program("v0"));
        let start = Instant::now();
        let mut queue = open_one(&Spec::new("v0"));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        wire.send(&frame(60, 1));
        assert!(receive_one(&mut queue).1 == frame(60, 1));
    }
}

fn send_one(queue: &mut Queue) -> Result<(), Reason> {
    let result = send(queue, NetHeader::PLAIN, &frame(60, 1), 60);
    queue.flush();
    result
}

#[test]
fn an_interface_that_is_deleted_ends_the_uplink_without_harm() {
    let far = bed!();
    for mode in MODES {
        let mut queue = open_one(&spec(mode));
        assert_eq!(send_one(&mut queue), Ok(()));
        ip("link del v0");
        let _ = send_one(&mut queue);
        assert_eq!(send_one(&mut queue), Err(Reason::LinkDown), "{mode:?}");
        assert!(queue.is_gone());
        let calls = queue.counters().calls;
        assert!(!queue.has_work() && !queue.arm() && receive(&mut queue, 32).is_empty());
        for _ in 0..100 {
            assert_eq!(send_one(&mut queue), Err(Reason::LinkDown));
        }
        assert!(queue.counters().calls <= calls + 100, "{:?}", queue.counters());
        drop(queue);
        far.join("v0", "v1", "", "");
    }
    assert!(xdp::open(&Spec::new("v0"), 1).is_ok(), "a new interface of the same name is another one");
}

#[test]
fn a_link_that_went_down_carries_frames_again_when_it_is_up() {
    let far = bed!();
    let mut queue = open_one(&spec(ModeChoice::Copy));
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    ip("link set v0 down");
    let _ = send_one(&mut queue);
    assert_eq!(send_one(&mut queue), Err(Reason::LinkDown));
    assert!(!queue.is_gone());
    ip("link set v0 up");
    wait_for("frames to pass", || send_one(&mut queue).is_ok());
    assert!(wire.receive() == frame(60, 1));
    wire.send(&frame(60, 2));
    assert!(receive_one(&mut queue).1 == frame(60, 2));
    assert_eq!(queue.buffers().sending, 0);
}

/// One call of the control socket.
fn call(socket: &Path, method: &str, params: Value) -> Value {
    let mut stream = UnixStream::connect(socket).expect("the control socket");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    writeln!(stream, "{request}").expect("sent");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("an answer");
    serde_json::from_str(&answer).expect("JSON")
}

#[test]
fn a_daemon_in_its_sandbox_changes_the_filter() {
    let _far = bed!();
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, control) = (folder.path().join("port.sock"), folder.path().join("control.sock"));
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vhostd-net"))
        .args([
            "--socket-path".as_ref(),
            socket.as_os_str(),
            "--control-socket".as_ref(),
            control.as_os_str(),
        ])
        .args(["--uplink", "af_xdp:v0"])
        .spawn()
        .expect("the daemon starts");
    wait_for("the daemon", || UnixStream::connect(&control).is_ok());
    let filter = json!({"macs": ["52:54:00:00:00:07"], "vlans": [3], "groups": "host"});
    let answer = call(&control, "uplink.filter", filter.clone());
    assert_eq!(answer["error"], Value::Null, "{answer}");
    let answer = call(&control, "uplink.get", json!({}));
    assert_eq!(answer["result"]["details"]["filter"], filter, "{answer}");
    assert_eq!(answer["result"]["details"]["mode"], "copy", "{answer}");
    assert_eq!(answer["result"]["details"]["kernel"]["receive_dropped"], 0, "{answer}");
    assert!(answer["result"]["counters"]["system_calls"].is_u64(), "{answer}");
    assert!(daemon.try_wait().expect("a state").is_none(), "the daemon runs");
    daemon.kill().expect("killed");
    daemon.wait().expect("gone");
}

#[test]
fn the_control_counts_what_the_kernel_dropped() {
    let far = bed!();
    let mut opened = open(&Spec { ring: Some(64), ..spec(ModeChoice::Copy) });
    let wire = far.run(|| Wire::new("v1", ETHERTYPE));
    (0..100).for_each(|number| wire.send(&frame(60, number)));
    let dropped = |counts: xdp::Statistics| counts.receive_dropped + counts.receive_ring_full;
    wait_for("drops", || dropped(opened.control.statistics()) == 36);
    assert_eq!(opened.control.statistics().transmit_invalid, 0);
    opened.queues.clear();
    assert_eq!(opened.control.statistics(), xdp::Statistics::default(), "the sockets are gone");
}
