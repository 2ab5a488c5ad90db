//! A front-end that sends exactly what it is told to, and rings to use behind it.

use std::os::fd::BorrowedFd;

use memory::{GuestAddr, OwnMemory, RegionConfig};
use vhost_user::frontend::Frontend;
use vhost_user::frontend::driver::DriverQueue;
use vhost_user::message::{
    MemoryRegion, Request, SingleMemoryRegion, VERSION, VringAddr, VringState, Word, flags,
};
use virtqueue::driver::DriverRing;
use virtqueue::{Format, RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use super::{Server, fd};

pub struct Script<'m> {
    pub frontend: Frontend,
    memory: &'m OwnMemory,
    /// The memory as the front-end describes it.
    pub region: RegionConfig,
}

impl<'m> Script<'m> {
    pub fn new(server: &Server, memory: &'m OwnMemory) -> Self {
        Self { frontend: server.raw(), memory, region: memory.config() }
    }

    /// A message with no acknowledgement asked for.
    pub fn tell(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.frontend.send_raw(request.into(), VERSION, body, fds).unwrap();
    }

    /// A message whose acknowledgement is waited for, and must be zero.
    pub fn demand(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.frontend.send_raw(request.into(), VERSION | flags::NEED_REPLY, body, fds).unwrap();
        let ack = self.frontend.receive_raw().unwrap();
        assert_eq!(
            (ack.header.request.get(), ack.header.flags.get()),
            (request.into(), VERSION | flags::REPLY)
        );
        assert_eq!(ack.payload::<Word>().unwrap().value.get(), 0, "{request}");
    }

    pub fn ask(&mut self, request: Request, extra: u32, body: &[u8]) -> Vec<u8> {
        self.frontend.send_raw(request.into(), VERSION | extra, body, &[]).unwrap();
        let reply = self.frontend.receive_raw().unwrap();
        assert_eq!(
            (reply.header.request.get(), reply.header.flags.get()),
            (request.into(), VERSION | flags::REPLY)
        );
        reply.body
    }

    pub fn ask_word(&mut self, request: Request) -> u64 {
        Word::read_from_bytes(&self.ask(request, 0, &[])).unwrap().value.get()
    }

    pub fn tell_word(&mut self, request: Request, value: u64) {
        self.tell(request, &value.to_ne_bytes(), &[]);
    }

    pub fn tell_state(&mut self, request: Request, index: u32, num: u32) {
        self.tell(request, state(index, num).as_bytes(), &[]);
    }

    /// `SET_VRING_KICK`, `_CALL` or `_ERR`.
    pub fn tell_event(&mut self, request: Request, index: u64, event: &EventFd) {
        self.tell(request, &index.to_ne_bytes(), &[fd(event)]);
    }

    pub fn ring(&self, format: Format, features: u64) -> DriverQueue {
        let (desc, driver, device) = ring_sizes(format, 16);
        let area = |len| self.memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let features = RingFeatures::from_bits(features);
        let ring = DriverRing::in_table(self.memory.table(), &addresses, format, 16, features).unwrap();
        DriverQueue { ring, kick: event(), call: event(), addresses, size: 16 }
    }

    pub fn addr(&self, index: u32, at: &RingAddresses) -> VringAddr {
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

    pub fn single_region(&self) -> SingleMemoryRegion {
        single_region(&self.region)
    }

    pub fn table(&self) -> Vec<u8> {
        [&1u32.to_ne_bytes()[..], &[0; 4], wire(&self.region).as_bytes()].concat()
    }
}

pub fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

pub fn state(index: u32, num: u32) -> VringState {
    VringState { index: index.into(), num: num.into() }
}

pub fn wire(region: &RegionConfig) -> MemoryRegion {
    MemoryRegion {
        guest_addr: region.guest.0.into(),
        size: region.len.into(),
        user_addr: region.user.0.into(),
        mmap_offset: region.mmap_offset.into(),
    }
}

/// One region as `ADD_MEM_REG` describes it.
pub fn single_region(region: &RegionConfig) -> SingleMemoryRegion {
    SingleMemoryRegion { padding: 0.into(), region: wire(region) }
}
