//! What the session knows about one ring, and how a ring comes to run.

use std::os::fd::OwnedFd;

use memory::{GuestAddr, MemoryTable, OutOfRange, UserAddr};
use virtqueue::layout::{DESC_BYTES, DESC_USED, PackedDescriptor};
use virtqueue::{RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::EventFd;

use super::refusal::Refusal;
use crate::message::VringAddr;

/// How the front-end announces buffers, from `SET_VRING_KICK`.
pub(super) enum Kick {
    /// By an eventfd.
    Fd(OwnedFd),
    /// Not at all: the ring must be polled (NOFD bit), or kicked in band.
    Polled,
}

/// A ring between two messages. While it runs its kick, call and error events live in its queue, which the device owns.
#[derive(Default)]
pub(super) struct Vring {
    pub size: Option<u16>,
    /// As on the wire: 16 bits for a split ring, 32 for a packed one.
    pub base: u32,
    pub addr: Option<VringAddr>,
    /// Set by `SET_VRING_KICK`: the ring shall run as soon as it can.
    pub kick: Option<Kick>,
    pub call: Option<EventFd>,
    pub err: Option<EventFd>,
    pub enabled: bool,
    /// The front-end has sent `SET_VRING_ENABLE`, so it knows how to.
    pub told: bool,
    /// Where the running ring is.
    pub running: Option<RingAddresses>,
    /// The front-end wants it to run; it may be parked for lack of memory.
    pub started: bool,
}

impl Vring {
    /// The front-end has set something up here.
    pub fn touched(&self) -> bool {
        self.size.is_some() || self.addr.is_some() || self.started || self.enabled
    }

    /// Where the ring is in this table, all three areas in full.
    pub fn locate(&self, table: &MemoryTable, features: RingFeatures) -> Result<RingAddresses, Refusal> {
        let (size, addr) = (self.size.unwrap_or(0), self.addr.as_ref());
        let addr = addr.ok_or(Refusal::BadValue(0))?;
        let (desc, driver, device) = ring_sizes(features.format(), size);
        Ok(RingAddresses {
            desc: guest_addr(table, addr.descriptor.get(), desc)?,
            driver: guest_addr(table, addr.available.get(), driver)?,
            device: guest_addr(table, addr.used.get(), device)?,
        })
    }

    /// The base to start from. A packed ring starts at slot 0 with both wrap counters set (virtio 1.3 §2.8.1), but
    /// virtio-driver sends 0 for a fresh one, which means something else on a ring that has gone round once: then the device
    /// has used at least one slot of it. So a ring without any used slot is a fresh one.
    pub fn start_base(&self, table: &MemoryTable, features: RingFeatures, addresses: &RingAddresses) -> u32 {
        const FRESH: u32 = 0x8000_8000;
        if !features.packed || self.base != 0 {
            return self.base;
        }
        let slots = usize::from(self.size.unwrap_or(0));
        let Ok(ring) = table.slice(addresses.desc, slots * DESC_BYTES) else { return self.base };
        let used = (0..slots)
            .filter_map(|slot| ring.read_obj::<PackedDescriptor>(slot * DESC_BYTES))
            .any(|descriptor| descriptor.flags.get() & DESC_USED != 0);
        if used { self.base } else { FRESH }
    }

    /// Where writes to the used ring are logged, if not at its own guest address (`VHOST_VRING_F_LOG`).
    pub fn used_log(&self, addresses: &RingAddresses) -> Option<GuestAddr> {
        let addr = self.addr.as_ref().filter(|addr| addr.flags.get() & VringAddr::LOG != 0)?;
        Some(GuestAddr(addr.log.get())).filter(|&log| log != addresses.device)
    }
}

fn guest_addr(table: &MemoryTable, user: u64, len: usize) -> Result<GuestAddr, OutOfRange> {
    table.user_to_guest(UserAddr(user), len)
}

/// The alignment every ring area needs: 16, 2 and 4 bytes for a split ring (virtio 1.3 §2.7), 16, 4 and 4 for a packed one
/// (§2.8); the format may not be known yet.
pub(super) fn is_aligned(addr: &VringAddr) -> bool {
    let multiple = |value: u64, of: u64| value.is_multiple_of(of);
    multiple(addr.descriptor.get(), 16) && multiple(addr.available.get(), 2) && multiple(addr.used.get(), 4)
}
