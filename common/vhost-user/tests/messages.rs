//! Every message has an answer; what is refused, and what that leads to.

mod support;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::{EXTRAS, FEATURES, Mirror, QUEUES, SESSION, Server, memory};
use vhost_user::connection::ConnectionError;
use vhost_user::frontend::{Frontend, FrontendError};
use vhost_user::message::{BackendRequest, NOFD, Request, VERSION, Word, features, flags, protocol};

fn is_closed<T: std::fmt::Debug>(result: Result<T, FrontendError>) -> bool {
    matches!(
        result,
        Err(FrontendError::Connection(
            ConnectionError::Closed | ConnectionError::Partial { .. } | ConnectionError::Io(_)
        ))
    )
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, FrontendError>) -> bool {
    matches!(result, Err(FrontendError::Refused { .. }))
}

#[test]
fn the_device_and_the_session_offer_their_features_together() {
    let server = Server::new();
    let mut frontend = server.raw();
    assert_eq!(frontend.get_features().unwrap(), FEATURES | features::LOG_ALL | features::PROTOCOL_FEATURES);
    let offered = frontend.get_protocol_features().unwrap();
    let own = protocol::MQ
        | protocol::LOG_SHMFD
        | protocol::REPLY_ACK
        | protocol::BACKEND_REQ
        | protocol::BACKEND_SEND_FD
        | protocol::INFLIGHT_SHMFD
        | protocol::RESET_DEVICE
        | protocol::CONFIGURE_MEM_SLOTS
        | protocol::STATUS;
    assert_eq!(offered, own | EXTRAS);
    assert_eq!(frontend.get_queue_num().unwrap(), QUEUES.into());
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
}

#[test]
fn a_device_cannot_offer_what_the_session_does_not_know() {
    let mut mirror = Mirror::new();
    mirror.extras = u64::MAX;
    let server = Server::with(mirror, Default::default());
    let offered = server.raw().get_protocol_features().unwrap();
    let never = protocol::CROSS_ENDIAN
        | protocol::PAGEFAULT
        | protocol::HOST_NOTIFIER
        | protocol::INBAND_NOTIFICATIONS
        | protocol::XEN_MMAP
        | protocol::SHARED_OBJECT
        | !0 << 20;
    assert_eq!(offered & never, 0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let server = Server::new();
    let mut session = server.negotiated();
    assert!(is_refused(session.frontend.set_features(1 << 63)));
    assert!(is_refused(session.frontend.request(
        Request::SetProtocolFeatures,
        &(1u64 << 63).to_ne_bytes(),
        &[]
    )));
    session.frontend.set_features(FEATURES).unwrap();
}

#[test]
fn a_features_mismatch_nobody_can_be_told_of_ends_the_connection() {
    let server = Server::new();
    let mut frontend = server.raw();
    frontend.set_features(1 << 63).unwrap();
    assert!(is_closed(frontend.get_features()));
    // The next connection starts from nothing.
    server.raw().get_features().unwrap();
}

#[test]
fn the_device_hears_of_features_without_the_sessions_own_bits_and_only_when_they_change() {
    let server = Server::new();
    let mut frontend = server.raw();
    for _ in 0..2 {
        frontend.set_features(features::VERSION_1 | features::PROTOCOL_FEATURES).unwrap();
    }
    frontend.set_features(features::VERSION_1 | features::LOG_ALL).unwrap();
    frontend.get_features().unwrap();
    let calls = server.take_calls();
    let negotiated: Vec<_> = calls.iter().filter(|call| call.starts_with("negotiated")).collect();
    assert_eq!(negotiated, ["negotiated 0x100000000"]);
}

#[test]
fn an_acknowledgement_needs_both_the_feature_and_the_flag() {
    let server = Server::new();
    let mut frontend = server.raw();
    let need_reply = VERSION | flags::NEED_REPLY;
    // Without the feature the flag means nothing, so the next thing to arrive is the reply to GET_STATUS.
    frontend.send_raw(Request::SetOwner.into(), need_reply, &[], &[]).unwrap();
    frontend.send_raw(9999, need_reply, &[], &[]).unwrap();
    assert_eq!(frontend.get_status().unwrap(), 0);
    frontend.set_protocol_features(protocol::REPLY_ACK).unwrap();
    // With the feature and without the flag, the same.
    frontend.send_raw(Request::SetOwner.into(), VERSION, &[], &[]).unwrap();
    assert_eq!(frontend.get_status().unwrap(), 0);
    frontend.send_raw(Request::SetOwner.into(), need_reply, &[], &[]).unwrap();
    let ack = frontend.receive_raw().unwrap();
    assert_eq!(ack.header.flags.get(), VERSION | flags::REPLY);
    assert_eq!(ack.payload::<Word>().unwrap().value.get(), 0);
}

#[test]
fn the_message_that_negotiates_acknowledgements_is_itself_acknowledged() {
    let server = Server::new();
    let mut frontend = server.raw();
    let body = protocol::REPLY_ACK.to_ne_bytes();
    frontend.send_raw(Request::SetProtocolFeatures.into(), VERSION | flags::NEED_REPLY, &body, &[]).unwrap();
    assert_eq!(frontend.receive_raw().unwrap().payload::<Word>().unwrap().value.get(), 0);
}

#[test]
fn a_request_with_a_reply_of_its_own_is_answered_once_even_if_it_asks_for_an_acknowledgement() {
    let server = Server::new();
    let mut session = server.negotiated();
    let frontend = &mut session.frontend;
    frontend.send_raw(Request::GetQueueNum.into(), VERSION | flags::NEED_REPLY, &[], &[]).unwrap();
    assert_eq!(frontend.receive_raw().unwrap().payload::<Word>().unwrap().value.get(), QUEUES.into());
    assert_eq!(frontend.get_status().unwrap(), 0);
}

#[test]
fn unknown_requests_are_refused_and_the_connection_goes_on() {
    let server = Server::new();
    let mut session = server.negotiated();
    let frontend = &mut session.frontend;
    for code in [0, 45, 9999, u32::MAX] {
        frontend.send_raw(code, VERSION | flags::NEED_REPLY, &[0xaa; 100], &[]).unwrap();
        let ack = frontend.receive_raw().unwrap();
        assert_eq!((ack.header.request.get(), ack.payload::<Word>().unwrap().value.get()), (code, 1));
        frontend.send_raw(code, VERSION, &[0xaa; 100], &[]).unwrap();
    }
    assert_eq!(frontend.get_status().unwrap(), 0);
    assert_eq!(server.notifier.status().refused, 8);
}

#[test]
fn replies_nobody_waits_for_are_ignored() {
    let server = Server::new();
    let mut session = server.negotiated();
    let word = [0; 8];
    session.frontend.send_raw(Request::SetMemTable.into(), VERSION | flags::REPLY, &word, &[]).unwrap();
    assert_eq!(session.frontend.get_status().unwrap(), 0);
}

/// Every request of the specification, with an empty payload, a short and a long one: there is always an answer or the end
/// of the connection, never silence, and the server lives.
#[test]
fn every_request_is_answered_or_ends_the_connection_whatever_its_payload() {
    let server = Server::new();
    for &request in Request::ALL {
        for len in [0, 1, 8, 12, 40, 632, 4000] {
            for fill in [0x00, 0xff] {
                let mut session = server.negotiated();
                let frontend = &mut session.frontend;
                frontend
                    .send_raw(request.into(), VERSION | flags::NEED_REPLY, &vec![fill; len], &[])
                    .unwrap();
                match frontend.receive_raw() {
                    Ok(reply) => assert_eq!(reply.header.request.get(), u32::from(request)),
                    Err(FrontendError::Connection(ConnectionError::Stalled(_))) => {
                        panic!("no answer to {request} with {len} bytes of {fill:#x}");
                    }
                    Err(error) => assert!(is_closed::<()>(Err(error)), "{request}"),
                }
            }
        }
    }
    server.negotiated().frontend.get_features().unwrap();
}

#[test]
fn requests_that_are_not_offered_have_the_replies_the_specification_gives_them() {
    let server = Server::new();
    let mut session = server.negotiated();
    let frontend = &mut session.frontend;
    let mut reply = |request: Request, body: &[u8]| frontend.query(request, body, &[]).unwrap();
    assert_eq!(reply(Request::PostcopyEnd, &[]).payload::<Word>().unwrap().value.get(), 1);
    let advise = reply(Request::PostcopyAdvise, &[]);
    assert!(advise.body.is_empty() && advise.fds.is_empty());
    let object = reply(Request::GetSharedObject, &[0; 16]);
    assert!(object.body.is_empty() && object.fds.is_empty());
    assert_eq!(reply(Request::GetShmemConfig, &[]).body, [0; 2056]);
    for request in [Request::PostcopyListen, Request::IotlbMsg, Request::GpuSetSocket] {
        assert!(is_refused(frontend.request(request, &[0; 32], &[])), "{request}");
    }
}

#[test]
fn only_little_endian_rings_are_accepted() {
    let server = Server::new();
    let mut session = server.negotiated();
    session.frontend.set_vring_endian(0, false).unwrap();
    assert!(is_refused(session.frontend.set_vring_endian(0, true)));
}

#[test]
fn the_configuration_is_as_long_as_the_front_end_asks_and_zero_beyond_its_end() {
    let server = Server::new();
    let mut session = server.negotiated();
    for len in [1, 8, 60, 61, 256, 4096] {
        let mut config = vec![0xee; len];
        session.get_config(0, &mut config).unwrap();
        let expected: Vec<u8> = (0..len).map(|i| if i < 60 { i as u8 + 1 } else { 0 }).collect();
        assert_eq!(config, expected, "{len} bytes");
    }
    let mut byte = [0];
    session.get_config(20, &mut byte).unwrap();
    assert_eq!(byte, [21]);
    // Where cloud-hypervisor once looked for it.
    session.get_config(0x100, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    session.get_config(0x100 + 20, &mut byte).unwrap();
    assert_eq!(byte, [21]);
}

#[test]
fn a_configuration_request_out_of_bounds_gets_the_empty_reply_that_means_failure() {
    let server = Server::new();
    let mut session = server.negotiated();
    for (offset, len) in [(0u32, 0u32), (0, 4097), (4096, 1), (u32::MAX, u32::MAX)] {
        let body = [offset.to_ne_bytes(), len.to_ne_bytes(), [0; 4]].concat();
        assert!(session.frontend.query(Request::GetConfig, &body, &[]).unwrap().body.is_empty());
    }
    assert!(session.frontend.query(Request::GetConfig, &[0; 3], &[]).unwrap().body.is_empty());
}

#[test]
fn the_guest_writes_only_what_it_may_but_migration_restores_everything() {
    let server = Server::new();
    let mut session = server.negotiated();
    let frontend = &mut session.frontend;
    frontend.set_config(8, &[0x55], false).unwrap();
    assert!(is_refused(frontend.set_config(0, &[1, 2, 3], false)));
    frontend.set_config(0, &[0xa; 60], true).unwrap();
    assert!(is_refused(frontend.set_config(59, &[1, 2], true)));
    assert_eq!(server.state().config, [0xa; 60]);
    // A size that lies about the payload, and unknown flags.
    let head = |size: u32, flags: u32| [8u32.to_ne_bytes(), size.to_ne_bytes(), flags.to_ne_bytes()].concat();
    assert!(is_refused(frontend.request(Request::SetConfig, &head(1, 0), &[])));
    assert!(is_refused(frontend.request(Request::SetConfig, &[head(1, 3), vec![0]].concat(), &[])));
}

#[test]
fn net_requests_reach_the_device() {
    let server = Server::new();
    let mut session = server.negotiated();
    session.frontend.net_set_mtu(1500).unwrap();
    assert!(is_refused(session.frontend.net_set_mtu(60)));
    assert!(is_refused(session.frontend.request(Request::NetSetMtu, &(1u64 << 16).to_ne_bytes(), &[])));
    session.frontend.send_rarp([0x52, 0x54, 0, 0x12, 0x34, 0x56]).unwrap();
    assert_eq!(server.take_calls().last().unwrap(), "rarp [52, 54, 0, 12, 34, 56]");
}

#[test]
fn device_status_is_kept_and_zero_resets() {
    let server = Server::new();
    let mut session = server.negotiated();
    session.frontend.set_status(11).unwrap();
    assert_eq!(session.frontend.get_status().unwrap(), 11);
    session.frontend.set_status(0).unwrap();
    assert_eq!(session.frontend.get_status().unwrap(), 0);
    assert!(is_refused(session.frontend.request(Request::SetStatus, &256u64.to_ne_bytes(), &[])));
}

#[test]
fn device_state_travels_to_the_front_end_and_into_another_device() {
    let source = Server::new();
    // More than a pipe holds, so that the transfer takes several turns.
    let state: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    source.state().saved = state.clone();
    let mut session = source.negotiated();
    let (mut reader, writer) = std::io::pipe().unwrap();
    assert!(session.frontend.set_device_state_fd(false, writer.as_fd()).unwrap().is_none());
    drop(writer);
    let mut saved = Vec::new();
    reader.read_to_end(&mut saved).unwrap();
    session.frontend.check_device_state().unwrap();
    assert_eq!(saved, state);

    let destination = Server::new();
    let mut session = destination.negotiated();
    let (reader, mut writer) = std::io::pipe().unwrap();
    session.frontend.set_device_state_fd(true, reader.as_fd()).unwrap();
    drop(reader);
    writer.write_all(&saved).unwrap();
    drop(writer);
    session.frontend.check_device_state().unwrap();
    assert!(destination.state().saved == state);
}

#[test]
fn malformed_device_state_fails_the_check() {
    let server = Server::new();
    let mut session = server.negotiated();
    let (reader, mut writer) = std::io::pipe().unwrap();
    session.frontend.set_device_state_fd(true, reader.as_fd()).unwrap();
    writer.write_all(&[0xff; 10]).unwrap();
    drop(writer);
    assert!(is_refused(session.frontend.check_device_state()));
    // And one that nobody asked for.
    assert!(is_refused(session.frontend.check_device_state()));
}

#[test]
fn device_state_is_refused_while_a_ring_runs_and_the_reply_says_so() {
    let server = Server::new();
    let memory = memory();
    let mut session = server.running(&memory, 1, false);
    let protocol = session.protocol_features() | protocol::DEVICE_STATE;
    session.frontend.set_protocol_features(protocol).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let refused = session.frontend.set_device_state_fd(true, reader.as_fd());
    assert!(matches!(refused, Err(FrontendError::Refused { value: 1, .. })), "{refused:?}");
    let body = [1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
    let reply = session.frontend.query(Request::SetDeviceStateFd, &body, &[reader.as_fd()]).unwrap();
    assert_eq!(reply.payload::<Word>().unwrap().value.get(), NOFD | 1);
}

#[test]
fn a_configuration_change_is_announced_without_waiting_for_its_acknowledgement() {
    let server = Server::new();
    let memory = memory();
    let mut session = server.running(&memory, 1, false);
    let mut back = session.frontend.open_back_channel().unwrap();
    server.notifier.config_changed();
    let change = back.receive(Duration::from_secs(5)).unwrap().expect("an announcement");
    assert_eq!(change.request, Some(BackendRequest::ConfigChangeMsg));
    assert!(change.message.header.needs_reply());
    // As QEMU does: read the configuration before acknowledging. More changes meanwhile become one message.
    session.get_config(0, &mut [0; 8]).unwrap();
    server.notifier.config_changed();
    session.get_config(0, &mut [0; 8]).unwrap();
    server.notifier.config_changed();
    assert!(back.receive(Duration::from_millis(50)).unwrap().is_none());
    back.acknowledge(change.message.header, 0).unwrap();
    let change = back.receive(Duration::from_secs(5)).unwrap().expect("the change after it");
    back.acknowledge(change.message.header, 1).unwrap();
    assert!(back.receive(Duration::from_millis(50)).unwrap().is_none());
}

#[test]
fn a_configuration_change_waits_for_the_back_channel_and_for_a_running_ring() {
    let server = Server::new();
    let memory = memory();
    let mut session = server.running(&memory, 1, false);
    session.stop_queue(0).unwrap();
    server.notifier.config_changed();
    let mut back = session.frontend.open_back_channel().unwrap();
    assert!(back.receive(Duration::from_millis(50)).unwrap().is_none(), "a suspended device sends nothing");
    let (ring, size) = (&session.rings[0], 16);
    let (addresses, kick, call) =
        (ring.addresses, ring.kick.try_clone().unwrap(), ring.call.try_clone().unwrap());
    session.start_queue(0, size, 0, &addresses, &kick, &call).unwrap();
    assert!(back.receive(Duration::from_secs(5)).unwrap().is_some());
}

#[test]
fn a_back_channel_that_is_closed_or_no_socket_harms_nobody() {
    let server = Server::new();
    let memory = memory();
    let mut session = server.running(&memory, 1, false);
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(is_refused(session.frontend.set_backend_req_fd(null.as_fd())));
    drop(session.frontend.open_back_channel().unwrap());
    server.notifier.config_changed();
    session.get_config(0, &mut [0; 8]).unwrap();
    let mut back = session.frontend.open_back_channel().unwrap();
    server.notifier.config_changed();
    assert!(back.receive(Duration::from_secs(5)).unwrap().is_some());
}

#[test]
fn a_full_back_channel_delays_the_announcement_and_nothing_else() {
    let server = Server::new();
    let memory = memory();
    let mut session = server.running(&memory, 1, false);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut stuffed = 0;
    while let Ok(n) = (&theirs).write(&[0; 4096]) {
        stuffed += n;
    }
    session.frontend.set_backend_req_fd(theirs.as_fd()).unwrap();
    server.notifier.config_changed();
    for _ in 0..10 {
        session.get_config(0, &mut [0; 8]).unwrap();
    }
    ours.read_exact(&mut vec![0; stuffed]).unwrap();
    let mut header = [0; 12];
    ours.read_exact(&mut header).unwrap();
    assert_eq!(header[0], 2);
}

#[test]
fn surplus_descriptors_are_closed_and_too_few_are_refused() {
    let server = Server::new();
    let mut session = server.negotiated();
    let frontend = &mut session.frontend;
    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend.request(Request::SetOwner, &[], &[theirs.as_fd(); 3]).unwrap();
    drop(theirs);
    // Every copy is closed: the other end sees the hang-up.
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!((&ours).read(&mut [0; 1]).unwrap(), 0);
    assert!(is_refused(frontend.request(Request::SetLogFd, &[], &[])));
    assert!(is_refused(frontend.request(Request::SetVringCall, &0u64.to_ne_bytes(), &[])));
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(is_refused(frontend.request(Request::SetVringCall, &NOFD.to_ne_bytes(), &[null.as_fd()])));
}

#[test]
fn the_status_snapshot_shows_the_connection_and_its_rings() {
    let server = Server::new();
    assert!(!server.notifier.status().connected);
    let memory = memory();
    let mut session = server.running(&memory, 2, false);
    session.frontend.set_status(4).unwrap();
    session.frontend.set_vring_enable(1, false).unwrap();
    session.frontend.get_status().unwrap();
    // The reply above was sent before its own update; one more makes the earlier ones visible.
    session.frontend.get_status().unwrap();
    let status = server.notifier.status();
    assert!(status.connected && !status.logging && !status.inflight);
    assert_eq!(status.peer_pid, Some(std::process::id() as i32));
    assert_eq!((status.connections, status.device_status), (1, 4));
    assert_eq!((status.memory_regions, status.memory_bytes), (1, 1 << 20));
    assert_eq!(status.features, session.features());
    assert_eq!(status.protocol_features, session.protocol_features());
    let rings: Vec<_> =
        status.rings.iter().map(|ring| (ring.index, ring.size, ring.started, ring.enabled)).collect();
    assert_eq!(rings, [(0, 16, true, true), (1, 16, true, false)]);
    drop(session);
    support::eventually("the snapshot shows the hang-up", || !server.notifier.status().connected);
    assert_eq!(server.notifier.status().rings, []);
}

#[test]
fn crypto_sessions_keep_the_size_and_bytes_of_either_description() {
    let server = Server::new();
    let mut session = server.negotiated();
    let frontend: &mut Frontend = &mut session.frontend;
    for (len, at) in [(632, 0), (1072, 1064)] {
        let description: Vec<u8> = (0..len).map(|i| (i % 200) as u8).collect();
        let reply = frontend.query(Request::CreateCryptoSession, &description, &[]).unwrap();
        let mut expected = description.clone();
        expected[at..at + 8].copy_from_slice(&SESSION.to_ne_bytes());
        assert_eq!(reply.body, expected);
        assert_eq!(frontend.create_crypto_session(&description).unwrap(), SESSION);
        // Refused by the device, and given an identifier that would be negative on the wire.
        for wrong in [0xff, 0xfe] {
            let mut unknown = description.clone();
            unknown[8] = wrong;
            let refused = frontend.create_crypto_session(&unknown);
            assert!(matches!(refused, Err(FrontendError::Refused { value: u64::MAX, .. })), "{refused:?}");
        }
    }
    frontend.close_crypto_session(SESSION).unwrap();
    assert!(is_refused(frontend.close_crypto_session(8)));
}

/// The reply would not say where the identifier is, so there is none.
#[test]
fn a_crypto_session_of_unknown_size_ends_the_connection() {
    for len in [0, 8, 631, 633, 640, 1071, 1073, 4096] {
        let server = Server::new();
        let mut frontend = server.raw();
        let refused = frontend.query(Request::CreateCryptoSession, &vec![0; len], &[]);
        assert!(refused.is_err(), "{len}");
        support::eventually("the connection ends", || !server.notifier.status().connected);
    }
}

#[test]
fn the_device_learns_the_protocol_features_each_time_they_are_chosen() {
    let server = Server::new();
    let mut frontend = server.raw();
    for chosen in [protocol::MQ, protocol::MQ | protocol::CRYPTO_SESSION, 0] {
        frontend.set_protocol_features(chosen).unwrap();
        frontend.get_features().unwrap();
        assert_eq!(server.state().protocol, Some(chosen));
    }
}
