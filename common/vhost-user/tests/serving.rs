//! Connections: one after another, listening and connecting, handed over, clumsy and hostile ones.

mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use support::{Buffers, Mirror, Server, config, eventually, memory, patient};
use vhost_user::frontend::driver::Session;
use vhost_user::message::{MAX_BODY, Request, VERSION};
use vhost_user::{Endpoint, Options};

/// Options with which a stalled message is given up soon.
fn impatient() -> Options {
    Options { patience: Duration::from_millis(100), ..Options::default() }
}

#[test]
fn front_ends_are_served_one_after_another_on_the_same_device() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    for i in 0..10 {
        let mut session = server.running(&memory, 2, i % 2 == 1);
        buffers.round_trip(&mut session, 1, &memory, i);
    }
    assert_eq!(server.state().served, 10);
    assert_eq!(server.notifier.status().connections, 10);
}

#[test]
fn a_second_front_end_waits_until_the_first_is_gone() {
    let server = Server::new();
    let mut first = server.negotiated();
    let mut second = server.raw();
    second.set_reply_timeout(Duration::from_millis(50));
    second.send_raw(Request::GetQueueNum.into(), VERSION, &[], &[]).unwrap();
    assert!(second.receive_raw().is_err());
    first.get_config(0, &mut [0; 8]).unwrap();
    drop(first);
    second.set_reply_timeout(Duration::from_secs(5));
    assert_eq!(second.receive_raw().unwrap().body, 4u64.to_ne_bytes());
}

#[test]
fn nothing_of_a_connection_is_left_for_the_next() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    session.frontend.set_status(15).unwrap();
    drop(session);
    let mut frontend = server.raw();
    assert_eq!(frontend.get_status().unwrap(), 0);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 0);
    // No acknowledgements are negotiated, no size is known.
    frontend.set_vring_kick(0, None).unwrap();
    frontend.get_status().unwrap();
    assert!(server.state().queues.is_empty());
}

#[test]
fn shutdown_ends_an_idle_server_and_one_with_a_connection_and_removes_the_socket() {
    let mut idle = Server::new();
    idle.shutdown().unwrap();
    assert!(!idle.path.exists());

    let (mut busy, memory) = (Server::new(), memory());
    let mut session = busy.running(&memory, 1, false);
    let begin = Instant::now();
    busy.shutdown().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(session.frontend.get_features().is_err());
    assert!(busy.state().queues.is_empty());
}

#[test]
fn shutdown_does_not_wait_for_half_a_message() {
    let mut server = Server::new();
    let mut stream = server.stream();
    stream.write_all(&[1, 0, 0]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let begin = Instant::now();
    server.shutdown().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_silent_connection_is_kept_but_half_a_message_is_not() {
    let server = Server::with(Mirror::new(), impatient());
    let mut silent = server.raw();
    std::thread::sleep(Duration::from_millis(300));
    silent.get_features().unwrap();
    for bytes in [&[1u8, 0, 0][..], &[1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0xff][..]] {
        silent.send_bytes(bytes, &[]).unwrap();
        assert!(silent.receive_raw().is_err(), "the connection is given up");
        silent = server.raw();
        silent.get_features().unwrap();
    }
}

#[test]
fn a_message_in_single_bytes_is_a_message() {
    let server = Server::new();
    let mut frontend = server.raw();
    for byte in [1u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0] {
        frontend.send_bytes(&[byte], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(frontend.receive_raw().unwrap().body.len(), 8);
}

#[test]
fn many_messages_in_one_piece_are_answered_in_order() {
    let server = Server::new();
    let mut frontend = server.raw();
    let requests = [Request::GetFeatures, Request::GetQueueNum, Request::GetStatus, Request::GetMaxMemSlots];
    let bytes: Vec<u8> = requests
        .iter()
        .flat_map(|&request| [u32::from(request), VERSION, 0].map(u32::to_ne_bytes))
        .flatten()
        .collect();
    frontend.send_bytes(&bytes, &[]).unwrap();
    for request in requests {
        assert_eq!(frontend.receive_raw().unwrap().header.request.get(), u32::from(request));
    }
}

#[test]
fn a_broken_byte_stream_ends_only_its_connection() {
    let server = Server::with(Mirror::new(), impatient());
    let header = |code: u32, flags: u32, size: u32| [code, flags, size].map(u32::to_ne_bytes).concat();
    for bytes in [
        header(1, 0, 0),                                       // version 0
        header(1, 2, 0),                                       // version 2
        header(1, VERSION, MAX_BODY as u32 + 1),               // too large
        header(1, VERSION, u32::MAX),                          // much too large
        vec![0xff; 4096],                                      // noise
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), // another protocol
    ] {
        let mut stream = server.stream();
        stream.write_all(&bytes).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let end = stream.read(&mut [0; 64]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    server.raw().get_features().unwrap();
}

#[test]
fn a_flood_of_requests_without_reading_the_replies_ends_the_connection() {
    let server = Server::with(Mirror::new(), impatient());
    let mut stream = server.stream();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let request: Vec<u8> = [44u32, VERSION, 0].map(u32::to_ne_bytes).concat();
    let begin = Instant::now();
    while stream.write_all(&request).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(10), "the server must give up");
    }
    server.raw().get_features().unwrap();
}

#[test]
fn more_descriptors_than_allowed_are_refused_with_the_message() {
    let server = Server::new();
    let mut session = server.negotiated();
    // 32 with the header and more with each byte of the payload.
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = [std::os::fd::AsFd::as_fd(&null); 32];
    let header: Vec<u8> = [3u32, VERSION | 8, 4].map(u32::to_ne_bytes).concat();
    session.frontend.send_bytes(&header, &fds).unwrap();
    for _ in 0..4 {
        session.frontend.send_bytes(&[0], &fds).unwrap();
    }
    assert_eq!(session.frontend.receive_raw().unwrap().body, 1u64.to_ne_bytes());
    session.frontend.get_features().unwrap();
}

#[test]
fn a_connection_that_is_handed_over_is_served_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let transport = Endpoint::Fd(OwnedFd::from(theirs)).open(0).unwrap();
    let path = dir.path().join("none");
    let mut server = Server::on(transport, Mirror::new(), Options::default(), path, dir);
    let memory = memory();
    let buffers = Buffers::new(&memory);
    let mut session = Session::start(ours, &config(&memory, 1, false)).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 1);
    drop(session);
    server.wait().unwrap();
}

#[test]
fn a_listener_that_is_handed_over_serves_many_and_keeps_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let transport = Endpoint::Listener(OwnedFd::from(listener)).open(0).unwrap();
    let mut server = Server::on(transport, Mirror::new(), Options::default(), path.clone(), dir);
    for _ in 0..3 {
        server.raw().get_features().unwrap();
    }
    server.shutdown().unwrap();
    assert!(path.exists(), "whoever made the file removes it");
}

#[test]
fn a_connecting_server_comes_whenever_the_front_end_listens() {
    let retry =
        Options { retry_min: Duration::from_millis(2), retry_max: Duration::from_millis(20), ..impatient() };
    let server = Server::connecting(Mirror::new(), retry);
    std::thread::sleep(Duration::from_millis(30));
    let memory = memory();
    let buffers = Buffers::new(&memory);
    let listener = UnixListener::bind(&server.path).unwrap();
    // A front-end that dies in the handshake, one that works, and one after it.
    drop(listener.accept().unwrap());
    for i in 0..2 {
        let mut session = Session::start(listener.accept().unwrap().0, &config(&memory, 1, false)).unwrap();
        buffers.round_trip(&mut session, 0, &memory, i);
    }
    drop(listener);
    std::fs::remove_file(&server.path).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let listener = UnixListener::bind(&server.path).unwrap();
    let mut frontend = patient(listener.accept().unwrap().0);
    frontend.get_features().unwrap();
}

#[test]
fn a_connecting_server_stops_while_nobody_listens() {
    let mut server = Server::connecting(Mirror::new(), Options::default());
    std::thread::sleep(Duration::from_millis(20));
    let begin = Instant::now();
    server.shutdown().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn attempts_to_connect_become_rarer() {
    let retry = Options {
        retry_min: Duration::from_millis(10),
        retry_max: Duration::from_millis(200),
        ..Options::default()
    };
    let server = Server::connecting(Mirror::new(), retry);
    let listener = UnixListener::bind(&server.path).unwrap();
    listener.set_nonblocking(true).unwrap();
    // Every connection is dropped at once, so no handshake ever succeeds.
    let (mut attempts, end) = (0, Instant::now() + Duration::from_millis(1000));
    while Instant::now() < end {
        match listener.accept() {
            Ok(_) => attempts += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!((3..=15).contains(&attempts), "{attempts} attempts in a second");
}

#[test]
fn a_crashed_front_end_leaves_the_rings_drained() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    buffers.submit(&mut session, 0, &memory, 9);
    drop(session);
    eventually("the rings are gone", || server.state().queues.is_empty());
    server.raw().get_features().unwrap();
}

#[test]
fn a_front_end_that_connects_to_a_busy_socket_waits_and_is_counted() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut first = server.running(&memory, 1, false);
    assert_eq!(server.notifier.status().waits, 0);
    let mut second = server.raw();
    eventually("the second one is noticed", || server.notifier.status().waits == 1);
    let third = server.raw();
    buffers.round_trip(&mut first, 0, &memory, 1);
    assert_eq!(server.notifier.status().waits, 1, "once a connection");
    drop(first);
    second.get_features().unwrap();
    eventually("the third one is noticed", || server.notifier.status().waits == 2);
    drop((second, third));
    eventually("all are served", || server.notifier.status().connections == 3);
    assert_eq!(server.notifier.status().connections_unlogged, 0);
}

#[test]
fn a_front_end_that_comes_back_at_once_has_waited_for_nobody() {
    let server = Server::new();
    for _ in 0..200 {
        server.raw().get_features().unwrap();
    }
    let status = server.notifier.status();
    assert_eq!((status.connections, status.waits), (200, 0));
    assert!(status.connections_unlogged >= 180, "{}", status.connections_unlogged);
}
