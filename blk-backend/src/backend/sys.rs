//! The system calls a file backend needs and the standard library has not: block device properties, direct
//! I/O alignment, open-file-description locks.
#![expect(unsafe_code, reason = "ioctl, statx, fcntl and fallocate")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IO(0x12, nr)` of linux/fs.h.
const fn io_12(nr: libc::c_ulong) -> libc::c_ulong {
    0x12 << 8 | nr
}

const BLKROGET: libc::c_ulong = io_12(94);
const BLKDISCARD: libc::c_ulong = io_12(119);
const BLKIOMIN: libc::c_ulong = io_12(120);
const BLKIOOPT: libc::c_ulong = io_12(121);
const BLKPBSZGET: libc::c_ulong = io_12(123);
const BLKSECDISCARD: libc::c_ulong = io_12(125);
const BLKZEROOUT: libc::c_ulong = io_12(127);
const BLKSSZGET: libc::c_ulong = io_12(104);

/// What a block device says about its blocks, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BlockLimits {
    /// Logical block size.
    pub logical: u32,
    /// Physical block size.
    pub physical: u32,
    /// Preferred I/O size, 0 when it has none.
    pub optimal: u32,
}

fn query(file: &File, request: libc::c_ulong) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    // SAFETY: each of the requests passed here writes one int to the pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &mut value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value as u32) }
}

/// Reads the limits of the block device behind `file`.
pub fn block_limits(file: &File) -> io::Result<BlockLimits> {
    let logical = query(file, BLKSSZGET)?;
    let physical = query(file, BLKPBSZGET).unwrap_or(logical);
    let minimum = query(file, BLKIOMIN).unwrap_or(physical);
    let optimal = query(file, BLKIOOPT).unwrap_or(0);
    Ok(BlockLimits { logical, physical: physical.max(minimum), optimal })
}

/// Whether the block device takes no writes, although it may be opened for them.
pub fn is_read_only(file: &File) -> io::Result<bool> {
    Ok(query(file, BLKROGET)? != 0)
}

/// A range operation of block devices that has no `fallocate` mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeIoctl {
    /// BLKDISCARD
    Discard,
    /// BLKZEROOUT
    ZeroOut,
    /// BLKSECDISCARD
    SecureErase,
}

/// Runs it; blocks until the device is done.
pub fn range_ioctl(file: &File, which: RangeIoctl, offset: u64, len: u64) -> io::Result<()> {
    let request = match which {
        RangeIoctl::Discard => BLKDISCARD,
        RangeIoctl::ZeroOut => BLKZEROOUT,
        RangeIoctl::SecureErase => BLKSECDISCARD,
    };
    let range = [offset, len];
    // SAFETY: the three requests read two u64 from the pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the device knows secure erase. The range is misaligned on purpose: a device that does not know the
/// request says EOPNOTSUPP, and one that does refuses the range with EINVAL before it touches anything.
pub fn has_secure_erase(file: &File) -> bool {
    let answer = range_ioctl(file, RangeIoctl::SecureErase, 1, 1);
    answer.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
}

/// What O_DIRECT asks of buffers (addresses) and of offsets and lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffer addresses.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
}

/// Asks the filesystem (STATX_DIOALIGN, Linux 6.1); `None` when it does not say.
pub fn direct_alignment(file: &File) -> Option<Alignment> {
    // SAFETY: all-zero is a valid statx structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty NUL-terminated string and `stat` outlives the call.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, &mut stat) };
    let told = result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
    told.then_some(Alignment { memory: stat.stx_dio_mem_align.max(1), offset: stat.stx_dio_offset_align })
}

/// How a file is locked against other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// For reading: others may read.
    Shared,
    /// For writing: alone.
    Exclusive,
    /// Not at all.
    None,
}

/// Takes or drops the lock on the whole file, without waiting. It belongs to the open file description, so it
/// ends with the process however that ends.
pub fn lock(file: &File, lock: Lock) -> io::Result<()> {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    // SAFETY: all-zero is a valid flock structure; start and length 0 mean the whole file.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: F_OFD_SETLK reads one flock structure.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Deallocates a range; it reads as zeroes afterwards and the size stays.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers; the kernel checks the range.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_second_writer_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (first, second) = (open(), open());
        lock(&first, Lock::Exclusive).unwrap();
        assert!(lock(&second, Lock::Exclusive).is_err());
        assert!(lock(&second, Lock::Shared).is_err());
        lock(&first, Lock::None).unwrap();
        lock(&second, Lock::Exclusive).unwrap();
    }

    #[test]
    fn a_regular_file_is_no_block_device() {
        let file = tempfile::tempfile().unwrap();
        assert!(block_limits(&file).is_err());
        assert!(!has_secure_erase(&file));
    }
}
