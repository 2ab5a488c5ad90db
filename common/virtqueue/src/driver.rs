//! Driver side; being filled in.
use memory::{Area, GuestAddr, MemoryTable};

use crate::broken::SetupError;
use crate::setup::{Format, RingAddresses, RingFeatures};

/// A buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: GuestAddr,
    /// Bytes.
    pub len: u32,
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What `add` was given.
    pub cookie: u32,
    /// Bytes the device wrote.
    pub len: u32,
}

/// The ring has too few free descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The ring is full")]
pub struct Full;

/// The three areas, mapped.
pub struct RingAreas {
    /// Descriptors.
    pub desc: Area,
    /// Driver area.
    pub driver: Area,
    /// Device area.
    pub device: Area,
}

/// Memory for indirect tables: one table of `entries` descriptors for each ring entry.
pub struct IndirectTables {
    /// `16 * entries * ring size` bytes, 16-aligned; its guest address is what descriptors carry.
    pub area: Area,
    /// Descriptors a table.
    pub entries: u16,
}

/// Driver side of a ring of either format.
pub enum DriverRing {
    /// Split.
    Split(RingAreas),
    /// Packed.
    Packed(RingAreas),
}

impl DriverRing {
    /// A fresh ring in zeroed areas of `ring_sizes` bytes.
    pub fn new(areas: RingAreas, format: Format, size: u16, _features: RingFeatures) -> Result<Self, SetupError> {
        crate::setup::QueueSize::new(format, size)?;
        Ok(match format {
            Format::Split => Self::Split(areas),
            Format::Packed => Self::Packed(areas),
        })
    }
    /// The same with the areas looked up in a table.
    pub fn in_table(
        _table: &MemoryTable,
        _addresses: RingAddresses,
        _format: Format,
        _size: u16,
        _features: RingFeatures,
    ) -> Result<Self, SetupError> {
        unreachable!()
    }
    /// Gives the ring memory for indirect tables.
    pub fn set_indirect(&mut self, _tables: IndirectTables) -> Result<(), SetupError> {
        unreachable!()
    }
    /// Adds a request as a chain of descriptors; not visible before `publish`.
    pub fn add(&mut self, _readable: &[Segment], _writable: &[Segment], _cookie: u32) -> Result<(), Full> {
        Err(Full)
    }
    /// Adds a request as one descriptor with an indirect table; needs `set_indirect`.
    pub fn add_indirect(&mut self, _readable: &[Segment], _writable: &[Segment], _cookie: u32) -> Result<(), Full> {
        Err(Full)
    }
    /// Shows everything added to the device; `true` = kick it.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        false
    }
    /// The next completion.
    pub fn pop(&mut self) -> Option<Used> {
        None
    }
    /// Asks for interrupts; `true` = there are completions already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        false
    }
    /// Asks for no interrupts.
    pub fn suppress(&mut self) {}
    /// Free descriptors.
    pub fn free(&self) -> u16 {
        0
    }
}
