#![expect(unsafe_code, reason = "fork, and what a child may do after it")]
//! What keeps a device from writing to memory that is somebody else's by then.
//!
//! A process that is killed cannot reset its device, and the kernel, which knows nothing of the device, gives the process's
//! pages to others while requests are in flight. So a child watches: it was forked with the memory mapped, which keeps
//! the pages, and ends when its parent does, after it has taken the device's right to access memory away and has given it back
//! to the kernel's driver.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::capability::{COMMAND, COMMAND_MASTER};

/// The watching child. On drop it ends and leaves the device alone.
pub struct Guard {
    child: libc::pid_t,
    /// The child reads its other end: a byte says that all is well, the end of the file that we are gone.
    alive: File,
}

/// What the child does to the device of a dead parent.
pub struct Farewell {
    /// Where the driver is told that it may have the device, if there is one, and the device's address.
    pub bind: Option<(CString, CString)>,
}

impl Guard {
    /// Watches over the device with this configuration space. The memory that the device uses must be mapped by now; `holder`
    /// is what holds it in place, if that is a file.
    pub fn new(config: &File, holder: Option<RawFd>, farewell: &Farewell) -> io::Result<Self> {
        let (read, write) = pipe()?;
        // SAFETY: the child calls nothing but async-signal-safe functions before it ends (`watch`).
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => watch(read.as_raw_fd(), config.as_raw_fd(), holder, farewell),
            child => Ok(Self { child, alive: write }),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        use std::io::Write;
        let _ = self.alive.write_all(&[1]);
        // SAFETY: our child, which ends after that byte.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = io::pipe()?;
    Ok((File::from(std::os::fd::OwnedFd::from(read)), File::from(std::os::fd::OwnedFd::from(write))))
}

/// The child. It outlives signals that are meant for its parent's whole process group.
fn watch(read: RawFd, config: RawFd, holder: Option<RawFd>, farewell: &Farewell) -> ! {
    // SAFETY: async-signal-safe functions on descriptors that were open at the fork, and on memory of this frame.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        close_others([read, config, holder.unwrap_or(read)]);
        let mut byte = 0u8;
        let mut count = libc::read(read, (&raw mut byte).cast(), 1);
        while count < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            count = libc::read(read, (&raw mut byte).cast(), 1);
        }
        if count != 1 {
            disarm(config);
            give_back(farewell);
        }
        libc::_exit(0)
    }
}

/// Closes everything else: files, pipes and connections are the parent's, and end when it closes them.
///
/// # Safety
/// To be called where nobody uses another descriptor any more. Async-signal-safe.
unsafe fn close_others(mut kept: [RawFd; 3]) {
    kept.sort_unstable();
    let mut first = 0;
    // SAFETY: integers; the caller's promise. Linux 5.9 has the call.
    let close = |from: RawFd, to: RawFd| unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    for fd in kept {
        if fd > first {
            close(first, fd - 1);
        }
        first = fd + 1;
    }
    close(first, RawFd::MAX);
}

/// Clears the bit that lets the device access memory: it stops, or finishes what it has begun, before this returns.
///
/// # Safety
/// To be called where only async-signal-safe functions may be.
unsafe fn disarm(config: RawFd) {
    let mut command = [0u8; 2];
    let at = COMMAND as libc::off_t;
    // SAFETY: the buffer is live and as long as is said.
    unsafe {
        if libc::pread(config, command.as_mut_ptr().cast(), 2, at) == 2 {
            let value = u16::from_le_bytes(command) & !COMMAND_MASTER;
            libc::pwrite(config, value.to_le_bytes().as_ptr().cast(), 2, at);
        }
    }
}

/// Offers the device to its driver.
///
/// # Safety
/// As for [`disarm`].
unsafe fn give_back(farewell: &Farewell) {
    let Some((path, address)) = &farewell.bind else { return };
    // SAFETY: C strings that are live, and a descriptor that is this function's.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, address.as_ptr().cast(), address.count_bytes());
            libc::close(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn config() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0, 0, 0, 0, 0x07, 0x04], 0).unwrap();
        file
    }

    fn command(file: &File) -> u16 {
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, COMMAND).unwrap();
        u16::from_le_bytes(bytes)
    }

    #[test]
    fn a_device_whose_driver_ends_in_order_is_left_alone() {
        let file = config();
        drop(Guard::new(&file, None, &Farewell { bind: None }).unwrap());
        assert_eq!(command(&file), 0x0407);
    }

    #[test]
    fn what_the_driver_closes_is_closed_although_the_child_lives() {
        use std::io::Read;
        let (file, holder) = (config(), config());
        let (mut read, write) = pipe().unwrap();
        let guard = Guard::new(&file, Some(holder.as_raw_fd()), &Farewell { bind: None }).unwrap();
        drop(write);
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
        let held =
            |file: &File| std::fs::metadata(format!("/proc/{}/fd/{}", guard.child, file.as_raw_fd())).is_ok();
        assert!(held(&file) && held(&holder));
    }

    #[test]
    fn a_device_whose_driver_is_gone_loses_the_right_to_access_memory_and_is_given_back() {
        let file = config();
        let bind = tempfile::NamedTempFile::new().unwrap();
        let path = CString::new(bind.path().to_str().unwrap()).unwrap();
        let farewell = Farewell { bind: Some((path, c"0000:00:05.0".into())) };
        let guard = Guard::new(&file, None, &farewell).unwrap();
        let child = guard.child;
        // As the kernel does with the files of a process that was killed.
        let Guard { alive, .. } = &guard;
        // SAFETY: closed once more by nobody: the guard is forgotten.
        unsafe { libc::close(alive.as_raw_fd()) };
        std::mem::forget(guard);
        // SAFETY: our child.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(command(&file), 0x0403);
        assert_eq!(std::fs::read(bind.path()).unwrap(), b"0000:00:05.0");
    }
}
