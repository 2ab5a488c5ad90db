//! One ring of a device, with every byte of it in reach: what the small drivers here stand on, and what a hostile one uses.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memory::{GuestAddr, MemoryMap, MemoryTable, RegionConfig, UserAddr};
use vhost_user::frontend::driver::Session;
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{Format, RingAddresses, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::process::wait_until;

/// Where the shared memory starts for the device.
pub const BASE: u64 = 1 << 20;
/// Its size.
pub const LEN: u64 = 1 << 20;
/// Offsets in it: the three ring areas, a request's header, its status byte, its data.
pub const DESC: u64 = 0;
/// Driver area.
pub const AVAIL: u64 = 0x8000;
/// Device area.
pub const USED: u64 = 0x1_0000;
/// Request header.
pub const HEADER: u64 = 0x2_0000;
/// Status byte.
pub const STATUS: u64 = 0x2_0100;
/// Data.
pub const DATA: u64 = 0x4_0000;

/// Ring features that drivers take when they are offered.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Events at an index.
pub const EVENT_IDX: u64 = 1 << 29;

const PATIENCE: Duration = Duration::from_secs(10);
/// A status no device writes.
pub const NO_STATUS: u8 = 0xff;

/// A running ring.
pub struct Bare {
    /// The connection.
    pub session: Session,
    /// The driver side of the ring.
    pub ring: DriverRing,
    /// Written to wake the device.
    pub kick: EventFd,
    table: Arc<MemoryTable>,
    file: File,
    /// The other end of what the device has as the ring's error event: a write is a write.
    error: UnixStream,
    // Keeps the mapping.
    _map: MemoryMap,
    _call: EventFd,
}

impl Bare {
    /// Starts ring `index` with `size` entries in the format that the session has negotiated. The device has no other
    /// memory than this ring's.
    ///
    /// # Errors
    /// When the backend refuses anything.
    pub fn attach(mut session: Session, index: u16, size: u16) -> Result<Self> {
        // A file rather than a memfd, so that a test can cut it.
        let file = tempfile::tempfile()?;
        file.set_len(LEN)?;
        let region = RegionConfig {
            guest: GuestAddr(BASE),
            len: LEN,
            user: UserAddr(0x7f00_0000_0000),
            mmap_offset: 0,
        };
        let mut map = MemoryMap::new();
        let table = map.add(region, file.try_clone()?.into())?;
        session.share_memory(&region, file.as_fd())?;

        let features = session.ring_features();
        let (desc, ..) = ring_sizes(features.format(), size);
        ensure!(desc as u64 <= AVAIL, "a ring of {size} entries does not fit");
        let addresses = RingAddresses {
            desc: GuestAddr(BASE + DESC),
            driver: GuestAddr(BASE + AVAIL),
            device: GuestAddr(BASE + USED),
        };
        let ring = DriverRing::in_table(&table, &addresses, features.format(), size, features)?;
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let (kick, call) = (event()?, event()?);
        let (error, device_error) = UnixStream::pair()?;
        session.setup_inflight(index + 1, size)?;
        session.frontend.set_vring_err(index, Some(device_error.as_fd()))?;
        // vhost-user: SET_VRING_BASE of a packed ring has both wrap counters, which start as 1.
        let base = if features.format() == Format::Packed { 0x8000_8000 } else { 0 };
        session.start_queue(index, size, base, &addresses, &kick, &call)?;
        Ok(Self { session, ring, kick, table, file, error, _map: map, _call: call })
    }

    /// Makes one chain visible without a kick. A segment is an offset in the memory and a length.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn start(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Result<()> {
        let segments = |list: &[(u64, u32)]| -> Vec<Segment> {
            list.iter().map(|&(offset, len)| Segment { addr: GuestAddr(BASE + offset), len }).collect()
        };
        self.ring.add(&segments(readable), &segments(writable), 0)?;
        // Kicked by the caller whether or not the device wants it.
        let _ = self.ring.publish();
        Ok(())
    }

    /// Runs one chain to its end; its status byte is at [`STATUS`], and no device has written it before.
    ///
    /// # Errors
    /// When it is not completed in time.
    pub fn run(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Result<u8> {
        self.put(STATUS, &[NO_STATUS])?;
        self.start(readable, writable)?;
        self.finish()
    }

    /// Kicks the device and waits for the chain that was started.
    ///
    /// # Errors
    /// When it is not completed in time.
    pub fn finish(&mut self) -> Result<u8> {
        self.kick.write(1)?;
        let mut used = None;
        wait_until(PATIENCE, || {
            used = self.ring.pop();
            Ok(used.is_some())
        })?;
        used.context("The request was not completed in time")?;
        Ok(self.get(STATUS, 1)?[0])
    }

    /// Writes anything anywhere in the shared memory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.table.slice(GuestAddr(BASE + offset), bytes.len())?.write(0, bytes);
        Ok(())
    }

    /// Reads from anywhere in the shared memory.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn get(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.table.slice(GuestAddr(BASE + offset), len)?.read(0, &mut bytes);
        Ok(bytes)
    }

    /// Whether the device reports a broken ring within a few seconds (vhost-user: SET_VRING_ERR).
    ///
    /// # Errors
    /// None in practice.
    pub fn reports_broken_ring(&self) -> Result<bool> {
        self.error.set_read_timeout(Some(PATIENCE))?;
        Ok((&self.error).read(&mut [0; 8]).is_ok_and(|count| count == 8))
    }

    /// Cuts the file behind the shared memory. This side must not touch the memory any more.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn truncate_memory(&self) -> Result<()> {
        Ok(self.file.set_len(0)?)
    }
}
