//! Where the sectors of a disk are. `mem` and `null` finish a request inside the burst ([`Inline`]); a file is
//! served asynchronously by the worker's I/O engine (`crate::transfer`).

pub mod file;
pub mod mem;
pub mod null;
pub mod sys;

pub use file::FileBackend;
pub use mem::MemBackend;
pub use null::NullBackend;

use crate::options::{DiskOptions, InvalidOption, Source};
use crate::request::{Extent, RangeOp, Status};
use memory::GuestSlice;
use std::io;
use std::path::PathBuf;

/// The backend of one disk, shared by all workers.
#[derive(Debug)]
pub enum Backend {
    /// A regular file or block device.
    File(FileBackend),
    /// Memory of the daemon.
    Mem(MemBackend),
    /// Nothing.
    Null(NullBackend),
}

/// What opening a source found out, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hints {
    /// Size of the disk.
    pub bytes: u64,
    /// Smallest block that can be read or written.
    pub logical: u32,
    /// Block that is written without reading first.
    pub physical: u32,
    /// Preferred size of an I/O, 0 when there is none.
    pub optimal: u32,
    /// Whether secure erase works.
    pub secure_erase: bool,
}

impl Hints {
    fn memory(bytes: u64, secure_erase: bool) -> Self {
        Self { bytes, logical: 512, physical: 4096, optimal: 0, secure_erase }
    }
}

impl Backend {
    /// Opens the source of a disk.
    pub fn open(options: &DiskOptions) -> Result<(Self, Hints), OpenError> {
        let (backend, hints) = match &options.source {
            Source::File(path) => {
                let (file, hints) = FileBackend::open(path, options)?;
                (Self::File(file), hints)
            }
            Source::Mem(bytes) => {
                let memory = MemBackend::new(*bytes).map_err(OpenError::Memory)?;
                (Self::Mem(memory), Hints::memory(*bytes, true))
            }
            Source::Null(bytes) => (Self::Null(NullBackend), Hints::memory(*bytes, false)),
        };
        Ok((backend, hints.checked()?))
    }

    /// The file, when there is one.
    pub fn file(&self) -> Option<&FileBackend> {
        match self {
            Self::File(file) => Some(file),
            Self::Mem(_) | Self::Null(_) => None,
        }
    }

    /// Most requests of one queue in a round. The bound keeps a queue from starving the others of its worker; a file's is
    /// smaller, because what one round submits tends to complete together:
    /// - from the page cache, all of it before the driver sees the first completion;
    /// - with direct I/O, as one batch of the device, which idles while driver and worker turn it around. Batches of 4
    ///   reach the IOPS of single requests here, batches of 32 lose a seventh.
    pub fn burst(&self) -> u16 {
        match self {
            Self::File(file) if file.direct().is_some() => 4,
            Self::File(_) => 16,
            Self::Mem(_) | Self::Null(_) => 64,
        }
    }

    /// Name for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File(file) if file.is_block_device() => "block-device",
            Self::File(_) => "file",
            Self::Mem(_) => "mem",
            Self::Null(_) => "null",
        }
    }
}

/// A backend that finishes each request before the call returns. The data path is compiled once for each.
pub trait Inline {
    /// Fills `buffer` from `offset` on.
    fn read(&self, offset: u64, buffer: GuestSlice<'_>) -> Status;
    /// Stores `buffer` at `offset`.
    fn write(&self, offset: u64, buffer: GuestSlice<'_>) -> Status;
    /// Discards, zeroes or erases `extent`.
    fn range(&self, op: RangeOp, extent: Extent) -> Status;
    /// Whether reads and writes need no look at the guest's buffers at all.
    const IGNORES_DATA: bool = false;
}

/// Why a disk could not be opened; one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be opened.
    #[error("Cannot open the disk '{}': {}", path.display(), reason(source))]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, FIFO, character device or socket.
    #[error("'{}' is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    /// A block device that takes no writes.
    #[error("The block device '{}' is read-only: it can be served with --read-only", .0.display())]
    ReadOnly(PathBuf),
    /// O_DIRECT refused.
    #[error("The filesystem of '{}' does not support direct I/O", .0.display())]
    NoDirect(PathBuf),
    /// A block size that direct I/O cannot serve.
    #[error("Direct I/O on this disk needs a block size of at least {least}, not {asked}")]
    BlockSize {
        /// `--block-size`.
        asked: u32,
        /// What the host needs.
        least: u32,
    },
    /// No memory for `mem:SIZE`.
    #[error("Cannot create the memory disk: {}", reason(.0))]
    Memory(io::Error),
    /// Options that contradict each other or the file.
    #[error(transparent)]
    Invalid(#[from] InvalidOption),
}

/// An I/O error in words, without the number that `io::Error` appends.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
