//! Descriptors are counted for the whole process, so this test is alone in its binary.

mod support;

use std::os::fd::AsFd;

use support::{Buffers, Server, config, eventually};
use vhost_user::frontend::driver::Session;
use vhost_user::message::features;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A connection that brings every kind of descriptor there is, some of them twice.
fn visit(server: &Server, memory: &memory::OwnMemory, buffers: &Buffers, round: usize) {
    let mut setup = config(memory, 2, round % 2 == 1);
    setup.inflight = true;
    let mut session = Session::start(server.stream(), &setup).unwrap();
    let _back = session.frontend.open_back_channel().unwrap();
    let _replaced = session.frontend.open_back_channel().unwrap();
    let (_, log) = memory::Area::shared(4096, "log").unwrap();
    session.frontend.set_log_base(4096, 0, log.as_fd()).unwrap();
    session.frontend.set_features(session.features() | features::LOG_ALL).unwrap();
    for ring in 0..2 {
        let event = session.rings[ring].call.try_clone().unwrap();
        session.frontend.set_vring_err(ring as u16, Some(support::fd(&event))).unwrap();
        session.frontend.set_vring_call(ring as u16, Some(support::fd(&event))).unwrap();
        buffers.round_trip(&mut session, ring, memory, round as u8);
    }
    session.frontend.set_mem_table(&[(memory.config(), memory.fd())]).unwrap();
    session.frontend.rem_mem_reg(&memory.config(), Some(memory.fd())).unwrap();
    if round.is_multiple_of(3) {
        // Leave in the middle of a message.
        session.frontend.send_bytes(&[5, 0, 0, 0, 1, 0], &[log.as_fd(); 4]).unwrap();
    }
}

#[test]
fn two_hundred_connections_leak_no_descriptor() {
    let server = Server::new();
    let memory = memory::OwnMemory::new(16 << 20, memory::GuestAddr(1 << 20)).unwrap();
    let buffers = Buffers::new(&memory);
    let idle = |server: &Server| eventually("the connection is gone", || !server.notifier.status().connected);
    visit(&server, &memory, &buffers, 0);
    idle(&server);
    let before = open_descriptors();
    for round in 1..=200 {
        visit(&server, &memory, &buffers, round);
        // The next front-end must find nothing of this one, and the count nothing of the last.
        idle(&server);
        assert_eq!(open_descriptors(), before, "after {round} connections");
    }
    assert_eq!(server.notifier.status().connections, 201);
}
