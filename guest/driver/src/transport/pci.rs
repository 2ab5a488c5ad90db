//! virtio over PCI, modern devices only (virtio 1.3 §4.1).

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

use memory::{Area, GuestAddr};
use vhost_user::message::features;
use virtqueue::RingAddresses;

use super::{Doorbell, Identity, Transport, TransportError};
use crate::dma::Arena;
use crate::pci::capability::{COMMAND_MASTER, COMMAND_MEMORY, COMMAND_NO_INTX};
use crate::pci::{Claim, Found, Guard, PciError, bar};

/// `struct virtio_pci_common_cfg` (virtio 1.3 §4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const CONFIG_MSIX_VECTOR: usize = 16;
    pub const NUM_QUEUES: usize = 18;
    pub const DEVICE_STATUS: usize = 20;
    pub const CONFIG_GENERATION: usize = 21;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_MSIX_VECTOR: usize = 26;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
    pub const QUEUE_DRIVER: usize = 40;
    pub const QUEUE_DEVICE: usize = 48;
    /// Bytes up to here are there in every device.
    pub const LEN: usize = 56;
}

/// No interrupt (virtio 1.3 §4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// Device status (virtio 1.3 §2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// How long a device may take for a reset: it drains what is in flight.
const RESET: Duration = Duration::from_secs(10);

/// How often a configuration that changes is read again.
const ATTEMPTS: u32 = 100;

/// A device on PCI, driven by polling: its interrupts stay off.
pub struct Pci {
    // In this order: the device is quiet before the guard lets go of it, and free before others may take it.
    registers: Registers,
    guard: Option<Guard>,
    claim: Claim,
    identity: Identity,
}

/// The structures of the device.
struct Registers {
    common: Area,
    notify: Area,
    notify_step: u32,
    device: Option<Area>,
}

impl Pci {
    /// Takes the device and resets it. A [`Identity::Carrier`] may be bound by the driver of the kind it pretends to be.
    pub fn open(found: &Found, identity: Identity) -> Result<Self, TransportError> {
        Self::take(found, identity, matches!(identity, Identity::Carrier).then_some("virtiofs"))
    }

    /// The same, even if a virtio driver of that name has the device.
    pub fn take(found: &Found, identity: Identity, harmless: Option<&str>) -> Result<Self, TransportError> {
        let claim = Claim::new(found, harmless)?;
        claim.config().command(COMMAND_MEMORY | COMMAND_NO_INTX, COMMAND_MASTER)?;
        let registers = Registers::map(&claim)?;
        registers.reset()?;
        Ok(Self { registers, guard: None, claim, identity })
    }
}

impl Registers {
    fn map(claim: &Claim) -> Result<Self, TransportError> {
        let found = claim.found();
        let layout = claim.config().layout()?;
        let missing = |what| PciError::Missing { device: found.address(), what };
        let place = layout.common.ok_or_else(|| missing("common configuration"))?;
        let (notify, notify_step) = layout.notify.ok_or_else(|| missing("notification structure"))?;
        let common = bar::map(found, place)?;
        if common.len() < common::LEN || !common.is_aligned(4) {
            return Err(missing("complete common configuration").into());
        }
        let notify = bar::map(found, notify)?;
        if !notify.is_aligned(2) || !notify_step.is_multiple_of(2) {
            return Err(missing("usable notification structure").into());
        }
        let device = layout.device.map(|place| bar::map(found, place)).transpose()?;
        Ok(Self { common, notify, notify_step, device })
    }

    fn load16(&self, at: usize) -> u16 {
        self.common.load_u16(at, Relaxed)
    }

    fn store16(&self, at: usize, value: u16) {
        self.common.store_u16(at, value, Relaxed);
    }

    fn load32(&self, at: usize) -> u32 {
        self.common.load_u32(at, Relaxed)
    }

    fn store32(&self, at: usize, value: u32) {
        self.common.store_u32(at, value, Relaxed);
    }

    /// Wider fields are written as two (virtio 1.3 §4.1.3.1).
    fn store64(&self, at: usize, value: GuestAddr) {
        self.store32(at, value.0 as u32);
        self.store32(at + 4, (value.0 >> 32) as u32);
    }

    fn status(&self) -> u8 {
        self.common.read(common::DEVICE_STATUS)
    }

    /// Adds a bit; what was set stays (virtio 1.3 §2.1.1).
    fn add_status(&self, bit: u8) {
        self.common.write(common::DEVICE_STATUS, self.status() | bit);
    }

    /// virtio 1.3 §4.1.4.3.2: the driver waits until the status reads 0.
    fn reset(&self) -> Result<(), TransportError> {
        self.common.write(common::DEVICE_STATUS, 0u8);
        let begin = Instant::now();
        while self.status() != 0 {
            if begin.elapsed() > RESET {
                return Err(TransportError::Stubborn("let itself be reset"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn offered(&self) -> u64 {
        (0..2).fold(0, |bits, half| {
            self.store32(common::DEVICE_FEATURE_SELECT, half);
            bits | u64::from(self.load32(common::DEVICE_FEATURE)) << (32 * half)
        })
    }

    fn accept(&self, bits: u64) {
        for half in 0..2 {
            self.store32(common::DRIVER_FEATURE_SELECT, half);
            self.store32(common::DRIVER_FEATURE, (bits >> (32 * half)) as u32);
        }
    }

    fn select(&self, queue: u16) -> Result<(), TransportError> {
        if queue >= self.load16(common::NUM_QUEUES) {
            return Err(TransportError::NoQueue(queue));
        }
        self.store16(common::QUEUE_SELECT, queue);
        Ok(())
    }
}

impl Transport for Pci {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn describe(&self) -> String {
        let found = self.claim.found();
        format!("PCI device {}, virtio id {}", found.address(), found.id)
    }

    fn negotiate(&mut self, wanted: u64) -> Result<u64, TransportError> {
        let registers = &self.registers;
        registers.add_status(status::ACKNOWLEDGE);
        registers.add_status(status::DRIVER);
        let accepted = registers.offered() & wanted;
        if accepted & features::VERSION_1 == 0 {
            return Err(TransportError::Legacy);
        }
        registers.accept(accepted);
        registers.add_status(status::FEATURES_OK);
        if registers.status() & status::FEATURES_OK == 0 {
            return Err(TransportError::Features(accepted));
        }
        Ok(accepted)
    }

    fn queues(&self) -> u16 {
        self.registers.load16(common::NUM_QUEUES)
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError> {
        self.registers.select(index)?;
        match self.registers.load16(common::QUEUE_SIZE) {
            // virtio 1.3 §4.1.4.3: the queue is not available.
            0 => Err(TransportError::NoQueue(index)),
            size => Ok(size),
        }
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        let registers = &self.registers;
        let missing = |what| PciError::Missing { device: self.claim.found().address(), what };
        let area = registers.device.as_ref().ok_or_else(|| missing("configuration of its own"))?;
        let offset = offset as usize;
        if offset.checked_add(buf.len()).is_none_or(|end| end > area.len()) {
            return Err(PciError::OutOfRange(self.claim.found().address()).into());
        }
        let generation = || registers.common.read::<u8>(common::CONFIG_GENERATION);
        for _ in 0..ATTEMPTS {
            // virtio 1.3 §2.5.2: what changed meanwhile is read again.
            let before = generation();
            for (at, byte) in (offset..).zip(buf.iter_mut()) {
                *byte = area.read(at);
            }
            if generation() == before {
                return Ok(());
            }
        }
        Err(TransportError::Stubborn("leave its configuration alone"))
    }

    fn memory(&mut self, len: usize) -> Result<Arena, TransportError> {
        let arena = Arena::physical(len)?;
        // With the memory mapped, and before the device can reach it.
        let (config, farewell) = (self.claim.config().file(), self.claim.farewell());
        self.guard = Some(Guard::new(config, arena.holder(), &farewell)?);
        self.claim.config().command(COMMAND_MASTER, 0)?;
        Ok(arena)
    }

    fn start_queue(
        &mut self,
        index: u16,
        size: u16,
        addresses: &RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        let registers = &self.registers;
        registers.select(index)?;
        registers.store16(common::QUEUE_SIZE, size);
        registers.store16(common::QUEUE_MSIX_VECTOR, NO_VECTOR);
        registers.store64(common::QUEUE_DESC, addresses.desc);
        registers.store64(common::QUEUE_DRIVER, addresses.driver);
        registers.store64(common::QUEUE_DEVICE, addresses.device);
        let offset = u64::from(registers.load16(common::QUEUE_NOTIFY_OFF)) * u64::from(registers.notify_step);
        if offset + 2 > registers.notify.len() as u64 {
            return Err(PciError::OutOfRange(self.claim.found().address()).into());
        }
        registers.store16(common::QUEUE_ENABLE, 1);
        let area = registers.notify.clone();
        Ok(Doorbell::Register { area, offset: offset as usize, queue: index })
    }

    fn start(&mut self) -> Result<(), TransportError> {
        self.registers.store16(common::CONFIG_MSIX_VECTOR, NO_VECTOR);
        // The rings are written before the device may look at them.
        fence(SeqCst);
        self.registers.add_status(status::DRIVER_OK);
        Ok(())
    }

    fn lost(&mut self) -> bool {
        let status = self.registers.status();
        // A device that was unplugged reads as all ones.
        status & status::DRIVER_OK == 0 || status & status::NEEDS_RESET != 0
    }
}

impl Drop for Pci {
    fn drop(&mut self) {
        if let Err(error) = self.registers.reset() {
            tracing::warn!(%error, "The device is left as it is");
        }
        // Whatever it thinks of the reset, it writes nothing any more.
        if let Err(error) = self.claim.config().command(0, COMMAND_MASTER) {
            tracing::warn!(%error, "The device can still access memory");
        }
    }
}
