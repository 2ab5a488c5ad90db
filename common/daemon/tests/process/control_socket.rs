//! The control socket of a running daemon, with clients of every kind.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use daemon::control::{MAX_CLIENTS, MAX_MESSAGE, code};
use serde_json::{Value, json};

use crate::toy::{LONG, Toy};

const VERSION: &[u8] = b"{\"jsonrpc\":\"2.0\",\"method\":\"version\",\"id\":1}\n";

fn connect(toy: &Toy) -> UnixStream {
    let stream = UnixStream::connect(toy.control()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// The next answer, or none when the daemon has closed the connection.
fn answer(stream: &UnixStream) -> Option<Value> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok().filter(|n| *n > 0)?;
    Some(serde_json::from_str(&line).unwrap())
}

#[test]
fn only_the_owner_may_connect() {
    let toy = Toy::start(&[]);
    let mode = std::fs::metadata(toy.control()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn every_listed_method_exists_and_others_do_not() {
    let toy = Toy::start(&[]);
    let methods = toy.call("methods", Value::Null).unwrap();
    let names: Vec<_> =
        methods.as_array().unwrap().iter().map(|method| method["name"].as_str().unwrap()).collect();
    for name in ["version", "methods", "status", "stats", "log_level", "drain", "shutdown", "disk.add"] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(toy.call("disk.format", Value::Null).unwrap_err().contains("no method 'disk.format'"));
}

#[test]
fn parameters_that_do_not_exist_are_refused_by_name() {
    let toy = Toy::start(&[]);
    for method in ["version", "status", "stats", "shutdown", "log_level", "drain"] {
        let refusal = toy.call(method, json!({"colour": 1})).unwrap_err();
        assert!(refusal.contains("colour"), "{method}: {refusal}");
    }
    assert!(toy.call("log_level", json!({"level": "loud"})).unwrap_err().contains("`trace`"));
}

#[test]
fn the_log_level_changes_while_the_daemon_runs() {
    let toy = Toy::start(&["--log-level", "error"]);
    assert_eq!(toy.call("log_level", Value::Null), Ok(json!({"level": "error"})));
    assert_eq!(toy.call("log_level", json!({"level": "info"})), Ok(json!({"level": "info"})));
    toy.signal(10);
    toy.wait_for("a line of level info", || toy.log().contains("counters"));
}

#[test]
fn malformed_and_huge_messages_harm_only_their_sender() {
    let toy = Toy::start(&[]);
    let mut good = connect(&toy);
    let mut bad = connect(&toy);
    bad.write_all(b"\x00\xff{{{\n[]\n").unwrap();
    assert_eq!(answer(&bad).unwrap()["error"]["code"], code::PARSE);
    let mut huge = connect(&toy);
    let _ = huge.write_all(&vec![b'x'; MAX_MESSAGE + 4096]);
    assert_eq!(answer(&huge).unwrap()["error"]["code"], code::INVALID_REQUEST);
    assert_eq!(answer(&huge), None);
    good.write_all(VERSION).unwrap();
    assert_eq!(answer(&good).unwrap()["result"]["name"], "toy");
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let toy = Toy::start(&[]);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = daemon::control::client::Client::connect(&toy.control(), LONG).unwrap();
                for _ in 0..100 {
                    assert_eq!(client.call("version", Value::Null).unwrap()["name"], "toy");
                }
            });
        }
    });
}

#[test]
fn one_client_too_many_is_told_so_and_a_place_that_is_left_can_be_taken() {
    let toy = Toy::start(&[]);
    let mut clients = Vec::new();
    // The client that saw the daemon start may hold its place for a moment longer.
    toy.wait_for("all places", || {
        let mut client = connect(&toy);
        let served = client.write_all(VERSION).is_ok()
            && answer(&client).is_some_and(|answer| answer.get("result").is_some());
        if served {
            clients.push(client);
        }
        clients.len() == MAX_CLIENTS
    });
    let refused = connect(&toy);
    assert_eq!(answer(&refused).unwrap()["error"]["code"], code::BUSY);
    assert_eq!(answer(&refused), None);
    clients.clear();
    toy.wait_for("a free place", || toy.call("version", Value::Null).is_ok());
}

#[test]
fn a_method_that_blocks_delays_only_its_own_client() {
    let toy = Toy::start(&[]);
    let mut slow = connect(&toy);
    slow.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"toy.sleep\",\"params\":{\"ms\":3000},\"id\":1}\n")
        .unwrap();
    let start = Instant::now();
    toy.call("stats", Value::Null).unwrap();
    assert!(start.elapsed() < Duration::from_millis(2000), "{:?}", start.elapsed());
}

#[test]
fn a_client_that_leaves_in_the_middle_is_forgotten() {
    let toy = Toy::start(&[]);
    for _ in 0..2 * MAX_CLIENTS {
        let mut client = connect(&toy);
        client.write_all(&VERSION[..10]).unwrap();
    }
    toy.wait_for("an answer", || toy.call("version", Value::Null).is_ok());
}

#[test]
fn statistics_are_stamped_and_rise() {
    let toy = Toy::start(&[]);
    let read = |stats: &Value| stats["devices"][0]["operations"]["read"]["requests"].as_u64().unwrap();
    let first = toy.call("stats", Value::Null).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let second = toy.call("stats", Value::Null).unwrap();
    assert!(second["time_ns"].as_u64() > first["time_ns"].as_u64());
    assert!(first["cpu_ns"].as_u64().unwrap() > 0);
    assert!(read(&second) > read(&first));
}
