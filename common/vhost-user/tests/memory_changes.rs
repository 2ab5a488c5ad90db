//! Guest memory that changes under running rings, and the dirty log of a migration.

mod support;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memory::{Area, GuestAddr, OwnMemory, RegionConfig, UserAddr};
use support::{Buffers, Server, config, eventually, memory};
use vhost_user::frontend::driver::Session;
use vhost_user::frontend::{Frontend, FrontendError};
use vhost_user::message::{Request, VringAddr, features, protocol};
use virtqueue::{Chain, DeviceRing};

fn is_refused<T: std::fmt::Debug>(result: Result<T, FrontendError>) -> bool {
    matches!(result, Err(FrontendError::Refused { .. }))
}

/// One page at this guest address.
fn page(guest: u64) -> (RegionConfig, OwnedFd) {
    let (_, fd) = Area::shared(4096, "page").unwrap();
    (
        RegionConfig {
            guest: GuestAddr(guest),
            len: 4096,
            user: UserAddr(guest + (1 << 40)),
            mmap_offset: 0,
        },
        fd,
    )
}

#[test]
fn a_table_that_is_sent_again_disturbs_no_ring() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let (extra, extra_fd) = page(1 << 32);
    buffers.submit(&mut session, 0, &memory, 1);
    server.take_calls();
    for _ in 0..3 {
        session.frontend.set_mem_table(&[(memory.config(), memory.fd()), (extra, extra_fd.as_fd())]).unwrap();
    }
    assert_eq!(server.take_calls(), ["memory 2"; 3]);
    buffers.finish(&mut session, 0, &memory, 1);
    buffers.round_trip(&mut session, 0, &memory, 2);
}

#[test]
fn a_region_that_stays_keeps_its_mapping() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    let mapped =
        |server: &Server| server.state().table.as_ref().unwrap().host_ranges().next().unwrap().base.addr();
    let before = mapped(&server);
    let (extra, extra_fd) = page(1 << 32);
    session.frontend.set_mem_table(&[(memory.config(), memory.fd()), (extra, extra_fd.as_fd())]).unwrap();
    assert_eq!(mapped(&server), before);
    session.frontend.rem_mem_reg(&extra, None).unwrap();
    assert_eq!(mapped(&server), before);
}

#[test]
fn a_ring_survives_the_moment_in_which_its_memory_is_gone() {
    for packed in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut session = server.running(&memory, 1, packed);
        for i in 0..20 {
            buffers.round_trip(&mut session, 0, &memory, i);
        }
        session.frontend.rem_mem_reg(&memory.config(), None).unwrap();
        assert!(server.state().queues.is_empty());
        session.frontend.add_mem_reg(&memory.config(), memory.fd()).unwrap();
        for i in 20..40 {
            buffers.round_trip(&mut session, 0, &memory, i);
        }
    }
}

#[test]
fn a_ring_follows_its_memory_to_another_guest_address() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    let moved = RegionConfig { guest: GuestAddr(64 << 20), ..memory.config() };
    server.take_calls();
    session.frontend.set_mem_table(&[(moved, memory.fd())]).unwrap();
    assert_eq!(server.take_calls(), ["stop 0", "memory 1", "start 0", "enable 0 true"]);
}

#[test]
fn a_ring_whose_memory_comes_later_starts_then() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let base = session.stop_queue(0).unwrap();
    session.frontend.rem_mem_reg(&memory.config(), None).unwrap();
    let (at, kick) = (session.rings[0].addresses, session.rings[0].kick.try_clone().unwrap());
    let call = session.rings[0].call.try_clone().unwrap();
    // Starting now is refused, since nothing is known of these addresses, but not forgotten.
    assert!(is_refused(session.start_queue(0, 16, base, &at, &kick, &call)));
    session.frontend.set_vring_enable(0, true).unwrap();
    session.frontend.add_mem_reg(&memory.config(), memory.fd()).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 3);
}

#[test]
fn all_509_slots_can_be_filled_and_not_one_more() {
    let server = Server::new();
    let mut session = server.negotiated();
    let pages: Vec<_> = (1..=510).map(|i| page(i << 20)).collect();
    for (config, fd) in &pages[..509] {
        session.frontend.add_mem_reg(config, fd.as_fd()).unwrap();
    }
    assert!(is_refused(session.frontend.add_mem_reg(&pages[509].0, pages[509].1.as_fd())));
    session.frontend.rem_mem_reg(&pages[0].0, None).unwrap();
    session.frontend.add_mem_reg(&pages[509].0, pages[509].1.as_fd()).unwrap();
    assert_eq!(server.state().table.as_ref().unwrap().regions().count(), 509);
}

#[test]
fn tables_that_make_no_sense_are_refused_and_the_old_one_stays() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let config = memory.config();
    let fd = memory.fd();
    let with = |change: &dyn Fn(&mut RegionConfig)| {
        let mut region = config;
        change(&mut region);
        region
    };
    let frontend: &mut Frontend = &mut session.frontend;
    // Overlap, no length, past the end of the file, past the end of the address space.
    assert!(is_refused(frontend.set_mem_table(&[(config, fd), (with(&|r| r.guest.0 += 4096), fd)])));
    assert!(is_refused(frontend.set_mem_table(&[(with(&|r| r.len = 0), fd)])));
    assert!(is_refused(frontend.set_mem_table(&[(with(&|r| r.len = 2 << 20), fd)])));
    assert!(is_refused(frontend.set_mem_table(&[(with(&|r| r.guest.0 = !4095), fd)])));
    assert!(is_refused(frontend.add_mem_reg(&with(&|r| r.guest.0 += 4096), fd)));
    // More regions than descriptors, than bytes, than allowed.
    let head = |count: u32| [count.to_ne_bytes(), [0; 4]].concat();
    assert!(is_refused(frontend.request(Request::SetMemTable, &[head(2), vec![0; 64]].concat(), &[fd])));
    assert!(is_refused(frontend.request(Request::SetMemTable, &[head(1), vec![0; 31]].concat(), &[fd])));
    assert!(is_refused(frontend.request(Request::SetMemTable, &head(u32::MAX), &[fd])));
    buffers.round_trip(&mut session, 0, &memory, 4);
}

#[test]
fn a_table_failure_nobody_can_be_told_of_ends_the_connection() {
    let (server, memory) = (Server::new(), memory());
    let mut frontend = server.raw();
    let mut region = memory.config();
    region.len = 0;
    frontend.set_mem_table(&[(region, memory.fd())]).unwrap();
    assert!(frontend.get_features().is_err());
}

/// A dirty log in shared memory, as a migrating VMM has it.
struct Log {
    file: File,
    size: u64,
}

impl Log {
    fn new() -> Self {
        // One bit a page up to 16 MiB.
        let size = (16 << 20) / 4096 / 8;
        let (_, fd) = Area::shared(size, "log").unwrap();
        Self { file: fd.into(), size: size as u64 }
    }

    /// Pages marked, and the log cleared.
    fn take(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        self.file.write_all_at(&vec![0; self.size as usize], 0).unwrap();
        (0..self.size * 8).filter(|page| bytes[(page / 8) as usize] & (1 << (page % 8)) != 0).collect()
    }
}

fn page_of(addr: GuestAddr) -> u64 {
    addr.0 / 4096
}

fn ring_page(session: &Session) -> u64 {
    page_of(session.rings[0].addresses.device)
}

#[test]
fn logging_starts_and_stops_under_running_rings_and_marks_exactly_what_is_written() {
    for packed in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut session = server.running(&memory, 1, packed);
        buffers.round_trip(&mut session, 0, &memory, 1);
        let log = Log::new();
        session.frontend.set_log_base(log.size, 0, log.file.as_fd()).unwrap();
        buffers.round_trip(&mut session, 0, &memory, 2);
        assert_eq!(log.take(), [], "nothing is logged before LOG_ALL");
        for _ in 0..2 {
            server.take_calls();
            session.frontend.set_features(session.features() | features::LOG_ALL).unwrap();
            assert_eq!(server.take_calls(), ["log true"], "no ring is stopped for it");
            buffers.round_trip(&mut session, 0, &memory, 3);
            let mut expected = vec![page_of(buffers.reply_addr()), ring_page(&session)];
            if packed {
                expected.push(page_of(session.rings[0].addresses.desc));
            }
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(log.take(), expected);
            session.frontend.set_features(session.features()).unwrap();
            buffers.round_trip(&mut session, 0, &memory, 4);
            assert_eq!(log.take(), []);
        }
    }
}

#[test]
fn memory_and_rings_that_come_during_a_migration_are_logged() {
    let (server, memory) = (Server::new(), memory());
    let second = OwnMemory::new(1 << 20, GuestAddr(4 << 20)).unwrap();
    let buffers = Buffers::new(&second);
    let mut session = server.running(&memory, 1, false);
    let log = Log::new();
    session.frontend.set_log_base(log.size, 0, log.file.as_fd()).unwrap();
    session.frontend.set_features(session.features() | features::LOG_ALL).unwrap();
    session.share_memory(&second.config(), second.fd()).unwrap();
    buffers.submit(&mut session, 0, &second, 5);
    buffers.finish(&mut session, 0, &second, 5);
    assert!(log.take().contains(&page_of(buffers.reply_addr())));
    let base = session.stop_queue(0).unwrap();
    let (at, kick) = (session.rings[0].addresses, session.rings[0].kick.try_clone().unwrap());
    let call = session.rings[0].call.try_clone().unwrap();
    session.start_queue(0, 16, base, &at, &kick, &call).unwrap();
    buffers.round_trip(&mut session, 0, &second, 6);
    assert!(log.take().contains(&page_of(buffers.reply_addr())));
}

#[test]
fn the_used_ring_is_logged_where_the_front_end_wants_it() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let log = Log::new();
    session.frontend.set_log_base(log.size, 0, log.file.as_fd()).unwrap();
    session.frontend.set_features(session.features() | features::LOG_ALL).unwrap();
    let at = session.rings[0].addresses;
    let user = |addr| memory.user_of(addr).0.into();
    let elsewhere = 8 << 20;
    let mut addr = VringAddr {
        index: 0.into(),
        flags: VringAddr::LOG.into(),
        descriptor: user(at.desc),
        used: user(at.device),
        available: user(at.driver),
        log: at.device.0.into(),
    };
    server.take_calls();
    // QEMU's case: the log address is the used ring's own, so nothing needs to stop.
    session.frontend.set_vring_addr(&addr).unwrap();
    assert_eq!(server.take_calls(), [""; 0]);
    addr.log = elsewhere.into();
    session.frontend.set_vring_addr(&addr).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 7);
    let marked = log.take();
    assert!(marked.contains(&(elsewhere / 4096)) && !marked.contains(&ring_page(&session)), "{marked:?}");
    // It is remembered when logging is switched off and on again.
    session.frontend.set_features(session.features()).unwrap();
    session.frontend.set_features(session.features() | features::LOG_ALL).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 8);
    assert!(log.take().contains(&(elsewhere / 4096)));
}

#[test]
fn a_log_can_be_replaced_by_a_larger_one_while_it_is_written() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let (first, second) = (Log::new(), Log::new());
    session.frontend.set_features(session.features() | features::LOG_ALL).unwrap();
    session.frontend.set_log_base(first.size, 0, first.file.as_fd()).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 9);
    assert!(!first.take().is_empty());
    session.frontend.set_log_base(second.size, 0, second.file.as_fd()).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 10);
    assert!(first.take().is_empty() && !second.take().is_empty());
}

#[test]
fn a_log_without_its_protocol_feature_or_its_file_ends_the_connection() {
    let server = Server::new();
    let log = Log::new();
    let mut frontend = server.raw();
    assert!(frontend.set_log_base(log.size, 0, log.file.as_fd()).is_err());
    let mut frontend = server.raw();
    frontend.set_protocol_features(protocol::LOG_SHMFD).unwrap();
    assert!(frontend.set_log_base(1 << 40, 0, log.file.as_fd()).is_err());
}

#[test]
fn an_inflight_region_has_the_size_of_its_layout_and_cannot_shrink() {
    let server = Server::new();
    for (packed, per_queue) in [(false, 16 + 16 * 128), (true, 32 + 32 * 128)] {
        let mut session = server.negotiated();
        if packed {
            session.frontend.set_features(support::FEATURES | features::PROTOCOL_FEATURES).unwrap();
        }
        let inflight = session.frontend.get_inflight_fd(4, 128).unwrap();
        let per_queue: u64 = u64::next_multiple_of(per_queue, 64);
        assert_eq!((inflight.size, inflight.offset), (4 * per_queue, 0));
        let file = File::from(inflight.fd.try_clone().unwrap());
        assert_eq!(file.metadata().unwrap().len() % 64, 0);
        assert!(file.set_len(1).is_err(), "the memfd is sealed");
        session.frontend.set_inflight_fd(&inflight).unwrap();
    }
}

#[test]
fn inflight_requests_that_make_no_sense_are_refused() {
    let server = Server::new();
    let mut session = server.negotiated();
    let good = session.frontend.get_inflight_fd(2, 16).unwrap();
    let with = |size, queues, queue_size| vhost_user::frontend::InflightFd {
        fd: good.fd.try_clone().unwrap(),
        size,
        offset: 0,
        queues,
        queue_size,
    };
    for bad in [
        with(good.size - 1, 2, 16),
        with(good.size, 0, 16),
        with(good.size, 5, 16),
        with(good.size, 2, 0),
        with(good.size, 2, 2048),
        with(1 << 40, 2, 1024),
    ] {
        assert!(is_refused(session.frontend.set_inflight_fd(&bad)), "{bad:?}");
    }
    session.frontend.set_inflight_fd(&good).unwrap();
}

#[test]
fn requests_in_flight_at_a_crash_are_executed_by_the_successor() {
    for packed in [false, true] {
        let memory = memory();
        let buffers = Buffers::new(&memory);
        let first = Server::new();
        let mut setup = config(&memory, 1, packed);
        setup.inflight = true;
        let mut session = Session::start(first.stream(), &setup).unwrap();
        for i in 0..30 {
            buffers.round_trip(&mut session, 0, &memory, i);
        }
        // The predecessor takes the request and dies with it.
        first.state().stalled = true;
        take_without_serving(&first);
        buffers.submit(&mut session, 0, &memory, 77);
        eventually("the request is taken", || {
            take_without_serving(&first);
            first.state().queues[&0].0.ring.in_flight() == 1
        });
        let second = Server::new();
        session.reconnect(second.stream()).unwrap();
        buffers.finish(&mut session, 0, &memory, 77);
        for i in 31..60 {
            buffers.round_trip(&mut session, 0, &memory, i);
        }
        assert_eq!(second.state().served, 30);
    }
}

/// Fetches what is there as a device that then hangs.
fn take_without_serving(server: &Server) {
    let mut state = server.state();
    let view = memory::MemoryView::new(state.table.clone().unwrap());
    let (queue, _) = state.queues.get_mut(&0).unwrap();
    for _ in 0..queue.ring.fetch(16) {
        queue.ring.next(&view, &mut Chain::new()).unwrap();
    }
}

#[test]
fn a_session_reconnects_with_or_without_memory_slots_and_after_a_failed_attempt() {
    for slots in [0, protocol::CONFIGURE_MEM_SLOTS] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut session = server.running(&memory, 1, false);
        let again = support::ALL_PROTOCOL & !protocol::CONFIGURE_MEM_SLOTS | slots;
        session.frontend.set_protocol_features(again & session.protocol_features()).unwrap();
        buffers.round_trip(&mut session, 0, &memory, 1);
        // A back-end that dies in the handshake.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(theirs);
        assert!(session.reconnect(ours).is_err());
        let successor = Server::new();
        session.reconnect(successor.stream()).unwrap();
        buffers.round_trip(&mut session, 0, &memory, 2);
        assert_eq!((server.state().served, successor.state().served), (1, 1));
    }
}

#[test]
fn regions_that_each_queue_pair_adds_and_removes_are_there_once() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    server.take_calls();
    session.frontend.add_mem_reg(&memory.config(), memory.fd()).unwrap();
    assert!(server.take_calls().is_empty(), "nothing has changed");
    buffers.round_trip(&mut session, 0, &memory, 21);
    session.frontend.rem_mem_reg(&memory.config(), None).unwrap();
    session.frontend.rem_mem_reg(&memory.config(), None).unwrap();
    session.frontend.add_mem_reg(&memory.config(), memory.fd()).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 22);
}
