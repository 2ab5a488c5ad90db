//! What an operator says about a disk, checked once: the source, the limits of the configuration space, the
//! cache mode. Units are bytes unless the name says sectors.

use crate::config::{SECTOR, SERIAL_LEN};
use crate::limit::Limits;
use crate::request::MAX_RANGES;
use daemon::cli::ByteSize;
use daemon::device::{BadValue, check_name, check_queue_size, check_range};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the sectors of a disk are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A regular file or a block device.
    File(PathBuf),
    /// Anonymous memory of this many bytes; gone when the process ends.
    Mem(u64),
    /// Nothing: writes are dropped and reads leave the guest's buffer as it is. For measuring.
    Null(u64),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Mem(bytes) => write!(f, "mem:{bytes}"),
            Self::Null(bytes) => write!(f, "null:{bytes}"),
        }
    }
}

impl FromStr for Source {
    type Err = InvalidOption;

    /// `mem:SIZE`, `null:SIZE` or a path (write `./mem:1` for a file of that name).
    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let size = |text: &str| {
            let bytes = text.parse::<ByteSize>().map_err(|e| InvalidOption::Source(e.to_string()))?.bytes();
            check_capacity(bytes).map(|()| bytes)
        };
        match text.split_once(':') {
            Some(("mem", rest)) => size(rest).map(Self::Mem),
            Some(("null", rest)) => size(rest).map(Self::Null),
            _ if text.is_empty() => Err(InvalidOption::Source("The path of a disk is empty".into())),
            _ => Ok(Self::File(text.into())),
        }
    }
}

/// Whether a completed write may still be lost with power, until a flush.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// Writes may sit in the host's page cache or the drive's cache until the guest flushes.
    #[default]
    Writeback,
    /// Each write is on stable storage before it completes.
    Writethrough,
}

/// Limits of the configuration space (virtio 1.3 §5.2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block size.
    pub block_size: u32,
    /// Physical block size, at least the logical one.
    pub physical_block_size: u32,
    /// Best I/O size; 0 when unknown.
    pub optimal_io_size: u32,
    /// Longest segment.
    pub size_max: u32,
    /// Most data segments a well-behaved driver puts in a request; longer ones are served all the same.
    pub seg_max: u32,
    /// Number of request queues.
    pub num_queues: u16,
    /// Most ranges in a discard, write-zeroes or secure-erase request.
    pub max_discard_seg: u32,
    /// Most sectors in one range of a discard or secure erase.
    pub max_discard_sectors: u32,
    /// Most sectors in one range of a write-zeroes request; smaller, because zeroes may have to be written.
    pub max_write_zeroes_sectors: u32,
    /// Granularity at which discarding frees space.
    pub discard_alignment_sectors: u32,
}

impl Default for Geometry {
    fn default() -> Self {
        Self {
            block_size: SECTOR as u32,
            physical_block_size: SECTOR as u32,
            optimal_io_size: 0,
            size_max: 4 << 20,
            // Fits a queue of 128 with the header and the status, as QEMU makes it by default.
            seg_max: 126,
            num_queues: 1,
            max_discard_seg: 32,
            max_discard_sectors: 1 << 22,
            max_write_zeroes_sectors: 1 << 16,
            discard_alignment_sectors: 1,
        }
    }
}

/// One disk, as the command line, the configuration file or `disk.add` describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Name of the disk for logs, metrics and the control socket.
    pub id: String,
    /// Where the data are.
    pub source: Source,
    /// Refuse every change.
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Number of request queues.
    pub num_queues: u16,
    /// Largest queue size offered.
    pub queue_size: u16,
    /// Logical block size; `None`: what the source asks for.
    pub block_size: Option<u32>,
    /// Answer to GET_ID; `None`: the id.
    pub serial: Option<String>,
    /// Segments offered; see [`Geometry::seg_max`].
    pub seg_max: u32,
    /// Ranges a discard or write-zeroes request may have.
    pub max_discard_seg: u32,
    /// Offer discard and pass it on.
    pub discard: bool,
    /// Cache mode that the guest finds.
    pub cache: CacheMode,
    /// Leave the file unlocked: another process may write to it at the same time.
    pub share_rw: bool,
    /// Rate limits.
    pub limits: Limits,
}

impl DiskOptions {
    /// A disk with every option at its default.
    pub fn new(id: impl Into<String>, source: Source) -> Self {
        let geometry = Geometry::default();
        Self {
            id: id.into(),
            source,
            read_only: false,
            direct: false,
            num_queues: geometry.num_queues,
            queue_size: 1024,
            block_size: None,
            serial: None,
            seg_max: geometry.seg_max,
            max_discard_seg: geometry.max_discard_seg,
            discard: true,
            cache: CacheMode::Writeback,
            share_rw: false,
            limits: Limits::default(),
        }
    }

    /// The serial number the guest sees.
    pub fn serial(&self) -> &str {
        self.serial.as_deref().unwrap_or(&self.id)
    }

    /// Refuses values that could not be served.
    pub fn check(&self) -> Result<(), InvalidOption> {
        check_name("disk", &self.id)?;
        if let Some(serial) = &self.serial
            && (serial.len() > SERIAL_LEN || !serial.is_ascii())
        {
            return Err(InvalidOption::Serial(serial.clone()));
        }
        check_range("num-queues", self.num_queues.into(), 1, u32::from(MAX_QUEUES))?;
        check_queue_size(self.queue_size)?;
        check_range("seg-max", self.seg_max, 1, 32766)?;
        check_range("max-discard-seg", self.max_discard_seg, 1, MAX_RANGES as u32)?;
        if let Some(size) = self.block_size
            && !(size.is_power_of_two() && (512..=65536).contains(&size))
        {
            return Err(InvalidOption::BlockSize(size));
        }
        if self.direct && !matches!(self.source, Source::File(_)) {
            return Err(InvalidOption::DirectWithoutFile);
        }
        Ok(())
    }
}

/// Most request queues of one disk.
pub const MAX_QUEUES: u16 = 256;

/// A disk's capacity is some whole number of sectors whose byte count fits a file offset.
pub fn check_capacity(bytes: u64) -> Result<(), InvalidOption> {
    if bytes == 0 {
        return Err(InvalidOption::Empty);
    }
    if !bytes.is_multiple_of(SECTOR) {
        return Err(InvalidOption::PartialSector(bytes));
    }
    if bytes > i64::MAX as u64 { Err(InvalidOption::TooLarge(bytes)) } else { Ok(()) }
}

/// A disk has whole blocks only: the guest could not reach the rest.
pub fn check_blocks(bytes: u64, block: u64) -> Result<(), InvalidOption> {
    let whole = bytes.is_multiple_of(block);
    whole.then_some(()).ok_or(InvalidOption::PartialBlock { bytes, block })
}

/// Why the description of a disk is refused; one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// Not a path, `mem:SIZE` or `null:SIZE`.
    #[error("{0}")]
    Source(String),
    /// Nothing to serve.
    #[error("The disk '{0}' has no path: give a file, a block device, mem:SIZE or null:SIZE")]
    NoPath(String),
    /// No sectors.
    #[error("The disk is empty: its size is 0")]
    Empty,
    /// Not a whole number of sectors.
    #[error("The size of the disk, {0} bytes, is no multiple of 512")]
    PartialSector(u64),
    /// Not a whole number of blocks.
    #[error("The size of the disk, {bytes} bytes, is no multiple of its block size, {block}")]
    PartialBlock {
        /// Its size.
        bytes: u64,
        /// Least that can be read or written at a time.
        block: u64,
    },
    /// Beyond what a file offset can say.
    #[error("The size of the disk, {0} bytes, is more than a file can have")]
    TooLarge(u64),
    /// Does not fit GET_ID.
    #[error("The serial number '{0}' is not at most 20 ASCII characters")]
    Serial(String),
    /// A name that no device can have, or a number that no option takes.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// Not a power of two in range.
    #[error("The block size {0} is not a power of two between 512 and 65536")]
    BlockSize(u32),
    /// `--direct` with memory.
    #[error("Direct I/O needs a file or a block device")]
    DirectWithoutFile,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_memory_null_or_a_path() {
        let source = |text: &str| text.parse::<Source>();
        assert_eq!(source("mem:1M"), Ok(Source::Mem(1 << 20)));
        assert_eq!(source("null:2G"), Ok(Source::Null(2 << 30)));
        assert_eq!(source("/dev/sdb"), Ok(Source::File("/dev/sdb".into())));
        assert_eq!(source("./mem:1"), Ok(Source::File("./mem:1".into())));
        assert_eq!(source("mem:1000"), Err(InvalidOption::PartialSector(1000)));
        assert_eq!(source("null:0"), Err(InvalidOption::Empty));
        assert!(source("mem:lots").is_err());
        assert!(source("").is_err());
    }

    #[test]
    fn values_that_could_not_be_served_are_refused() {
        let with = |change: fn(&mut DiskOptions)| {
            let mut options = DiskOptions::new("d", Source::Mem(512));
            change(&mut options);
            options.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert!(with(|o| o.num_queues = 0).is_err());
        assert!(with(|o| o.num_queues = 257).is_err());
        assert!(with(|o| o.queue_size = 1).is_err());
        assert!(with(|o| o.queue_size = 3).is_err());
        assert!(with(|o| o.block_size = Some(1000)).is_err());
        assert!(with(|o| o.block_size = Some(256)).is_err());
        assert!(with(|o| o.serial = Some("x".repeat(21))).is_err());
        assert!(with(|o| o.seg_max = 0).is_err());
        assert!(with(|o| o.direct = true).is_err());
        assert!(with(|o| o.id = "a/b".into()).is_err());
    }
}
