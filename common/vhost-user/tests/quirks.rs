//! What real front-ends do, each as a test named after it. The sequences are those captured from the programs themselves
//! (QEMU 7.2, DPDK 22.11) or read in their sources (SPDK, cloud-hypervisor, Firecracker, virtio-driver), flags included.

mod support;

use std::os::fd::{AsFd, BorrowedFd};

use memory::{GuestAddr, OwnMemory, RegionConfig, UserAddr};
use support::{Buffers, EXTRAS, FEATURES, Mirror, SESSION, Server, drain, fd, memory};
use vhost_user::frontend::Frontend;
use vhost_user::frontend::driver::DriverQueue;
use vhost_user::message::{
    Inflight, MemoryRegion, NOFD, Request, SingleMemoryRegion, VERSION, VringAddr, VringState, Word,
    features, flags, protocol,
};
use virtqueue::driver::DriverRing;
use virtqueue::{Format, RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

/// A front-end that sends exactly what it is told to, and a ring to use behind it.
struct Script<'m> {
    frontend: Frontend,
    memory: &'m OwnMemory,
    region: RegionConfig,
}

impl<'m> Script<'m> {
    fn new(server: &Server, memory: &'m OwnMemory) -> Self {
        Self { frontend: server.raw(), memory, region: memory.config() }
    }

    /// A message with no acknowledgement asked for.
    fn tell(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.frontend.send_raw(request.into(), VERSION, body, fds).unwrap();
    }

    /// A message whose acknowledgement is waited for, and must be zero.
    fn demand(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.frontend.send_raw(request.into(), VERSION | flags::NEED_REPLY, body, fds).unwrap();
        let ack = self.frontend.receive_raw().unwrap();
        assert_eq!(
            (ack.header.request.get(), ack.header.flags.get()),
            (request.into(), VERSION | flags::REPLY)
        );
        assert_eq!(ack.payload::<Word>().unwrap().value.get(), 0, "{request}");
    }

    fn ask(&mut self, request: Request, extra: u32, body: &[u8]) -> Vec<u8> {
        self.frontend.send_raw(request.into(), VERSION | extra, body, &[]).unwrap();
        let reply = self.frontend.receive_raw().unwrap();
        assert_eq!(
            (reply.header.request.get(), reply.header.flags.get()),
            (request.into(), VERSION | flags::REPLY)
        );
        reply.body
    }

    fn ask_word(&mut self, request: Request) -> u64 {
        Word::read_from_bytes(&self.ask(request, 0, &[])).unwrap().value.get()
    }

    fn tell_word(&mut self, request: Request, value: u64) {
        self.tell(request, &value.to_ne_bytes(), &[]);
    }

    fn tell_state(&mut self, request: Request, index: u32, num: u32) {
        self.tell(request, state(index, num).as_bytes(), &[]);
    }

    /// `SET_VRING_KICK`, `_CALL` or `_ERR`.
    fn tell_event(&mut self, request: Request, index: u64, event: &EventFd) {
        self.tell(request, &index.to_ne_bytes(), &[fd(event)]);
    }

    fn ring(&self, format: Format, features: u64) -> DriverQueue {
        let (desc, driver, device) = ring_sizes(format, 16);
        let area = |len| self.memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let features = RingFeatures::from_bits(features);
        let ring = DriverRing::in_table(self.memory.table(), &addresses, format, 16, features).unwrap();
        DriverQueue { ring, kick: event(), call: event(), addresses, size: 16 }
    }

    fn addr(&self, index: u32, at: &RingAddresses) -> VringAddr {
        let user = |addr: GuestAddr| (addr.0 - self.memory.config().guest.0 + self.region.user.0).into();
        VringAddr {
            index: index.into(),
            flags: 0.into(),
            descriptor: user(at.desc),
            used: user(at.device),
            available: user(at.driver),
            log: at.device.0.into(),
        }
    }

    fn single_region(&self) -> SingleMemoryRegion {
        SingleMemoryRegion { padding: 0.into(), region: wire(&self.region) }
    }

    fn table(&self) -> Vec<u8> {
        [&1u32.to_ne_bytes()[..], &[0; 4], wire(&self.region).as_bytes()].concat()
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn state(index: u32, num: u32) -> VringState {
    VringState { index: index.into(), num: num.into() }
}

fn wire(region: &RegionConfig) -> MemoryRegion {
    MemoryRegion {
        guest_addr: region.guest.0.into(),
        size: region.len.into(),
        user_addr: region.user.0.into(),
        mmap_offset: region.mmap_offset.into(),
    }
}

/// The first messages of QEMU 7.2 on every connection: (virtio features, its calls are masked ones at first).
fn qemu_connects(script: &mut Script<'_>, queues: u64) -> Vec<EventFd> {
    script.ask_word(Request::GetFeatures);
    let offered = script.ask_word(Request::GetProtocolFeatures);
    script.tell_word(
        Request::SetProtocolFeatures,
        offered & !protocol::CRYPTO_SESSION & !protocol::DEVICE_STATE,
    );
    script.ask_word(Request::GetQueueNum);
    assert_eq!(script.ask_word(Request::GetMaxMemSlots), 509);
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    script.demand(Request::SetBackendReqFd, &[], &[theirs.as_fd()]);
    script.tell(Request::SetOwner, &[], &[]);
    script.ask_word(Request::GetFeatures);
    let masked: Vec<_> = (0..queues).map(|_| event()).collect();
    for (index, masked) in (0..).zip(&masked) {
        script.tell_event(Request::SetVringCall, index, masked);
        script.tell_event(Request::SetVringErr, index, masked);
    }
    masked
}

const QEMU_FEATURES: u64 =
    features::VERSION_1 | features::PROTOCOL_FEATURES | RingFeatures::EVENT_IDX | RingFeatures::INDIRECT_DESC;

/// What QEMU 7.2 sends from FEATURES_OK to DRIVER_OK. One ring; two are enabled.
fn qemu_starts(
    script: &mut Script<'_>,
    queue: &DriverQueue,
    inflight: &mut Option<(Inflight, std::os::fd::OwnedFd)>,
) {
    script.tell_word(Request::SetFeatures, QEMU_FEATURES);
    assert_eq!(script.ask_word(Request::GetStatus), 0);
    script.tell_word(Request::SetStatus, 8);
    if inflight.is_none() {
        let body = [[0u8; 16].as_slice(), &2u16.to_ne_bytes(), &16u16.to_ne_bytes(), &[0; 4]].concat();
        script.frontend.send_raw(Request::GetInflightFd.into(), VERSION, &body, &[]).unwrap();
        let mut reply = script.frontend.receive_raw().unwrap();
        assert_eq!(reply.body.len(), 24, "QEMU compares the size");
        *inflight = Some((Inflight::read_from_bytes(&reply.body).unwrap(), reply.fds.pop().unwrap()));
    }
    let (description, memfd) = inflight.as_ref().unwrap();
    script.tell(Request::SetInflightFd, description.as_bytes(), &[memfd.as_fd()]);
    script.tell_event(Request::SetVringCall, 0, &queue.call);
    script.tell_event(Request::SetVringCall, 1, &event());
    script.tell_word(Request::SetFeatures, QEMU_FEATURES);
    assert_eq!(script.ask_word(Request::GetStatus), 8);
}

fn qemu_starts_ring(script: &mut Script<'_>, queue: &DriverQueue, base: u32) {
    script.tell_state(Request::SetVringNum, 0, 16);
    script.tell_state(Request::SetVringBase, 0, base);
    let addr = script.addr(0, &queue.addresses);
    script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
    script.tell_event(Request::SetVringKick, 0, &queue.kick);
    script.tell_state(Request::SetVringEnable, 0, 1);
    script.tell_state(Request::SetVringEnable, 1, 1);
    script.ask_word(Request::GetStatus);
    script.tell_word(Request::SetStatus, 15);
}

/// QEMU 7.2 stops a device by writing status zero first and asking for the base last.
fn qemu_stops(script: &mut Script<'_>) -> u32 {
    script.tell_word(Request::SetStatus, 0);
    script.tell_state(Request::SetVringEnable, 0, 0);
    script.tell_state(Request::SetVringEnable, 1, 0);
    let reply = script.ask(Request::GetVringBase, 0, state(0, 0).as_bytes());
    VringState::read_from_bytes(&reply).unwrap().num.get()
}

#[test]
fn qemu_7_2_boots_reconnects_hot_plugs_migrates_and_resets() {
    let memory = memory();
    let buffers = Buffers::new(&memory);
    let mut server = Server::new();
    let mut script = Script::new(&server, &memory);
    let mut queue = script.ring(Format::Split, QEMU_FEATURES);
    let mut inflight = None;

    // Boot. The configuration is read before any feature is set.
    let _masked = qemu_connects(&mut script, 2);
    let config =
        script.ask(Request::GetConfig, 0, &[&[0; 4], &57u32.to_ne_bytes()[..], &[0; 4], &[0; 57]].concat());
    assert_eq!(config.len(), 12 + 57);
    qemu_starts(&mut script, &queue, &mut inflight);
    let region = script.single_region();
    script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
    qemu_starts_ring(&mut script, &queue, 0);
    buffers.exercise(&mut queue, &memory, 40);

    // The daemon dies and comes back: the same inflight region, the base of the last completion.
    drop(std::mem::replace(&mut server, Server::new()));
    script = Script::new(&server, &memory);
    let _masked = qemu_connects(&mut script, 2);
    qemu_starts(&mut script, &queue, &mut inflight);
    script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
    drain(&queue.call);
    qemu_starts_ring(&mut script, &queue, queue.ring.base_for_restart());
    assert_eq!(drain(&queue.call), 1, "an interrupt may have been lost with the predecessor");
    buffers.exercise(&mut queue, &memory, 40);

    // Memory is plugged in while the ring runs.
    let plugged = OwnMemory::new(1 << 20, GuestAddr(1 << 32)).unwrap();
    let more = SingleMemoryRegion { padding: 0.into(), region: wire(&plugged.config()) };
    script.demand(Request::AddMemReg, more.as_bytes(), &[plugged.fd()]);
    Buffers::new(&plugged).exercise(&mut queue, &plugged, 5);

    // Migration: log base, LOG_ALL, and the ring's address again with its own log flag; all with the ring running.
    let (log_area, log) = memory::Area::shared(1 << 18, "log").unwrap();
    let body = [(1u64 << 18).to_ne_bytes(), [0; 8]].concat();
    script.frontend.send_raw(Request::SetLogBase.into(), VERSION, &body, &[log.as_fd()]).unwrap();
    assert_eq!(script.frontend.receive_raw().unwrap().header.request.get(), u32::from(Request::SetLogBase));
    server.take_calls();
    script.demand(Request::SetFeatures, &(QEMU_FEATURES | features::LOG_ALL).to_ne_bytes(), &[]);
    script.ask_word(Request::GetStatus);
    let mut addr = script.addr(0, &queue.addresses);
    addr.flags = VringAddr::LOG.into();
    script.demand(Request::SetVringAddr, addr.as_bytes(), &[]);
    assert_eq!(server.take_calls(), ["log true"]);
    buffers.exercise(&mut queue, &memory, 5);
    let page = buffers.reply_addr().0 / 4096;
    let mut byte = [0];
    log_area.read_bytes((page / 8) as usize, &mut byte);
    assert_ne!(byte[0] & (1 << (page % 8)), 0);
    let base = qemu_stops(&mut script);
    assert_eq!(base, 90);

    // The migration is given up: the guest goes on here, with the same region, and without new memory messages.
    qemu_starts(&mut script, &queue, &mut inflight);
    qemu_starts_ring(&mut script, &queue, base);
    buffers.exercise(&mut queue, &memory, 5);

    // The guest resets: a new inflight region, and a driver that begins anew.
    qemu_stops(&mut script);
    let mut queue = script.ring(Format::Split, QEMU_FEATURES);
    inflight = None;
    qemu_starts(&mut script, &queue, &mut inflight);
    qemu_starts_ring(&mut script, &queue, 0);
    buffers.exercise(&mut queue, &memory, 40);
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn qemu_7_2_net_shakes_hands_once_per_queue_pair_and_enables_before_it_negotiates() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let mut script = Script::new(&server, &memory);
    let mut queue = script.ring(Format::Split, QEMU_FEATURES);
    let _masked = qemu_connects(&mut script, 2);
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
        script.demand(Request::SetFeatures, &QEMU_FEATURES.to_ne_bytes(), &[]);
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
