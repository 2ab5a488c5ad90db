//! A small virtio-blk driver in the test itself: one ring, one request at a time, and a way to misbehave.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memory::{GuestAddr, MemoryMap, MemoryTable, RegionConfig, UserAddr};
use vhost_user::frontend::driver::{Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::features;
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{RingAddresses, ring_sizes};
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
/// Bytes of a sector.
pub const SECTOR: usize = 512;

const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PATIENCE: Duration = Duration::from_secs(10);
/// A status no device writes.
const NO_STATUS: u8 = 0xff;

/// Request types (virtio 1.3 §5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// VIRTIO_BLK_T_IN
    Read = 0,
    /// VIRTIO_BLK_T_OUT
    Write = 1,
    /// VIRTIO_BLK_T_FLUSH
    Flush = 4,
}

/// An attached disk with one running ring.
pub struct Driver {
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

impl Driver {
    /// Connects to `socket`, negotiates and starts a split or packed ring of `size` entries.
    ///
    /// # Errors
    /// When the backend refuses anything.
    pub fn attach(socket: &Path, packed: bool, size: u16) -> Result<Self> {
        let wanted =
            features::VERSION_1 | INDIRECT_DESC | EVENT_IDX | if packed { features::RING_PACKED } else { 0 };
        let mut session = Session::connect(socket, wanted, USEFUL_PROTOCOL_FEATURES)?;
        ensure!(
            session.features() & wanted == wanted,
            "not all features are offered: {:#x}",
            session.features()
        );

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
        session.setup_inflight(1, size)?;
        session.frontend.set_vring_err(0, Some(device_error.as_fd()))?;
        // vhost-user: SET_VRING_BASE of a packed ring has both wrap counters, which start as 1.
        let base = if packed { 0x8000_8000 } else { 0 };
        session.start_queue(0, size, base, &addresses, &kick, &call)?;
        Ok(Self { session, ring, kick, table, file, error, _map: map, _call: call })
    }

    /// Writes one sector full of `byte`.
    ///
    /// # Errors
    /// When the request is not completed with success.
    pub fn write(&mut self, sector: u64, byte: u8) -> Result<()> {
        self.table.slice(GuestAddr(BASE + DATA), SECTOR)?.fill(byte);
        self.succeed(Kind::Write, sector)
    }

    /// Reads one sector.
    ///
    /// # Errors
    /// When the request is not completed with success.
    pub fn read(&mut self, sector: u64) -> Result<Vec<u8>> {
        self.table.slice(GuestAddr(BASE + DATA), SECTOR)?.fill(0xa5);
        self.succeed(Kind::Read, sector)?;
        let mut bytes = vec![0; SECTOR];
        self.table.slice(GuestAddr(BASE + DATA), SECTOR)?.read(0, &mut bytes);
        Ok(bytes)
    }

    /// Writes a sector, reads it back and compares.
    ///
    /// # Errors
    /// When any of that fails.
    pub fn works(&mut self, sector: u64, byte: u8) -> Result<()> {
        self.write(sector, byte)?;
        ensure!(self.read(sector)? == [byte; SECTOR], "sector {sector} reads back differently");
        Ok(())
    }

    fn succeed(&mut self, kind: Kind, sector: u64) -> Result<()> {
        match self.request(kind, sector)? {
            0 => Ok(()),
            status => bail!("{kind:?} of sector {sector} ended with status {status}"),
        }
    }

    /// Runs one request with a sector of data and returns its status.
    ///
    /// # Errors
    /// When it is not completed in time.
    pub fn request(&mut self, kind: Kind, sector: u64) -> Result<u8> {
        self.start(kind, sector)?;
        self.kick.write(1)?;
        let mut used = None;
        wait_until(PATIENCE, || {
            used = self.ring.pop();
            Ok(used.is_some())
        })?;
        used.context("The request was not completed in time")?;
        Ok(self.table.slice(GuestAddr(BASE + STATUS), 1)?.read_obj(0).unwrap_or(NO_STATUS))
    }

    /// Makes one request visible without a kick.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn start(&mut self, kind: Kind, sector: u64) -> Result<()> {
        self.put_header(kind as u32, sector)?;
        let segment = |offset, len| Segment { addr: GuestAddr(BASE + offset), len };
        let (header, data, status) = (segment(HEADER, 16), segment(DATA, SECTOR as u32), segment(STATUS, 1));
        match kind {
            Kind::Read => self.ring.add(&[header], &[data, status], 0)?,
            Kind::Write => self.ring.add(&[header, data], &[status], 0)?,
            Kind::Flush => self.ring.add(&[header], &[status], 0)?,
        }
        // Kicked by the caller whether or not the device wants it.
        let _ = self.ring.publish();
        Ok(())
    }

    /// Writes a request header (virtio 1.3 §5.2.6) and an untouched status.
    ///
    /// # Errors
    /// None in practice.
    pub fn put_header(&self, kind: u32, sector: u64) -> Result<()> {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header)?;
        self.put(STATUS, &[NO_STATUS])
    }

    /// Writes anything anywhere in the shared memory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.table.slice(GuestAddr(BASE + offset), bytes.len())?.write(0, bytes);
        Ok(())
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
