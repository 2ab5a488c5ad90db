//! What real front-ends do, each as a test named after it; QEMU's disks are in `qemu.rs`. The sequences are those captured from
//! the programs themselves (QEMU 7.2, DPDK 22.11) or read in their sources (SPDK, cloud-hypervisor, Firecracker,
//! virtio-driver), flags included.

mod support;

use std::os::fd::AsFd;

use memory::{GuestAddr, OwnMemory, UserAddr};
use support::qemu::{OF_LINUX, Qemu};
use support::script::{Script, event, state};
use support::{Buffers, EXTRAS, FEATURES, Mirror, SESSION, Server, fd, memory};
use vhost_user::message::{Inflight, NOFD, Request, VringState, features, flags, protocol};
use virtqueue::{Format, RingFeatures};
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn qemu_7_2_net_shakes_hands_once_per_queue_pair_and_enables_before_it_negotiates() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut script = Script::new(&server, &memory);
    let mut queue = script.ring(Format::Split, OF_LINUX);
    let _masked = Qemu::V7_2.connects(&mut script);
    script.ask_word(Request::GetFeatures);
    let offered = script.ask_word(Request::GetProtocolFeatures);
    script.tell_word(Request::SetProtocolFeatures, offered & !protocol::CONFIG);
    script.ask_word(Request::GetMaxMemSlots);
    script.ask_word(Request::GetFeatures);
    for index in 2..4 {
        script.tell_event(Request::SetVringCall, index, &event());
        script.tell_event(Request::SetVringErr, index, &event());
    }
    for index in 0..4 {
        script.tell_state(Request::SetVringEnable, index, u32::from(index < 2));
    }
    // Much later, when the guest's driver comes, each pair sets features and memory again.
    for _ in 0..2 {
        script.demand(Request::SetFeatures, &OF_LINUX.to_ne_bytes(), &[]);
        let table = script.table();
        script.demand(Request::SetMemTable, &table, &[memory.fd()]);
    }
    script.tell_event(Request::SetVringCall, 0, &queue.call);
    script.tell_state(Request::SetVringNum, 0, 16);
    script.tell_state(Request::SetVringBase, 0, 0);
    let addr = script.addr(0, &queue.addresses);
    script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
    script.tell_event(Request::SetVringKick, 0, &queue.kick);
    buffers.exercise(&mut queue, &memory, 20);
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn qemu_cryptodev_never_enables_its_ring_and_negotiates_only_bit_30() {
    let mut mirror = Mirror::new();
    mirror.start_enabled = true;
    mirror.any_driver = true;
    mirror.extras = protocol::CRYPTO_SESSION;
    let (server, memory) = (Server::with(mirror, Default::default()), memory());
    let buffers = Buffers::new(&memory);
    let mut script = Script::new(&server, &memory);
    // What the driver has negotiated, and nobody says.
    let mut queue = script.ring(Format::Split, RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX);
    // One handshake per queue on one socket.
    for _ in 0..2 {
        script.ask_word(Request::GetFeatures);
        script.ask_word(Request::GetProtocolFeatures);
        script.tell_word(
            Request::SetProtocolFeatures,
            protocol::MQ | protocol::REPLY_ACK | protocol::CRYPTO_SESSION,
        );
    }
    script.tell_word(Request::SetFeatures, features::PROTOCOL_FEATURES);
    let table = script.table();
    script.demand(Request::SetMemTable, &table, &[memory.fd()]);
    script.tell_state(Request::SetVringNum, 0, 16);
    script.tell_state(Request::SetVringBase, 0, 0);
    let addr = script.addr(0, &queue.addresses);
    script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
    script.tell_event(Request::SetVringKick, 0, &queue.kick);
    script.tell_event(Request::SetVringCall, 0, &queue.call);
    buffers.exercise(&mut queue, &memory, 20);
    buffers.indirect_round_trip(&mut queue, &memory, 21);
    for len in [632, 1072] {
        assert_eq!(script.ask(Request::CreateCryptoSession, 0, &vec![0; len]).len(), len);
    }
    script.tell_word(Request::CloseCryptoSession, SESSION);
    script.ask_word(Request::GetFeatures);
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn dpdk_virtio_user_sends_calls_before_features_and_half_a_packed_base() {
    for packed in [false, true] {
        let (server, memory) = (Server::new(), memory());
        let buffers = Buffers::new(&memory);
        let mut script = Script::new(&server, &memory);
        let ring_features = RingFeatures::IN_ORDER | if packed { RingFeatures::RING_PACKED } else { 0 };
        let format = if packed { Format::Packed } else { Format::Split };
        let mut queues = [script.ring(format, ring_features), script.ring(format, ring_features)];
        script.tell(Request::SetOwner, &[], &[]);
        script.ask_word(Request::GetFeatures);
        script.ask_word(Request::GetProtocolFeatures);
        script.tell_word(Request::SetProtocolFeatures, protocol::MQ | protocol::REPLY_ACK | protocol::STATUS);
        for (index, queue) in (0..).zip(&queues) {
            script.tell_event(Request::SetVringCall, index, &queue.call);
        }
        let chosen = features::VERSION_1 | features::PROTOCOL_FEATURES | ring_features;
        script.tell_word(Request::SetFeatures, chosen);
        script.demand(Request::SetStatus, &11u64.to_ne_bytes(), &[]);
        assert_eq!(script.ask_word(Request::GetStatus), 11);
        let table = script.table();
        script.demand(Request::SetMemTable, &table, &[memory.fd()]);
        for (index, queue) in (0..).zip(&queues) {
            script.tell_state(Request::SetVringNum, index, 16);
            script.tell_state(Request::SetVringBase, index, if packed { 0x8000 } else { 0 });
            let addr = script.addr(index, &queue.addresses);
            script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
            script.tell_event(Request::SetVringKick, index.into(), &queue.kick);
        }
        for index in 0..2 {
            script.tell_state(Request::SetVringEnable, index, 1);
        }
        script.demand(Request::SetStatus, &15u64.to_ne_bytes(), &[]);
        for queue in &mut queues {
            buffers.exercise(queue, &memory, 40);
        }
        for index in 0..2 {
            script.tell_state(Request::SetVringEnable, index, 0);
        }
        for index in 0..2 {
            assert_eq!(script.ask(Request::GetVringBase, 0, state(index, 0).as_bytes()).len(), 8);
        }
        assert_eq!(server.notifier.status().refused, 0);
    }
}

#[test]
fn spdk_initiator_reads_256_bytes_of_configuration_and_has_no_acknowledgements() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut script = Script::new(&server, &memory);
    let mut queue = script.ring(Format::Split, 0);
    script.tell(Request::SetOwner, &[], &[]);
    script.ask_word(Request::GetFeatures);
    script.ask_word(Request::GetProtocolFeatures);
    script.tell_word(Request::SetProtocolFeatures, protocol::MQ | protocol::CONFIG);
    let request = [&[0; 4], &256u32.to_ne_bytes()[..], &[0; 4], &[0xee; 256]].concat();
    let config = script.ask(Request::GetConfig, 0, &request);
    assert_eq!(config.len(), 12 + 256);
    assert!(config[12 + 60..].iter().all(|&byte| byte == 0));
    script.tell_word(Request::SetFeatures, features::VERSION_1 | features::PROTOCOL_FEATURES);
    assert_eq!(script.ask_word(Request::GetQueueNum), 4);
    script.tell_event(Request::SetVringCall, 0, &queue.call);
    // No call descriptor for the second ring: it polls.
    script.tell(Request::SetVringCall, &(NOFD | 1).to_ne_bytes(), &[]);
    // Its own barrier after the table is a request that is always answered.
    let table = script.table();
    script.tell(Request::SetMemTable, &table, &[memory.fd()]);
    script.ask_word(Request::GetFeatures);
    script.tell_state(Request::SetVringNum, 0, 16);
    script.tell_state(Request::SetVringBase, 0, 0);
    let addr = script.addr(0, &queue.addresses);
    script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
    script.tell_event(Request::SetVringKick, 0, &queue.kick);
    script.tell_state(Request::SetVringEnable, 0, 1);
    buffers.exercise(&mut queue, &memory, 40);
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn virtio_driver_asks_for_everything_to_be_acknowledged_and_has_guest_addresses_of_its_own_memory() {
    for packed in [false, true] {
        let server = Server::new();
        // Guest address and address in the driver's memory are the same, near the top of user space.
        let memory = OwnMemory::new(1 << 20, GuestAddr(0x7f12_3450_0000)).unwrap();
        let buffers = Buffers::new(&memory);
        let mut script = Script::new(&server, &memory);
        script.region.user = UserAddr(script.region.guest.0);
        let ring_features = if packed { RingFeatures::RING_PACKED } else { 0 };
        let mut queue = script.ring(if packed { Format::Packed } else { Format::Split }, ring_features);
        script.tell(Request::SetOwner, &[], &[]);
        script.ask_word(Request::GetFeatures);
        script.tell_word(
            Request::SetFeatures,
            features::VERSION_1 | features::PROTOCOL_FEATURES | ring_features,
        );
        script.ask_word(Request::GetProtocolFeatures);
        script.tell_word(
            Request::SetProtocolFeatures,
            protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::CONFIGURE_MEM_SLOTS,
        );
        script.ask(Request::GetQueueNum, flags::NEED_REPLY, &[]);
        script.ask(Request::GetMaxMemSlots, flags::NEED_REPLY, &[]);
        script.ask(
            Request::GetConfig,
            flags::NEED_REPLY,
            &[&[0; 4], &60u32.to_ne_bytes()[..], &[0; 64]].concat(),
        );
        let region = script.single_region();
        script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
        // The base of a fresh packed ring is 0 here, too; the kick comes before the call.
        script.demand(Request::SetVringNum, state(0, 16).as_bytes(), &[]);
        script.demand(Request::SetVringBase, state(0, 0).as_bytes(), &[]);
        let addr = script.addr(0, &queue.addresses);
        script.demand(Request::SetVringAddr, addr.as_bytes(), &[]);
        script.demand(Request::SetVringKick, &0u64.to_ne_bytes(), &[fd(&queue.kick)]);
        script.demand(Request::SetVringCall, &0u64.to_ne_bytes(), &[fd(&queue.call)]);
        script.demand(Request::SetVringEnable, state(0, 1).as_bytes(), &[]);
        buffers.exercise(&mut queue, &memory, 40);
        let base = script.ask(Request::GetVringBase, flags::NEED_REPLY, state(0, 0).as_bytes());
        if packed {
            // 40 requests of two slots each have gone round 16 slots five times: back at slot 0, wrap counters clear.
            assert_eq!(VringState::read_from_bytes(&base).unwrap().num.get(), 0);
            script.demand(Request::SetVringBase, state(0, 0).as_bytes(), &[]);
            script.demand(Request::SetVringKick, &0u64.to_ne_bytes(), &[fd(&queue.kick)]);
            buffers.exercise(&mut queue, &memory, 40);
            script.ask(Request::GetVringBase, flags::NEED_REPLY, state(0, 0).as_bytes());
        }
        // The region goes with a descriptor nobody asked for.
        script.demand(Request::RemMemReg, region.as_bytes(), &[memory.fd()]);
        assert_eq!(server.notifier.status().refused, 0);
    }
}

/// cloud-hypervisor resets a device by disabling its rings, and sets them up anew without ever asking for a base.
#[test]
fn cloud_hypervisor_resets_without_stopping_its_rings() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut script = Script::new(&server, &memory);
    script.tell(Request::SetOwner, &[], &[]);
    script.ask_word(Request::GetFeatures);
    script.ask_word(Request::GetProtocolFeatures);
    script.tell_word(
        Request::SetProtocolFeatures,
        protocol::CONFIG
            | protocol::MQ
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::REPLY_ACK
            | protocol::INFLIGHT_SHMFD,
    );
    let mut inflight = None;
    for round in 0..3u32 {
        // The next driver negotiates something else.
        let event_idx = if round == 1 { RingFeatures::EVENT_IDX } else { 0 };
        let mut queue = script.ring(Format::Split, event_idx);
        let chosen = features::VERSION_1 | features::PROTOCOL_FEATURES | event_idx;
        script.demand(Request::SetFeatures, &chosen.to_ne_bytes(), &[]);
        let table = script.table();
        script.demand(Request::SetMemTable, &table, &[memory.fd()]);
        script.demand(Request::SetVringNum, state(0, 16).as_bytes(), &[]);
        let (description, memfd) = inflight.get_or_insert_with(|| {
            let got = script.frontend.get_inflight_fd(1, 16).unwrap();
            let description = Inflight {
                mmap_size: got.size.into(),
                mmap_offset: 0.into(),
                num_queues: 1.into(),
                queue_size: 16.into(),
                padding: 0.into(),
            };
            (description, got.fd)
        });
        script.demand(Request::SetInflightFd, description.as_bytes(), &[memfd.as_fd()]);
        let addr = script.addr(0, &queue.addresses);
        script.demand(Request::SetVringAddr, addr.as_bytes(), &[]);
        script.demand(Request::SetVringBase, state(0, 0).as_bytes(), &[]);
        script.demand(Request::SetVringCall, &0u64.to_ne_bytes(), &[fd(&queue.call)]);
        script.demand(Request::SetVringKick, &0u64.to_ne_bytes(), &[fd(&queue.kick)]);
        script.demand(Request::SetVringEnable, state(0, 1).as_bytes(), &[]);
        buffers.exercise(&mut queue, &memory, 20 + round as u8);
        script.demand(Request::SetVringEnable, state(0, 0).as_bytes(), &[]);
    }
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn cloud_hypervisor_pauses_by_disabling_and_resumes_by_enabling() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut session = server.running(&memory, 1, false);
    for _ in 0..3 {
        session.frontend.set_vring_enable(0, false).unwrap();
        buffers.submit(&mut session, 0, &memory, 1);
        session.frontend.set_vring_enable(0, true).unwrap();
        buffers.finish(&mut session, 0, &memory, 1);
    }
}

#[test]
fn firecracker_negotiates_configuration_and_nothing_else() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut script = Script::new(&server, &memory);
    let mut queue = script.ring(Format::Split, RingFeatures::EVENT_IDX);
    script.tell(Request::SetOwner, &[], &[]);
    assert_eq!(script.ask_word(Request::GetFeatures) & FEATURES, FEATURES);
    assert_eq!(script.ask_word(Request::GetProtocolFeatures) & EXTRAS, EXTRAS);
    script.tell_word(Request::SetProtocolFeatures, protocol::CONFIG);
    let config = script.ask(Request::GetConfig, 0, &[&[0; 4], &60u32.to_ne_bytes()[..], &[0; 64]].concat());
    assert_eq!(config.len(), 72);
    let chosen = features::VERSION_1 | features::PROTOCOL_FEATURES | RingFeatures::EVENT_IDX;
    script.tell_word(Request::SetFeatures, chosen);
    let table = script.table();
    script.tell(Request::SetMemTable, &table, &[memory.fd()]);
    script.tell_state(Request::SetVringNum, 0, 16);
    let addr = script.addr(0, &queue.addresses);
    script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
    script.tell_state(Request::SetVringBase, 0, 0);
    script.tell_event(Request::SetVringCall, 0, &queue.call);
    script.tell_event(Request::SetVringKick, 0, &queue.kick);
    script.tell_state(Request::SetVringEnable, 0, 1);
    buffers.exercise(&mut queue, &memory, 40);
    assert_eq!(server.notifier.status().refused, 0);
}
