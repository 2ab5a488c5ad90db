//! A small virtio-blk driver in the test itself: one ring, one request at a time, and a way to misbehave.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use vhost_user::frontend::driver::{Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::features;

use crate::bare::{Bare, DATA, EVENT_IDX, HEADER, INDIRECT_DESC, NO_STATUS, STATUS};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

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
pub struct Driver(Bare);

impl Deref for Driver {
    type Target = Bare;

    fn deref(&self) -> &Bare {
        &self.0
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut Bare {
        &mut self.0
    }
}

impl Driver {
    /// Connects to `socket`, negotiates and starts a split or packed ring of `size` entries.
    ///
    /// # Errors
    /// When the backend refuses anything.
    pub fn attach(socket: &Path, packed: bool, size: u16) -> Result<Self> {
        let wanted =
            features::VERSION_1 | INDIRECT_DESC | EVENT_IDX | if packed { features::RING_PACKED } else { 0 };
        let session = Session::connect(socket, wanted, USEFUL_PROTOCOL_FEATURES)?;
        ensure!(
            session.features() & wanted == wanted,
            "not all features are offered: {:#x}",
            session.features()
        );
        Ok(Self(Bare::attach(session, 0, size)?))
    }

    /// Writes one sector full of `byte`.
    ///
    /// # Errors
    /// When the request is not completed with success.
    pub fn write(&mut self, sector: u64, byte: u8) -> Result<()> {
        self.put(DATA, &[byte; SECTOR])?;
        self.succeed(Kind::Write, sector)
    }

    /// Reads one sector.
    ///
    /// # Errors
    /// When the request is not completed with success.
    pub fn read(&mut self, sector: u64) -> Result<Vec<u8>> {
        self.put(DATA, &[0xa5; SECTOR])?;
        self.succeed(Kind::Read, sector)?;
        self.get(DATA, SECTOR)
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
        self.finish()
    }

    /// Makes one request visible without a kick.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn start(&mut self, kind: Kind, sector: u64) -> Result<()> {
        self.put_header(kind as u32, sector)?;
        let (header, data, status) = ((HEADER, 16), (DATA, SECTOR as u32), (STATUS, 1));
        match kind {
            Kind::Read => self.0.start(&[header], &[data, status]),
            Kind::Write => self.0.start(&[header, data], &[status]),
            Kind::Flush => self.0.start(&[header], &[status]),
        }
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
}
