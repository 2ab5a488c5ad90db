//! One disk: what the session, the control socket and all workers share about it. Everything that changes is
//! an atomic, written by the control side and read once a burst by the workers.

use crate::backend::{Backend, Hints, OpenError};
use crate::config::{BlkConfig, SECTOR, SERIAL_LEN, Volatile, serial_bytes};
use crate::features::*;
use crate::limit::{Limiter, Limits};
use crate::options::{CacheMode, DiskOptions, Geometry, InvalidOption, Source, check_blocks, check_capacity};
use crate::request::Rules;
use crate::stats::QueueStats;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use virtqueue::RingFeatures;

/// A disk, open and ready to be served.
#[derive(Debug)]
pub struct Disk {
    options: DiskOptions,
    backend: Backend,
    geometry: Geometry,
    serial: [u8; SERIAL_LEN],
    offered: u64,
    /// Alignment of reads and writes in bytes.
    align: u64,
    limiter: Limiter,
    limits: Mutex<Limits>,
    queues: Box<[QueueStats]>,
    negotiated: AtomicU64,
    /// In sectors.
    capacity: AtomicU64,
    /// The field of the configuration space.
    writeback: AtomicBool,
    /// Rings went on where another process left them, so the mode the guest believes in is not known.
    resumed: AtomicBool,
    /// What follows from the two and the negotiated features: complete writes when they are stable.
    durable: AtomicBool,
    /// Another process has locked the file: no request may touch it.
    locked_out: AtomicBool,
    /// A ring runs.
    in_use: AtomicBool,
}

/// Why a disk cannot take a new size; one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Not a size a disk can have.
    #[error(transparent)]
    Invalid(#[from] InvalidOption),
    /// Data would be lost.
    #[error("The disk has {now} bytes and cannot shrink to {asked}")]
    Shrink {
        /// Present size.
        now: u64,
        /// Size asked for.
        asked: u64,
    },
    /// Made once, mapped once.
    #[error("A memory disk keeps its size")]
    Memory,
    /// A null disk has no size of its own.
    #[error("A null disk needs to be told its new size")]
    Unknown,
    /// The file did not grow.
    #[error("Cannot resize the disk: {0}")]
    Io(#[from] io::Error),
}

impl Disk {
    /// Opens a disk as described.
    pub fn open(options: DiskOptions) -> Result<Self, OpenError> {
        options.check()?;
        let (backend, hints) = Backend::open(&options)?;
        let geometry = geometry(&options, &hints);
        let align =
            backend.file().and_then(|f| f.direct()).map_or(SECTOR, |a| u64::from(a.offset).max(SECTOR));
        let disk = Self {
            serial: serial_bytes(options.serial()),
            offered: offered(&options, &hints),
            limiter: Limiter::new(&options.limits),
            limits: Mutex::new(options.limits),
            queues: (0..options.num_queues).map(|_| QueueStats::default()).collect(),
            negotiated: AtomicU64::new(0),
            capacity: AtomicU64::new(hints.bytes / SECTOR),
            writeback: AtomicBool::new(options.cache == CacheMode::Writeback),
            resumed: AtomicBool::new(false),
            durable: AtomicBool::new(true),
            locked_out: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
            options,
            backend,
            geometry,
            align,
        };
        check_blocks(hints.bytes, disk.block())?;
        Ok(disk)
    }

    /// Least that can be read or written at a time, in bytes.
    fn block(&self) -> u64 {
        u64::from(self.geometry.block_size).max(self.align)
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// How it was described.
    pub fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// Where its sectors are.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Answer to GET_ID.
    pub fn serial(&self) -> &[u8; SERIAL_LEN] {
        &self.serial
    }

    /// Rate limits, for the data path.
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Rate limits in force.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the rate limits.
    pub fn set_limits(&self, limits: Limits) {
        let mut held = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        *held = limits;
        self.limiter.set(&limits);
    }

    /// Counters of each queue.
    pub fn queue_stats(&self) -> &[QueueStats] {
        &self.queues
    }

    /// Virtio features offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Virtio features the driver took.
    pub fn negotiated(&self) -> u64 {
        self.negotiated.load(Relaxed)
    }

    /// The driver has chosen. With CONFIG_WCE but without FLUSH it could never make a write stable, so the disk
    /// starts in write-through mode (virtio 1.3 §5.2.5.2).
    pub fn negotiate(&self, features: u64) {
        self.negotiated.store(features, Relaxed);
        if features & VIRTIO_BLK_F_CONFIG_WCE != 0 && features & VIRTIO_BLK_F_FLUSH == 0 {
            self.writeback.store(false, Relaxed);
        }
        self.update_durable();
    }

    /// Capacity in sectors.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    /// The configuration space now.
    pub fn config(&self) -> BlkConfig {
        let now = Volatile { capacity: self.capacity(), writeback: self.writeback() };
        BlkConfig::new(&self.geometry, now)
    }

    /// The `writeback` field.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Relaxed)
    }

    /// The driver switches the cache mode. Leaving write-back makes stable what has completed so far, because
    /// the driver will not flush any more.
    pub fn set_writeback(&self, writeback: bool) -> io::Result<()> {
        let before = self.writeback.swap(writeback, Relaxed);
        self.resumed.store(false, Relaxed);
        self.update_durable();
        match self.backend.file() {
            Some(file) if before && !writeback => {
                if file.cache_lost() {
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                file.file().sync_data().inspect_err(|_| file.flush_failed())
            }
            _ => Ok(()),
        }
    }

    /// A ring goes on where another process left it: a restart, or a migration. Whether the guest flushes is
    /// not known then, so writes are stable on completion until it shows that it does ([`Disk::flush_seen`]).
    pub fn resumed_elsewhere(&self) {
        if self.negotiated() & VIRTIO_BLK_F_CONFIG_WCE != 0 {
            self.resumed.store(true, Relaxed);
            self.update_durable();
        }
    }

    /// The guest has flushed: it knows that the cache is volatile.
    #[inline]
    pub fn flush_seen(&self) {
        if self.resumed.load(Relaxed) {
            self.resumed.store(false, Relaxed);
            self.update_durable();
        }
    }

    /// Whether a write may only complete when it is stable (virtio 1.3 §5.2.6.2).
    #[inline]
    pub fn durable(&self) -> bool {
        self.durable.load(Relaxed)
    }

    fn update_durable(&self) {
        let features = self.negotiated();
        let has = |bit| features & bit != 0;
        let volatile = if has(VIRTIO_BLK_F_CONFIG_WCE) {
            self.writeback() && !self.resumed.load(Relaxed)
        } else {
            // Whoever neither flushes nor sees the mode gets write-through; so does the operator who asked.
            has(VIRTIO_BLK_F_FLUSH) && self.options.cache == CacheMode::Writeback
        };
        self.durable.store(!volatile, Relaxed);
    }

    /// Takes note whether another process has the file.
    pub fn set_locked_out(&self, locked_out: bool) {
        self.locked_out.store(locked_out, Relaxed);
    }

    /// Whether every request must fail because another process has the file.
    #[inline]
    pub fn locked_out(&self) -> bool {
        self.locked_out.load(Relaxed)
    }

    /// Takes note whether any ring of the disk runs.
    pub fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Relaxed);
    }

    /// Whether any ring of the disk runs.
    pub fn in_use(&self) -> bool {
        self.in_use.load(Relaxed)
    }

    /// What requests are checked against, as of now.
    #[inline]
    pub fn rules(&self) -> Rules<'_> {
        let features = self.negotiated();
        Rules {
            geometry: &self.geometry,
            capacity: self.capacity(),
            read_only: self.options.read_only,
            discard: features & VIRTIO_BLK_F_DISCARD != 0,
            write_zeroes: features & VIRTIO_BLK_F_WRITE_ZEROES != 0,
            secure_erase: features & VIRTIO_BLK_F_SECURE_ERASE != 0,
            align: self.align,
        }
    }

    /// Gives the disk a new size: `Some` grows the file to it, `None` takes over the size the file has by now.
    /// `true` when the capacity changed and the frontend must be told.
    pub fn resize(&self, bytes: Option<u64>) -> Result<bool, ResizeError> {
        let now = self.capacity() * SECTOR;
        if let Some(asked) = bytes {
            check_capacity(asked)?;
            check_blocks(asked, self.block())?;
            if asked < now {
                return Err(ResizeError::Shrink { now, asked });
            }
        }
        let size = match (&self.backend, bytes) {
            (Backend::File(file), Some(asked)) => {
                file.grow(asked)?;
                asked
            }
            (Backend::File(file), None) => file.size()? / self.block() * self.block(),
            (Backend::Null(_), Some(asked)) => asked,
            (Backend::Null(_), None) => return Err(ResizeError::Unknown),
            (Backend::Mem(_), _) => return Err(ResizeError::Memory),
        };
        check_capacity(size)?;
        Ok(self.capacity.swap(size / SECTOR, Relaxed) != size / SECTOR)
    }

    /// Takes over the size of a file that has grown by itself. `true` when the frontend must be told. A file that
    /// has shrunk keeps its capacity, and reads behind its end fail.
    pub fn take_growth(&self) -> bool {
        let grown = |size: u64| size / SECTOR > self.capacity();
        let size = self.backend.file().and_then(|file| file.size().ok());
        size.is_some_and(grown) && self.resize(None).unwrap_or(false)
    }

    /// Takes the lock on the file, or drops it. Nothing to do for memory, and with `share_rw`.
    pub fn lock(&self, hold: bool) -> io::Result<()> {
        match self.backend.file() {
            Some(file) if !self.options.share_rw => file.lock(hold),
            _ => Ok(()),
        }
    }
}

/// Features a disk offers; each has a test in `tests/features.rs`.
fn offered(options: &DiskOptions, hints: &Hints) -> u64 {
    let mut features = VIRTIO_F_VERSION_1
        | RingFeatures::ALL
        | VIRTIO_BLK_F_SIZE_MAX
        | VIRTIO_BLK_F_SEG_MAX
        | VIRTIO_BLK_F_BLK_SIZE
        | VIRTIO_BLK_F_TOPOLOGY
        | VIRTIO_BLK_F_FLUSH
        | VIRTIO_BLK_F_MQ;
    if options.read_only {
        return features | VIRTIO_BLK_F_RO;
    }
    features |= VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_WRITE_ZEROES;
    if options.discard {
        features |= VIRTIO_BLK_F_DISCARD;
    }
    if hints.secure_erase {
        features |= VIRTIO_BLK_F_SECURE_ERASE;
    }
    features
}

fn geometry(options: &DiskOptions, hints: &Hints) -> Geometry {
    let block_size = options.block_size.unwrap_or_else(|| default_block_size(options, hints));
    let physical = hints.physical.max(block_size).next_power_of_two();
    Geometry {
        block_size,
        physical_block_size: physical,
        optimal_io_size: hints.optimal,
        seg_max: options.seg_max.min(u32::from(options.queue_size).saturating_sub(2).max(1)),
        num_queues: options.num_queues,
        max_discard_seg: options.max_discard_seg,
        discard_alignment_sectors: physical / SECTOR as u32,
        ..Geometry::default()
    }
}

/// A buffered file takes any sector, and images are partitioned for 512; only direct I/O and block devices
/// need more. A disk whose size is no multiple of the larger block keeps the small one.
fn default_block_size(options: &DiskOptions, hints: &Hints) -> u32 {
    let fits = hints.bytes.is_multiple_of(u64::from(hints.logical));
    match options.source {
        Source::File(_) if fits => hints.logical,
        _ => SECTOR as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mem() -> Disk {
        Disk::open(DiskOptions::new("d", Source::Mem(1 << 20))).unwrap()
    }

    const BOTH: u64 = VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE;

    #[test]
    fn durability_follows_the_negotiation() {
        let disk = mem();
        disk.negotiate(0);
        assert!(disk.durable(), "a driver that cannot flush gets write-through");
        disk.negotiate(VIRTIO_BLK_F_FLUSH);
        assert!(!disk.durable());
        disk.negotiate(BOTH);
        assert!(!disk.durable());
        disk.set_writeback(false).unwrap();
        assert!(disk.durable());
        disk.set_writeback(true).unwrap();
        assert!(!disk.durable());
    }

    #[test]
    fn config_wce_without_flush_starts_write_through() {
        let disk = mem();
        disk.negotiate(VIRTIO_BLK_F_CONFIG_WCE);
        assert!(!disk.writeback());
        assert!(disk.durable());
    }

    #[test]
    fn a_resumed_ring_is_durable_until_the_guest_flushes() {
        let disk = mem();
        disk.negotiate(BOTH);
        disk.resumed_elsewhere();
        assert!(disk.durable());
        disk.flush_seen();
        assert!(!disk.durable());
        disk.resumed_elsewhere();
        disk.set_writeback(true).unwrap();
        assert!(!disk.durable(), "the driver has said it itself");
    }

    #[test]
    fn the_mode_of_a_guest_that_never_saw_it_is_known_after_a_restart() {
        let disk = mem();
        disk.negotiate(VIRTIO_BLK_F_FLUSH);
        disk.resumed_elsewhere();
        assert!(!disk.durable());
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let options = DiskOptions { read_only: true, ..DiskOptions::new("d", Source::Mem(512)) };
        let offered = Disk::open(options).unwrap().offered();
        assert_ne!(offered & VIRTIO_BLK_F_RO, 0);
        let writing = VIRTIO_BLK_F_DISCARD
            | VIRTIO_BLK_F_WRITE_ZEROES
            | VIRTIO_BLK_F_SECURE_ERASE
            | VIRTIO_BLK_F_CONFIG_WCE;
        assert_eq!(offered & writing, 0);
    }

    #[test]
    fn secure_erase_is_offered_only_where_it_erases() {
        assert_ne!(mem().offered() & VIRTIO_BLK_F_SECURE_ERASE, 0);
        let null = Disk::open(DiskOptions::new("d", Source::Null(512))).unwrap();
        assert_eq!(null.offered() & VIRTIO_BLK_F_SECURE_ERASE, 0);
    }

    #[test]
    fn resizing_grows_the_file_and_never_shrinks_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Disk::open(DiskOptions::new("d", Source::File(file.path().into()))).unwrap();
        assert!(!disk.resize(None).unwrap());
        assert!(disk.resize(Some(2 << 20)).unwrap());
        assert_eq!(file.as_file().metadata().unwrap().len(), 2 << 20);
        assert_eq!(disk.capacity(), 4096);
        assert!(matches!(disk.resize(Some(1 << 20)), Err(ResizeError::Shrink { .. })));
        assert!(matches!(disk.resize(Some(1000)), Err(ResizeError::Invalid(_))));
        file.as_file().set_len((3 << 20) + 100).unwrap();
        assert!(disk.resize(None).unwrap());
        assert_eq!(disk.capacity(), 6144, "a partial sector does not count");
    }

    #[test]
    fn a_disk_has_whole_blocks_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1536).unwrap();
        let source = Source::File(file.path().into());
        let open =
            || Disk::open(DiskOptions { block_size: Some(4096), ..DiskOptions::new("d", source.clone()) });
        let refused = open().unwrap_err().to_string();
        assert_eq!(refused, "The size of the disk, 1536 bytes, is no multiple of its block size, 4096");
        file.as_file().set_len(8192).unwrap();
        let disk = open().unwrap();
        assert!(matches!(disk.resize(Some(8704)), Err(ResizeError::Invalid(_))));
        file.as_file().set_len(12288 + 512).unwrap();
        assert!(disk.take_growth() && !disk.take_growth());
        assert_eq!(disk.capacity(), 24, "a partial block does not count");
    }

    #[test]
    fn growth_is_taken_over_and_shrinking_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Disk::open(DiskOptions::new("d", Source::File(file.path().into()))).unwrap();
        assert!(!disk.take_growth());
        file.as_file().set_len(2 << 20).unwrap();
        assert!(disk.take_growth() && !disk.take_growth());
        file.as_file().set_len(1 << 20).unwrap();
        assert!(!disk.take_growth());
        assert_eq!(disk.capacity(), 4096);
        assert!(!mem().take_growth());
    }

    #[test]
    fn memory_disks_keep_their_size_and_null_disks_take_any() {
        assert!(matches!(mem().resize(Some(2 << 20)), Err(ResizeError::Memory)));
        let null = Disk::open(DiskOptions::new("d", Source::Null(512))).unwrap();
        assert!(null.resize(Some(1 << 40)).unwrap());
    }
}
