//! Crate `vhost` as an independent front-end: the codec of cloud-hypervisor and Firecracker.

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use memory::{Area, GuestAddr, OwnMemory};
use support::{Buffers, FEATURES, QUEUES, Server, drain, eventually, memory};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserHeaderFlag,
    VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user::frontend::driver::DriverQueue;
use vhost_user::message::features;
use virtqueue::driver::DriverRing;
use virtqueue::{Format, RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn negotiated(server: &Server) -> (Frontend, VhostUserProtocolFeatures) {
    let mut frontend = Frontend::from_stream(server.stream(), 4);
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(offered & FEATURES, FEATURES);
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features::VERSION_1 | features::PROTOCOL_FEATURES).unwrap();
    (frontend, protocol)
}

fn region(memory: &OwnMemory) -> VhostUserMemoryRegionInfo {
    let config = memory.config();
    VhostUserMemoryRegionInfo {
        guest_phys_addr: config.guest.0,
        memory_size: config.len,
        userspace_addr: config.user.0,
        mmap_offset: 0,
        mmap_handle: memory.fd().as_raw_fd(),
    }
}

fn driver_queue(memory: &OwnMemory) -> DriverQueue {
    let (desc, driver, device) = ring_sizes(Format::Split, 16);
    let area = |len| memory.alloc(len, 64).unwrap();
    let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
    let ring =
        DriverRing::in_table(memory.table(), &addresses, Format::Split, 16, RingFeatures::default()).unwrap();
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    DriverQueue { ring, kick: event(), call: event(), addresses, size: 16 }
}

fn start(frontend: &mut Frontend, memory: &OwnMemory, queue: &DriverQueue, base: u16, log: Option<u64>) {
    let user = |addr: GuestAddr| memory.user_of(addr).0;
    frontend.set_vring_num(0, 16).unwrap();
    let config = VringConfigData {
        queue_max_size: 16,
        queue_size: 16,
        flags: u32::from(log.is_some()),
        desc_table_addr: user(queue.addresses.desc),
        used_ring_addr: user(queue.addresses.device),
        avail_ring_addr: user(queue.addresses.driver),
        log_addr: log,
    };
    frontend.set_vring_addr(0, &config).unwrap();
    frontend.set_vring_base(0, base).unwrap();
    frontend.set_vring_call(0, &queue.call).unwrap();
    frontend.set_vring_err(0, &queue.call).unwrap();
    frontend.set_vring_kick(0, &queue.kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
}

#[test]
fn a_ring_set_up_by_crate_vhost_is_served() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let (mut frontend, _) = negotiated(&server);
    assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
    frontend.set_mem_table(&[region(&memory)]).unwrap();
    let mut queue = driver_queue(&memory);
    start(&mut frontend, &memory, &queue, 0, None);
    assert_eq!(drain(&queue.call), 1);
    buffers.exercise(&mut queue, &memory, 40);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 40);
    start(&mut frontend, &memory, &queue, 40, None);
    buffers.exercise(&mut queue, &memory, 10);
    frontend.reset_device().unwrap();
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn memory_slots_come_and_go_by_crate_vhost() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let (mut frontend, _) = negotiated(&server);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
    frontend.add_mem_region(&region(&memory)).unwrap();
    let mut queue = driver_queue(&memory);
    start(&mut frontend, &memory, &queue, 0, None);
    frontend.remove_mem_region(&region(&memory)).unwrap();
    frontend.add_mem_region(&region(&memory)).unwrap();
    buffers.exercise(&mut queue, &memory, 5);
    let overlapping =
        VhostUserMemoryRegionInfo { guest_phys_addr: memory.config().guest.0 + 4096, ..region(&memory) };
    assert!(frontend.add_mem_region(&overlapping).is_err(), "the overlap is refused");
}

#[test]
fn configuration_by_crate_vhost() {
    let server = Server::new();
    let (mut frontend, _) = negotiated(&server);
    let buf = [0u8; 200];
    let (head, config) = frontend.get_config(0, 200, VhostUserConfigFlags::WRITABLE, &buf).unwrap();
    assert_eq!((head.size, config.len(), config[0], config[199]), (200, 200, 1, 0));
    frontend.set_config(8, VhostUserConfigFlags::WRITABLE, &[0x77]).unwrap();
    assert_eq!(server.state().config[8], 0x77);
    // It calls every write of the guest a restored one (flags 1), and a restored one something else (flags 2).
    frontend.set_config(9, VhostUserConfigFlags::LIVE_MIGRATION, &[0x78]).unwrap();
    assert_eq!(server.state().config[9], 0x78);
    assert!(frontend.set_config(60, VhostUserConfigFlags::WRITABLE, &[0]).is_err());
}

#[test]
fn inflight_and_log_by_crate_vhost() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let (mut frontend, _) = negotiated(&server);
    frontend.set_mem_table(&[region(&memory)]).unwrap();
    let (inflight, file) = frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, 16)).unwrap();
    assert_eq!(inflight.mmap_size, virtqueue::inflight::region_size(Format::Split, 16) as u64);
    frontend.set_inflight_fd(&inflight, file.as_raw_fd()).unwrap();
    let mut queue = driver_queue(&memory);
    let used = queue.addresses.device;
    start(&mut frontend, &memory, &queue, 0, None);
    assert!(server.notifier.status().inflight);

    let size = 4096;
    let (area, fd): (Area, OwnedFd) = Area::shared(size, "log").unwrap();
    let log = VhostUserDirtyLogRegion { mmap_size: size as u64, mmap_offset: 0, mmap_handle: fd.as_raw_fd() };
    frontend.set_log_base(0, Some(log)).unwrap();
    frontend.set_features(features::VERSION_1 | features::PROTOCOL_FEATURES | features::LOG_ALL).unwrap();
    buffers.exercise(&mut queue, &memory, 3);
    for addr in [used, buffers.reply_addr()] {
        let page = addr.0 / 4096;
        let mut byte = [0];
        area.read_bytes((page / 8) as usize, &mut byte);
        assert_ne!(byte[0] & (1 << (page % 8)), 0, "page {page}");
    }
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn device_state_by_crate_vhost() {
    let server = Server::new();
    let (frontend, _) = negotiated(&server);
    server.state().saved = b"state of the device".to_vec();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (save, stopped) = (VhostTransferStateDirection::SAVE, VhostTransferStatePhase::STOPPED);
    assert!(frontend.set_device_state_fd(save, stopped, writer.into()).unwrap().is_none());
    let mut saved = String::new();
    std::io::Read::read_to_string(&mut reader, &mut saved).unwrap();
    frontend.check_device_state().unwrap();
    assert_eq!(saved, "state of the device");
}

/// Counts announcements and reads the configuration before it acknowledges each, as QEMU does.
struct Announced {
    count: AtomicU32,
    main: Mutex<Frontend>,
}

impl VhostUserFrontendReqHandler for Announced {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        let mut main = self.main.lock().unwrap();
        main.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8]).map_err(std::io::Error::other)?;
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }
}

#[test]
fn configuration_changes_reach_crate_vhost_on_the_back_channel() {
    let (server, memory) = (Server::new(), memory());
    let (mut frontend, _) = negotiated(&server);
    frontend.set_mem_table(&[region(&memory)]).unwrap();
    let queue = driver_queue(&memory);
    start(&mut frontend, &memory, &queue, 0, None);
    let announced = Arc::new(Announced { count: AtomicU32::new(0), main: Mutex::new(frontend.clone()) });
    let mut handler = FrontendReqHandler::new(announced.clone()).unwrap();
    handler.set_reply_ack_flag(true);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    for round in 1..=3 {
        server.notifier.config_changed();
        handler.handle_request().unwrap();
        assert_eq!(announced.count.load(Ordering::Relaxed), round);
    }
    eventually("the session has taken the acknowledgements", || server.notifier.status().refused == 0);
}
