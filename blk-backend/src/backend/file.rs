//! A regular file or a block device, served asynchronously through the worker's I/O engine.

use super::sys::{self, Alignment, Lock};
use super::{Hints, OpenError};
use crate::options::{DiskOptions, InvalidOption, check_capacity};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// How a range operation is carried out; the first that the file supports is used from then on.
#[derive(Debug, Default)]
pub struct Unsupported {
    /// FALLOC_FL_PUNCH_HOLE
    pub punch_hole: AtomicBool,
    /// FALLOC_FL_ZERO_RANGE
    pub zero_range: AtomicBool,
    /// BLKDISCARD
    pub discard_ioctl: AtomicBool,
}

/// The open file of a disk; shared by all workers.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    path: PathBuf,
    block_device: bool,
    read_only: bool,
    direct: Option<Alignment>,
    /// What the host said it cannot do, learned by trying.
    pub unsupported: Unsupported,
    /// A flush failed: the kernel has dropped dirty pages that nobody can name, so that no later flush may
    /// succeed (see [`FileBackend::flush_failed`]).
    cache_lost: AtomicBool,
}

/// O_DIRECT transfers are probed with and bounced through buffers of this alignment.
pub const DIRECT_BUFFER_ALIGN: usize = 4096;

impl FileBackend {
    /// Opens the file as the options say. Nothing is written and no lock is taken.
    pub fn open(path: &Path, options: &DiskOptions) -> Result<(Self, Hints), OpenError> {
        let fail = |source| OpenError::Open { path: path.into(), source };
        // The type first: opening a FIFO would block, and a device node of another kind may act on open.
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind(path.into()));
        }
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        let mut open = OpenOptions::new();
        open.read(true).write(!options.read_only).custom_flags(flags | libc::O_CLOEXEC);
        let file = open.open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) if options.direct => OpenError::NoDirect(path.into()),
            _ => fail(source),
        })?;
        let block_device = kind.is_block_device();
        // Linux opens one for writing all the same, and then refuses each write.
        if block_device && !options.read_only && sys::is_read_only(&file).map_err(fail)? {
            return Err(OpenError::ReadOnly(path.into()));
        }
        let direct = options.direct.then(|| alignment(&file)).transpose().map_err(fail)?;
        let backend = Self {
            file,
            path: path.into(),
            block_device,
            read_only: options.read_only,
            direct,
            unsupported: Unsupported::default(),
            cache_lost: AtomicBool::new(false),
        };
        let hints = backend.hints().map_err(fail)?;
        check_block_size(options, direct)?;
        Ok((backend, hints))
    }

    fn hints(&self) -> io::Result<Hints> {
        let offset_align = self.direct.map_or(1, |a| a.offset);
        let mut hints = Hints {
            bytes: self.size()?,
            logical: offset_align.max(512),
            physical: 512,
            optimal: 0,
            secure_erase: false,
        };
        if self.block_device {
            let limits = sys::block_limits(&self.file)?;
            // Buffered I/O takes any sector; the device's own block size is what it does well.
            hints.logical = limits.logical.max(offset_align);
            hints.physical = limits.physical;
            hints.optimal = limits.optimal;
            hints.secure_erase = !self.read_only && sys::has_secure_erase(&self.file);
        } else {
            hints.physical = 4096;
        }
        Ok(hints)
    }

    /// Present size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        if self.block_device { (&self.file).seek(SeekFrom::End(0)) } else { Ok(self.file.metadata()?.len()) }
    }

    /// Makes a regular file at least this long; a block device must have grown by itself.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        let size = self.size()?;
        if size >= bytes {
            return Ok(());
        }
        if self.block_device {
            let text = format!("the block device has only {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.file.set_len(bytes)
    }

    /// Locks the file against other processes that do the same; drops the lock with `false`.
    pub fn lock(&self, hold: bool) -> io::Result<()> {
        let lock = match (hold, self.read_only) {
            (false, _) => Lock::None,
            (true, true) => Lock::Shared,
            (true, false) => Lock::Exclusive,
        };
        sys::lock(&self.file, lock)
    }

    /// The descriptor for an I/O engine.
    pub fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file itself, for blocking calls off the data path.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// What O_DIRECT asks for; `None` when buffered.
    pub fn direct(&self) -> Option<Alignment> {
        self.direct
    }

    /// Takes note of a failed flush. After it the page cache has marked the pages clean whose write-back
    /// failed, and the next fdatasync would report success for data that are gone; so every later flush fails
    /// too. With O_DIRECT there are no such pages.
    pub fn flush_failed(&self) {
        if self.direct.is_none() {
            self.cache_lost.store(true, Relaxed);
        }
    }

    /// Whether a flush must fail; see [`FileBackend::flush_failed`].
    pub fn cache_lost(&self) -> bool {
        self.cache_lost.load(Relaxed)
    }
}

fn check_block_size(options: &DiskOptions, direct: Option<Alignment>) -> Result<(), OpenError> {
    match (options.block_size, direct) {
        (Some(asked), Some(Alignment { offset, .. })) if asked < offset => {
            Err(OpenError::BlockSize { asked, least: offset })
        }
        _ => Ok(()),
    }
}

/// Alignment for O_DIRECT: what the filesystem says, else the smallest read that works.
fn alignment(file: &File) -> io::Result<Alignment> {
    if let Some(told) = sys::direct_alignment(file) {
        return Ok(told);
    }
    let mut buffer = vec![0u8; 2 * DIRECT_BUFFER_ALIGN];
    let start = buffer.as_ptr().align_offset(DIRECT_BUFFER_ALIGN);
    for offset in [512u32, 1024, 2048, 4096] {
        if file.read_at(&mut buffer[start..start + offset as usize], 0).is_ok() {
            return Ok(Alignment { memory: offset, offset });
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

impl Hints {
    /// Refuses a size that is no disk.
    pub fn checked(self) -> Result<Self, InvalidOption> {
        check_capacity(self.bytes).map(|()| self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Source;

    fn options(path: &Path) -> DiskOptions {
        DiskOptions::new("t", Source::File(path.into()))
    }

    fn open(options: &DiskOptions) -> Result<(FileBackend, Hints), OpenError> {
        match &options.source {
            Source::File(path) => FileBackend::open(path, options),
            other => panic!("not a file: {other:?}"),
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(&options(dir.path())), Err(OpenError::Kind(_))));
        assert!(matches!(open(&options(Path::new("/dev/null"))), Err(OpenError::Kind(_))));
        assert!(matches!(open(&options(&dir.path().join("none"))), Err(OpenError::Open { .. })));
    }

    #[test]
    fn a_read_only_disk_opens_a_file_that_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [7; 1024]).unwrap();
        let (backend, hints) = open(&DiskOptions { read_only: true, ..options(&path) }).unwrap();
        assert_eq!(hints.bytes, 1024);
        assert!(backend.file().write_at(&[0; 512], 0).is_err(), "opened for reading only");
    }

    #[test]
    fn growing_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 2048]).unwrap();
        let (backend, _) = open(&options(&path)).unwrap();
        backend.grow(1024).unwrap();
        assert_eq!(backend.size().unwrap(), 2048);
        backend.grow(8192).unwrap();
        assert_eq!(backend.size().unwrap(), 8192);
    }

    #[test]
    fn a_failed_flush_of_the_page_cache_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 2048]).unwrap();
        let (backend, _) = open(&options(&path)).unwrap();
        assert!(!backend.cache_lost());
        backend.flush_failed();
        assert!(backend.cache_lost());
    }
}
