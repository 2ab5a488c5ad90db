//! System calls without a safe wrapper elsewhere.
#![expect(unsafe_code, reason = "pidfd, socketpair, prctl, memfd, mmap and poll")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: only called with what was just opened or inherited, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that this process was started with, for a worker that takes over a [`Memory`](crate::Memory). To be called
/// once for each, before anything else is opened. Fails when it is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only; it fails when the descriptor is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    owned(fd)
}

/// A pair of connected sockets that keep messages apart.
pub fn message_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

/// A descriptor of a process that becomes readable when it ends. The process must not have been waited for.
pub fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) } as libc::c_int)
}

/// Sends a signal to a child that has not been waited for, so that its id is still its own.
pub fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: integers only. It fails when the child has ended, which the caller is about to hear.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// The child inherits these descriptors under their numbers, and gets SIGTERM when the calling thread ends.
pub fn bequeath(command: &mut Command, fds: Vec<RawFd>) {
    let parent = std::process::id();
    let prepare = move || {
        for fd in &fds {
            // SAFETY: integers only.
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
        }
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) })?;
        // The parent may have died before the child could ask for that.
        // SAFETY: no arguments.
        if unsafe { libc::getppid() } as u32 == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: the closure makes system calls only: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}

/// A memfd of this many zero bytes that can neither grow nor shrink.
pub fn memfd(name: &str, len: u64) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    let file = File::from(owned(fd)?);
    file.set_len(len)?;
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

/// The first byte at or after `offset` that a file really has; `None` when it has no more.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_DATA)
}

/// Where the piece of data at `offset` ends.
pub fn next_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_HOLE)
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: integers only.
    let at = unsafe { libc::lseek64(file.as_raw_fd(), offset as libc::off64_t, whence) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// A file mapped so that parts of it can be kept from the swap device. Not in core files.
pub struct LockedMapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: only an address that is given to mlock and munmap; nothing is read through it.
unsafe impl Send for LockedMapping {}

impl LockedMapping {
    /// Maps the whole file, and locks nothing yet.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, of which the kernel chooses the address.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: advises about the mapping just made.
            check(unsafe { libc::madvise(base, len, advice) })?;
        }
        Ok(Self { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len })
    }

    /// Locks a range; again does no harm.
    pub fn lock(&self, from: u64, to: u64) -> io::Result<()> {
        let (from, to) = (from as usize, (to as usize).min(self.len));
        if from < to {
            // SAFETY: inside the mapping.
            check(unsafe { libc::mlock(self.base.add(from).as_ptr().cast(), to - from) })?;
        }
        Ok(())
    }
}

impl Drop for LockedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What to wait for.
pub fn readable(fd: Option<BorrowedFd<'_>>) -> libc::pollfd {
    libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 }
}

/// The descriptor of something that owns one and only shows its number.
pub fn event(event: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: open as long as `event` is borrowed: only called with eventfds and signalfds.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Waits until one of `fds` is ready; false when the deadline has passed.
pub fn wait(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            left.as_millis().min(i32::MAX as u128) as libc::c_int
        });
        // SAFETY: pointer and length describe `fds`.
        match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) }) {
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
