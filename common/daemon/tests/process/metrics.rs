//! Metrics of a running daemon, scraped as Prometheus does.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::toy::{LONG, Toy};

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n";

fn scrape(mut stream: impl Read + Write) -> String {
    stream.write_all(SCRAPE).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A port that was free a moment ago.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn assert_metrics(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for line in [
        "# TYPE vhostd_requests_total counter",
        "vhostd_build_info{program=\"toy\",version=\"0.1.0\",kind=\"block\"} 1",
        "vhostd_device_connected{device=\"disk0\"} 0",
    ] {
        assert!(answer.lines().any(|have| have == line), "no {line} in\n{answer}");
    }
    let length = answer.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.len(), length.trim().parse::<usize>().unwrap());
}

#[test]
fn metrics_are_served_over_tcp() {
    let address = free_port();
    let toy = Toy::start(&["--metrics", &address]);
    let stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    assert_metrics(&scrape(stream));
    drop(toy);
}

#[test]
fn metrics_are_served_over_a_unix_socket_that_only_the_owner_may_use() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut toy = Toy::start(&["--metrics", &format!("unix:{}", path.display())]);
    assert_metrics(&scrape(UnixStream::connect(&path).unwrap()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    toy.signal(15);
    assert!(toy.wait().success());
    assert!(!path.exists());
}

#[test]
fn clients_that_send_nothing_do_not_keep_others_out_for_long() {
    let address = free_port();
    let _toy = Toy::start(&["--metrics", &address]);
    let _idle: Vec<_> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let answered = || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(SCRAPE).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.starts_with("HTTP/1.1 200").then_some(())
    };
    // The idle ones are cut off after five seconds.
    _toy.wait_for("a scrape", || answered().is_some());
}
