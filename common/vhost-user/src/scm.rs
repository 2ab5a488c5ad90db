//! `sendmsg(2)` and `recvmsg(2)` with file descriptors, `poll(2)`, and the few conversions of descriptors that the standard
//! library lacks.
#![expect(unsafe_code, reason = "socket and poll system calls with ancillary data")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::message::MAX_FDS;

/// Room for the control message of [`MAX_FDS`] descriptors, in `u64` for the alignment of `cmsghdr`.
const CONTROL_WORDS: usize = (MAX_FDS * size_of::<RawFd>() + 64) / 8;

/// Outcome of one [`receive`].
pub(crate) struct Received {
    /// Bytes stored in the buffer; 0 at the end of the stream.
    pub len: usize,
    /// The kernel dropped descriptors: there were too many, or this process may not open more.
    pub truncated: bool,
}

/// Receives what there is, without waiting, and appends the descriptors that came along (all close-on-exec).
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut header = empty_message(&mut iov);
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let len = loop {
        // SAFETY: `header` points to one iovec over `buf` and to `control`, which all outlive the call.
        let n = unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT)
        };
        match cvt(n) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => break other?,
        }
    };
    take_fds(&header, fds);
    Ok(Received { len, truncated: header.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Takes ownership of every descriptor in the control messages that `recvmsg` stored.
fn take_fds(header: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: `header` was filled by a successful recvmsg and its control buffer is alive and aligned; the CMSG macros stay
    // inside `msg_controllen`. Each SCM_RIGHTS descriptor was made for this process and nobody else owns it.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(header);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*cmsg).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(ptr::read_unaligned(data.add(i))));
                }
            }
            cmsg = libc::CMSG_NXTHDR(header, cmsg);
        }
    }
}

/// Sends as much of `buf` as fits, without waiting; `fds` travel with its first byte.
///
/// # Panics
/// With more than [`MAX_FDS`] descriptors.
pub(crate) fn send(socket: BorrowedFd<'_>, buf: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    assert!(fds.len() <= MAX_FDS, "at most {MAX_FDS} descriptors travel with a message");
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let mut header = empty_message(&mut iov);
    if !fds.is_empty() {
        let bytes = size_of_val(fds) as libc::c_uint;
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes; `control` has room for MAX_FDS descriptors, so the one control message written
        // through CMSG_FIRSTHDR and CMSG_DATA stays inside it. BorrowedFd has the layout of RawFd.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(bytes) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(cmsg), bytes as usize);
        }
    }
    loop {
        // SAFETY: `header` points to one iovec over `buf` (only read by sendmsg) and to `control`; all outlive the call.
        let n = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
        match cvt(n) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}

fn empty_message(iov: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeros is a valid value (no name, no control, no flags).
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    header
}

fn cvt(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// One descriptor to wait for.
pub(crate) fn pollfd(fd: BorrowedFd<'_>, events: i16) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// Waits until one of `fds` is ready. `deadline`: `None` waits for ever. Returns false when the deadline has passed.
pub(crate) fn wait(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match deadline {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up, so that the loop does not spin through the last millisecond.
                left.saturating_add(Duration::from_micros(999)).as_millis().min(i32::MAX as u128) as i32
            }
        };
        // SAFETY: the pointer and the length describe `fds`, which outlives the call.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        match n {
            0 => return Ok(false),
            n if n > 0 => return Ok(true),
            _ => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

/// The same descriptor as an eventfd object.
pub(crate) fn event_fd(fd: OwnedFd) -> EventFd {
    // SAFETY: ownership of an open descriptor passes from `fd` to the EventFd.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// A borrowed descriptor of an eventfd object.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Takes over a descriptor that this process was started with. Fails when it is not open.
pub(crate) fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD only changes a flag of the descriptor and fails with EBADF when it is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above); the caller states that it was handed over to this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of an open descriptor, close-on-exec.
#[cfg(test)]
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes plain integers and returns a new descriptor, which is then owned once.
    unsafe {
        match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) {
            new if new >= 0 => Ok(OwnedFd::from_raw_fd(new)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// An integer socket option of level `SOL_SOCKET`.
pub(crate) fn socket_option(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` outlive the call and `len` holds the size of `value`.
    let rc = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Process id of the peer of a Unix socket.
pub(crate) fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `cred` and `len` outlive the call and `len` holds the size of `cred`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(cred.pid) }
}

/// Sets the mode that `bind(2)` will give the socket file (before the umask), so that it is never open to more than that.
pub(crate) fn set_mode_before_bind(socket: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: fchmod takes plain integers.
    let rc = unsafe { libc::fchmod(socket.as_raw_fd(), mode) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A Unix stream socket, close-on-exec.
pub(crate) fn unix_socket(nonblocking: bool) -> io::Result<OwnedFd> {
    let extra = if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: socket takes plain integers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | extra, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pair of connected Unix sockets, close-on-exec.
#[cfg(test)]
pub(crate) fn pair(kind: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors, which nobody else owns.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// `bind(2)` or `connect(2)` to a path.
pub(crate) fn with_address(
    socket: BorrowedFd<'_>,
    path: &[u8],
    call: unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int,
) -> io::Result<()> {
    // SAFETY: sockaddr_un is plain data for which all zeros is a valid value.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.len() >= address.sun_path.len() || path.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `call` is bind or connect; `address` is initialised, has `len` bytes and outlives the call.
    let rc = unsafe { call(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `listen(2)`.
pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: listen takes plain integers.
    if unsafe { libc::listen(socket.as_raw_fd(), backlog) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes reads and writes of a descriptor return at once.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl with F_GETFL and F_SETFL takes plain integers.
    let rc = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
