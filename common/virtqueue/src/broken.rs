//! Why a ring was given up, or could not be started.

use memory::OutOfRange;

/// A violation by the driver. The first one latches its ring as broken; other rings are not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// `avail.idx` moved by more than the ring holds, or more packed slots are claimed than exist.
    #[error("The driver made {available} entries available in a ring of {size}")]
    TooManyAvailable {
        /// Entries claimed.
        available: u32,
        /// Size of the ring.
        size: u16,
    },
    /// A head or a `next` link points outside its table.
    #[error("Descriptor index {index} in a table of {limit}")]
    IndexOutOfRange {
        /// The index read.
        index: u16,
        /// Entries of the table.
        limit: u16,
    },
    /// A chain visits more descriptors than its table has.
    #[error("Descriptor chain loops")]
    DescriptorLoop,
    /// A head (split) or buffer id (packed) that is still in flight was offered again.
    #[error("Buffer {id} was offered again while in flight")]
    StillInFlight {
        /// Head index or buffer id.
        id: u16,
    },
    /// A buffer or indirect table lies outside guest memory.
    #[error("A buffer lies outside guest memory")]
    OutOfRange(#[from] OutOfRange),
    /// An indirect table that the specification forbids.
    #[error("Bad indirect table: {0}")]
    BadIndirect(BadIndirect),
    /// A readable buffer behind a writable one (virtio 1.3 §2.7.4.2).
    #[error("Readable buffer after a writable one")]
    ReadableAfterWritable,
    /// The buffers of one chain add up to more than `u32::MAX` bytes (virtio 1.3 §2.7.4.1).
    #[error("The chain is longer than 4 GiB")]
    TooLong,
    /// The device side asked for more chains than `fetch` granted.
    #[error("No chain was fetched")]
    NothingFetched,
    /// The frontend lets an eventfd of the ring fill up, and writes to it wait.
    #[error("An eventfd of the ring is full, and a write to it had to wait")]
    Deaf,
    /// The device found a request that cannot even be answered with an error status.
    #[error("Request refused: {0}")]
    Refused(&'static str),
}

/// What is wrong with an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIndirect {
    /// INDIRECT_DESC was not negotiated.
    #[error("the feature was not negotiated")]
    NotNegotiated,
    /// A table inside a table (virtio 1.3 §2.7.5.3.1).
    #[error("nested")]
    Nested,
    /// INDIRECT and NEXT together (virtio 1.3 §2.7.5.3.1).
    #[error("followed by another descriptor")]
    WithNext,
    /// Zero, no multiple of 16, or over the limit of this implementation.
    #[error("length of {0} bytes")]
    Length(u32),
}

/// A ring that cannot be started: a fault of the frontend, which set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Not a size of this format.
    #[error("Bad ring size {0}")]
    BadSize(u16),
    /// An area is not aligned as virtio 1.3 §2.7 or §2.8.10.1 demands.
    #[error("Ring area at {addr:#x} is not aligned to {align}")]
    Misaligned {
        /// Guest address of the area.
        addr: u64,
        /// Alignment it needs.
        align: u64,
    },
    /// An area lies outside guest memory.
    #[error("A ring area lies outside guest memory")]
    OutOfRange(#[from] OutOfRange),
    /// SET_VRING_BASE gave indices that the ring does not have.
    #[error("Bad vring base {base:#x} for a ring of {size}")]
    BadBase {
        /// The value as on the wire.
        base: u32,
        /// Size of the ring.
        size: u16,
    },
    /// The inflight region is not one this ring can have written.
    #[error("Bad inflight region: {0}")]
    BadInflight(&'static str),
}
