//! The state machine of the rings, with real requests on them.

mod support;

use std::time::Duration;

use memory::{GuestAddr, OwnMemory};
use support::{Buffers, Mirror, Server, config, drain, eventually, fd, memory};
use vhost_user::frontend::FrontendError;
use vhost_user::frontend::driver::Session;
use vhost_user::message::{Request, VringAddr, features};
use virtqueue::RingAddresses;
use virtqueue::driver::DriverRing;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn is_refused<T: std::fmt::Debug>(result: Result<T, FrontendError>) -> bool {
    matches!(result, Err(FrontendError::Refused { .. }))
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// The `SET_VRING_ADDR` of a ring in this memory.
fn vring_addr(memory: &OwnMemory, index: u32, at: &RingAddresses, flags: u32, log: u64) -> VringAddr {
    let user = |addr: GuestAddr| memory.user_of(addr).0.into();
    VringAddr {
        index: index.into(),
        flags: flags.into(),
        descriptor: user(at.desc),
        used: user(at.device),
        available: user(at.driver),
        log: log.into(),
    }
}

/// Starts ring 0 of the session again where it is.
fn restart(session: &mut Session, base: u32) {
    let ring = &session.rings[0];
    let (at, kick, call) = (ring.addresses, ring.kick.try_clone().unwrap(), ring.call.try_clone().unwrap());
    session.start_queue(0, 16, base, &at, &kick, &call).unwrap();
}

#[test]
fn requests_are_served_on_split_and_packed_rings_across_many_wraps() {
    for packed in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut session = server.running(&memory, 2, packed);
        for i in 0..100 {
            buffers.round_trip(&mut session, i % 2, &memory, i as u8);
        }
        assert_eq!(server.state().served, 100);
    }
}

#[test]
fn a_ring_stops_where_it_was_and_goes_on_from_there() {
    for packed in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut session = server.running(&memory, 1, packed);
        for round in 0..5u8 {
            for i in 0..7 {
                buffers.round_trip(&mut session, 0, &memory, round * 10 + i);
            }
            let base = session.stop_queue(0).unwrap();
            if !packed {
                assert_eq!(base, 7 * (u32::from(round) + 1));
            }
            assert!(server.state().queues.is_empty());
            restart(&mut session, base);
        }
    }
}

#[test]
fn a_stopped_ring_is_not_served_until_it_is_kicked_anew() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    buffers.round_trip(&mut session, 0, &memory, 1);
    let base = session.stop_queue(0).unwrap();
    buffers.submit(&mut session, 0, &memory, 2);
    session.frontend.set_vring_enable(0, true).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(session.rings[0].ring.pop().is_none());
    // Stopping again is no error and changes nothing.
    assert_eq!(session.stop_queue(0).unwrap(), base);
    restart(&mut session, base);
    buffers.finish(&mut session, 0, &memory, 2);
}

#[test]
fn a_base_that_is_not_set_again_is_the_one_the_ring_stopped_at() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    buffers.round_trip(&mut session, 0, &memory, 1);
    session.stop_queue(0).unwrap();
    let kick = session.rings[0].kick.try_clone().unwrap();
    session.frontend.set_vring_kick(0, Some(fd(&kick))).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 2);
}

#[test]
fn a_kick_before_enable_is_not_lost() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    session.frontend.set_vring_enable(0, false).unwrap();
    buffers.submit(&mut session, 0, &memory, 3);
    std::thread::sleep(Duration::from_millis(20));
    assert!(session.rings[0].ring.pop().is_none(), "a disabled ring has no side effects");
    session.frontend.set_vring_enable(0, true).unwrap();
    buffers.finish(&mut session, 0, &memory, 3);
}

#[test]
fn enabling_survives_a_stop_and_precedes_a_start() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let base = session.stop_queue(0).unwrap();
    let (at, kick) = (session.rings[0].addresses, session.rings[0].kick.try_clone().unwrap());
    session.frontend.set_vring_base(0, base).unwrap();
    session.frontend.set_vring_addr(&vring_addr(&memory, 0, &at, 0, 0)).unwrap();
    server.take_calls();
    session.frontend.set_vring_kick(0, Some(fd(&kick))).unwrap();
    assert_eq!(server.take_calls(), ["start 0", "enable 0 true"]);
    buffers.round_trip(&mut session, 0, &memory, 4);
}

#[test]
fn rings_start_enabled_without_protocol_features() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let base = session.stop_queue(0).unwrap();
    session.frontend.set_vring_enable(0, false).unwrap();
    session.frontend.set_features(session.features() & !features::PROTOCOL_FEATURES).unwrap();
    let kick = session.rings[0].kick.try_clone().unwrap();
    session.frontend.set_vring_base(0, base).unwrap();
    session.frontend.set_vring_kick(0, Some(fd(&kick))).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 5);
}

#[test]
fn a_device_may_have_its_rings_start_enabled() {
    let mut mirror = Mirror::new();
    mirror.start_enabled = true;
    let (server, memory) = (Server::with(mirror, Default::default()), memory());
    let mut session = server.negotiated();
    session.share_memory(&memory.config(), memory.fd()).unwrap();
    let at = RingAddresses {
        desc: memory.alloc(4096, 4096).unwrap(),
        driver: memory.alloc(4096, 4096).unwrap(),
        device: memory.alloc(4096, 4096).unwrap(),
    };
    session.frontend.set_vring_num(0, 16).unwrap();
    session.frontend.set_vring_addr(&vring_addr(&memory, 0, &at, 0, 0)).unwrap();
    server.take_calls();
    session.frontend.set_vring_kick(0, None).unwrap();
    assert_eq!(server.take_calls(), ["start 0", "enable 0 true"]);
}

#[test]
fn rings_that_would_start_enabled_obey_a_frontend_that_disables_them() {
    let mut mirror = Mirror::new();
    mirror.start_enabled = true;
    let (server, memory) = (Server::with(mirror, Default::default()), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let base = session.stop_queue(0).unwrap();
    session.frontend.set_vring_enable(0, false).unwrap();
    let kick = session.rings[0].kick.try_clone().unwrap();
    session.frontend.set_vring_base(0, base).unwrap();
    server.take_calls();
    session.frontend.set_vring_kick(0, Some(fd(&kick))).unwrap();
    assert_eq!(server.take_calls(), ["start 0"]);
    session.frontend.set_vring_enable(0, true).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 6);
}

#[test]
fn a_ring_without_kick_and_call_is_served_by_polling() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let base = session.stop_queue(0).unwrap();
    let at = session.rings[0].addresses;
    session.start_queue_with(0, 16, base, &at, None, None).unwrap();
    assert!(server.state().queues[&0].0.kick_fd().is_none());
    drain(&session.rings[0].call);
    buffers.round_trip(&mut session, 0, &memory, 7);
    assert_eq!(drain(&session.rings[0].call), 0);
}

#[test]
fn the_in_band_kick_starts_a_ring_and_wakes_a_running_one() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    session.stop_queue(0).unwrap();
    session.frontend.vring_kick(0).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 8);
    server.take_calls();
    session.frontend.vring_kick(0).unwrap();
    assert_eq!(server.take_calls(), ["enable 0 true"]);
    session.frontend.set_vring_enable(0, false).unwrap();
    server.take_calls();
    session.frontend.vring_kick(0).unwrap();
    assert_eq!(server.take_calls(), ["enable 0 false"]);
}

#[test]
fn a_new_call_event_gets_one_spurious_interrupt_and_all_that_follow() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    drain(&session.rings[0].call);
    let (first, second) = (event(), event());
    // QEMU sets the event twice: masked, then unmasked.
    session.frontend.set_vring_call(0, Some(fd(&first))).unwrap();
    session.frontend.set_vring_call(0, Some(fd(&second))).unwrap();
    assert_eq!((drain(&first), drain(&second)), (1, 1));
    assert!(!session.rings[0].ring.arm());
    buffers.round_trip(&mut session, 0, &memory, 9);
    eventually("the interrupt arrives", || drain(&second) == 1);
    assert_eq!(drain(&first), 0);
}

#[test]
fn a_started_ring_gets_one_spurious_interrupt() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    drain(&session.rings[0].call);
    let base = session.stop_queue(0).unwrap();
    assert_eq!(drain(&session.rings[0].call), 0);
    restart(&mut session, base);
    assert_eq!(drain(&session.rings[0].call), 1);
}

#[test]
fn a_call_event_survives_a_stop_that_is_not_followed_by_a_new_one() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let base = session.stop_queue(0).unwrap();
    let kick = session.rings[0].kick.try_clone().unwrap();
    session.frontend.set_vring_base(0, base).unwrap();
    session.frontend.set_vring_kick(0, Some(fd(&kick))).unwrap();
    drain(&session.rings[0].call);
    assert!(!session.rings[0].ring.arm());
    buffers.round_trip(&mut session, 0, &memory, 10);
    eventually("the interrupt arrives", || drain(&session.rings[0].call) == 1);
}

#[test]
fn a_new_kick_event_on_a_running_ring_is_used_without_losing_requests() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    buffers.submit(&mut session, 0, &memory, 11);
    let kick = event();
    session.frontend.set_vring_kick(0, Some(fd(&kick))).unwrap();
    buffers.finish(&mut session, 0, &memory, 11);
    buffers.round_trip(&mut session, 0, &memory, 12);
}

#[test]
fn a_ring_that_moves_while_it_runs_goes_on_at_its_new_place() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    for i in 0..3 {
        buffers.round_trip(&mut session, 0, &memory, i);
    }
    let at = session.rings[0].addresses;
    // Copies of the areas elsewhere; the driver's ring object stays behind, so only the device's view is checked.
    let moved = RingAddresses {
        desc: memory.alloc(4096, 4096).unwrap(),
        driver: memory.alloc(4096, 4096).unwrap(),
        device: memory.alloc(4096, 4096).unwrap(),
    };
    for (from, to) in [(at.desc, moved.desc), (at.driver, moved.driver), (at.device, moved.device)] {
        memory.slice(from, 256).unwrap().copy_to(memory.slice(to, 256).unwrap());
    }
    server.take_calls();
    session.frontend.set_vring_addr(&vring_addr(&memory, 0, &moved, 0, 0)).unwrap();
    assert_eq!(server.take_calls(), ["stop 0", "start 0", "enable 0 true"]);
    assert_eq!(session.stop_queue(0).unwrap(), 3);
}

#[test]
fn a_ring_size_must_fit_format_and_limit() {
    let (server, memory) = (Server::new(), memory());
    let mut split = server.running(&memory, 1, false);
    for size in [0, 3, 1000, 2048, 65536, u32::MAX] {
        assert!(is_refused(split.frontend.set_vring_num(1, size)), "{size}");
    }
    split.frontend.set_vring_num(1, 1024).unwrap();
    drop(split);
    let mut packed = server.running(&memory, 1, true);
    packed.frontend.set_vring_num(1, 1000).unwrap();
    assert!(is_refused(packed.frontend.set_vring_num(1, 1025)));
}

#[test]
fn a_running_ring_cannot_change_its_size_or_base() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    assert!(is_refused(session.frontend.set_vring_num(0, 32)));
    session.frontend.set_vring_num(0, 16).unwrap();
    assert!(is_refused(session.frontend.set_vring_base(0, 5)));
    buffers.round_trip(&mut session, 0, &memory, 13);
}

#[test]
fn features_cannot_change_under_a_running_ring() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    assert!(is_refused(session.frontend.set_features(features::VERSION_1 | features::PROTOCOL_FEATURES)));
    session.frontend.set_features(session.features()).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 14);
}

#[test]
fn a_split_base_has_sixteen_bits_and_a_packed_one_thirty_two() {
    let (server, memory) = (Server::new(), memory());
    let mut split = server.running(&memory, 1, false);
    assert!(is_refused(split.frontend.set_vring_base(1, 0x1_0000)));
    split.frontend.set_vring_base(1, 0xffff).unwrap();
    assert_eq!(split.frontend.get_vring_base(1).unwrap(), 0xffff);
    drop(split);
    let mut packed = server.running(&memory, 1, true);
    packed.frontend.set_vring_base(1, 0x8003_8007).unwrap();
    assert_eq!(packed.frontend.get_vring_base(1).unwrap(), 0x8003_8007);
}

#[test]
fn a_ring_that_does_not_exist_is_refused() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    for index in [4u16, 255] {
        assert!(is_refused(session.frontend.set_vring_num(index, 16)));
        assert!(is_refused(session.frontend.set_vring_enable(index, true)));
        assert!(is_refused(session.frontend.set_vring_kick(index, None)));
        assert!(is_refused(session.frontend.set_vring_call(index, None)));
    }
    assert!(is_refused(session.frontend.request(Request::SetVringKick, &(1u64 << 9).to_ne_bytes(), &[])));
    // This one owes a reply.
    assert!(session.frontend.get_vring_base(4).is_err());
    assert!(session.frontend.get_features().is_err());
}

#[test]
fn a_ring_that_cannot_run_signals_its_error_event_and_harms_no_other() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let (err, kick) = (event(), event());
    session.frontend.set_vring_err(1, Some(fd(&err))).unwrap();
    assert!(is_refused(session.frontend.set_vring_kick(1, Some(fd(&kick)))));
    assert_eq!(drain(&err), 1);
    buffers.round_trip(&mut session, 0, &memory, 15);
}

#[test]
fn a_refused_value_is_not_mixed_with_older_ones() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    session.stop_queue(0).unwrap();
    let kick = event();
    assert!(is_refused(session.frontend.set_vring_num(0, 0)));
    assert!(is_refused(session.frontend.set_vring_kick(0, Some(fd(&kick)))), "the old size must be gone");
    session.frontend.set_vring_num(0, 16).unwrap();
    let mut at = vring_addr(&memory, 0, &session.rings[0].addresses, 0, 0);
    at.descriptor = (at.descriptor.get() + 8).into();
    assert!(is_refused(session.frontend.set_vring_addr(&at)));
    assert!(
        is_refused(session.frontend.set_vring_kick(0, Some(fd(&kick)))),
        "the old addresses must be gone"
    );
}

#[test]
fn ring_areas_outside_guest_memory_or_across_its_end_are_refused() {
    let (server, memory) = (Server::new(), memory());
    let mut session = server.running(&memory, 1, false);
    session.frontend.set_vring_num(1, 256).unwrap();
    let good = session.rings[0].addresses;
    let end = 2 << 20;
    for (desc, driver, device) in [
        (GuestAddr(0), good.driver, good.device),
        (GuestAddr(end - 16 * 255), good.driver, good.device),
        (good.desc, GuestAddr(end - 6 - 2 * 255), good.device),
        (good.desc, good.driver, GuestAddr(end - 8 * 256)),
        (GuestAddr(u64::MAX - 15), good.driver, good.device),
    ] {
        let at = RingAddresses { desc, driver, device };
        session.frontend.set_vring_addr(&vring_addr(&memory, 1, &at, 0, 0)).unwrap();
        assert!(is_refused(session.frontend.set_vring_kick(1, None)), "{at:?}");
        session.frontend.get_vring_base(1).unwrap();
    }
}

#[test]
fn a_guest_that_breaks_a_ring_breaks_only_that_ring_until_it_is_reset() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 2, false);
    let err = event();
    session.frontend.set_vring_err(0, Some(fd(&err))).unwrap();
    // An avail index far ahead of what fits.
    let driver = session.rings[0].addresses.driver;
    memory.area(driver, 64).unwrap().store_u16(2, 1000, std::sync::atomic::Ordering::Release);
    eventually("the error event fires", || drain(&err) == 1);
    buffers.round_trip(&mut session, 1, &memory, 16);
    session.stop_queue(0).unwrap();
}

#[test]
fn status_zero_and_reset_device_stop_every_ring() {
    for reset in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let mut session = server.running(&memory, 2, false);
        server.take_calls();
        if reset {
            session.frontend.reset_device().unwrap();
            assert_eq!(server.take_calls(), ["stop 0", "stop 1", "reset"]);
        } else {
            session.frontend.set_status(0).unwrap();
            assert_eq!(server.take_calls(), ["stop 0", "stop 1", "status 0"]);
        }
        assert!(server.state().queues.is_empty());
        // And it can be set up again with other features.
        session.frontend.set_features(features::VERSION_1 | features::PROTOCOL_FEATURES).unwrap();
    }
}

#[test]
fn reset_owner_disables_and_keeps_everything_else() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    session.frontend.reset_owner().unwrap();
    buffers.submit(&mut session, 0, &memory, 17);
    std::thread::sleep(Duration::from_millis(20));
    assert!(session.rings[0].ring.pop().is_none());
    session.frontend.set_vring_enable(0, true).unwrap();
    buffers.finish(&mut session, 0, &memory, 17);
}

#[test]
fn a_disconnected_front_end_leaves_the_device_empty() {
    let (server, memory) = (Server::new(), memory());
    let session = server.running(&memory, 2, false);
    server.take_calls();
    drop(session);
    eventually("the device is told", || server.state().calls.len() == 3);
    assert_eq!(server.take_calls(), ["disconnected", "log false", "memory 0"]);
}

#[test]
fn a_call_event_that_is_full_is_refused_and_does_not_hang_the_session() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    // Blocking, so a write to it would wait for ever.
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    assert!(is_refused(session.frontend.set_vring_call(0, Some(fd(&full)))));
    assert!(is_refused(session.frontend.set_vring_err(0, Some(fd(&full)))));
    buffers.round_trip(&mut session, 0, &memory, 18);
}

#[test]
fn an_event_that_fills_up_before_its_ring_starts_does_not_hang_the_session() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let (err, kick) = (EventFd::new(0).unwrap(), event());
    session.frontend.set_vring_err(1, Some(fd(&err))).unwrap();
    err.write(u64::MAX - 1).unwrap();
    assert!(is_refused(session.frontend.set_vring_kick(1, Some(fd(&kick)))));
    buffers.round_trip(&mut session, 0, &memory, 20);
}

#[test]
fn a_pipe_that_nobody_reads_is_a_call_event_that_never_blocks() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    let (_reader, writer) = std::io::pipe().unwrap();
    for _ in 0..10_000 {
        session.frontend.set_vring_call(0, Some(std::os::fd::AsFd::as_fd(&writer))).unwrap();
    }
    buffers.round_trip(&mut session, 0, &memory, 19);
}

#[test]
fn an_inflight_region_says_nothing_about_a_ring_that_was_stopped_properly() {
    for packed in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut setup = config(&memory, 1, packed);
        setup.inflight = true;
        let mut session = Session::start(server.stream(), &setup).unwrap();
        for i in 0..21 {
            buffers.round_trip(&mut session, 0, &memory, i);
        }
        session.stop_queue(0).unwrap();
        // The driver resets and begins anew elsewhere, in zeroed memory; the region is the same.
        let at = session.rings[0].addresses;
        let features = session.ring_features();
        let fresh = RingAddresses {
            desc: memory.alloc(4096, 4096).unwrap(),
            driver: memory.alloc(4096, 4096).unwrap(),
            device: memory.alloc(4096, 4096).unwrap(),
        };
        assert_ne!(fresh, at);
        let ring = DriverRing::in_table(memory.table(), &fresh, features.format(), 16, features).unwrap();
        session.rings[0].ring = ring;
        session.rings[0].addresses = fresh;
        restart(&mut session, if packed { 0x8000_8000 } else { 0 });
        for i in 0..21 {
            buffers.round_trip(&mut session, 0, &memory, i);
        }
    }
}

#[test]
fn a_running_ring_that_is_misplaced_stops_until_it_is_put_right() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    buffers.round_trip(&mut session, 0, &memory, 1);
    let good = vring_addr(&memory, 0, &session.rings[0].addresses, 0, 0);
    let misaligned = VringAddr { used: (good.used.get() + 2).into(), ..good };
    assert!(is_refused(session.frontend.set_vring_addr(&misaligned)));
    assert!(server.state().queues.is_empty());
    session.frontend.set_vring_addr(&good).unwrap();
    buffers.round_trip(&mut session, 0, &memory, 2);
}
