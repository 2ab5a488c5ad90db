//! The service manager's side: notifications, watchdog, sockets it passes.

use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::toy::{self, LONG, Toy};

/// A daemon that notifies this socket.
fn notified(dir: &std::path::Path) -> (UnixDatagram, Command) {
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut command = Command::new(toy::program());
    command.env("NOTIFY_SOCKET", &path).arg("--socket-path").arg(dir.join("s"));
    (socket, command)
}

fn next(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn ready_comes_when_the_sockets_listen_and_stopping_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, command) = notified(dir.path());
    let mut toy = Toy::start_as(command, dir, &[]);
    assert!(next(&socket).contains("READY=1"));
    UnixStream::connect(toy.socket()).unwrap();
    toy.signal(15);
    assert!(next(&socket).contains("STOPPING=1"));
    assert!(toy.wait().success());
}

#[test]
fn the_watchdog_is_fed_twice_in_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, mut command) = notified(dir.path());
    command.env("WATCHDOG_USEC", "400000");
    let _toy = Toy::start_as(command, dir, &[]);
    assert!(next(&socket).contains("READY=1"));
    let start = Instant::now();
    for _ in 0..4 {
        assert!(next(&socket).contains("WATCHDOG=1"));
    }
    let took = start.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_millis(2500), "{took:?}");
}

#[test]
fn the_watchdog_is_not_fed_when_workers_do_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, mut command) = notified(dir.path());
    command.env("WATCHDOG_USEC", "100000");
    let toy = Toy::start_as(command, dir, &["--unresponsive"]);
    assert!(next(&socket).contains("READY=1"));
    toy.wait_for("a complaint", || toy.log().contains("does not answer"));
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err());
}

#[test]
fn a_passed_socket_is_served_and_its_file_is_left_to_its_maker() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("activated");
    let listener = UnixListener::bind(&path).unwrap();
    let mut shell = Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=vhost-user exec \"$0\" \"$@\" 3<&0 0</dev/null";
    shell.arg("-c").arg(script).arg(toy::program());
    shell.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let mut toy = Toy::start_as(shell, dir, &[]);
    let _frontend = UnixStream::connect(&path).unwrap();
    let connected = || toy.call("stats", Value::Null).unwrap()["devices"][0]["connected"] == true;
    toy.wait_for("a connection", connected);
    toy.signal(15);
    assert!(toy.wait().success());
    assert!(path.exists());
}

#[test]
fn a_control_socket_can_be_passed_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passed");
    let listener = UnixListener::bind(&path).unwrap();
    let mut shell = Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=control exec \"$0\" \"$@\" 3<&0 0</dev/null";
    shell.arg("-c").arg(script).arg(toy::program()).arg("--socket-path").arg(dir.path().join("s"));
    shell.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let mut child = shell.stderr(Stdio::null()).spawn().unwrap();
    let mut client = daemon::control::client::Client::connect(&path, LONG).unwrap();
    assert_eq!(client.call("version", Value::Null).unwrap()["name"], "toy");
    client.call("shutdown", Value::Null).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(path.exists());
}
