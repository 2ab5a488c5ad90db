#![expect(
    unsafe_code,
    reason = "AF_ALG sockets have no safe interface; every call here passes pointers to live buffers"
)]
//! The kernel's interface to its ciphers for programs (Documentation/crypto/userspace-if.rst).

use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};

/// What both socket buffers are raised to; a request that does not fit would wait for ever.
const BUFFER: libc::c_int = 1 << 20;

/// Bytes of AES's block and IV.
pub const BLOCK: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Encrypt,
    Decrypt,
}

/// A cipher with a key, and one stream of requests to it.
pub struct Cipher {
    // Keeps the key.
    _transform: OwnedFd,
    requests: File,
}

impl Cipher {
    /// The cipher that the kernel knows by `name`, with `key`.
    pub fn new(name: &str, key: &[u8]) -> Result<Self> {
        let transform = bind(name).with_context(|| format!("The kernel has no cipher {name}"))?;
        set_option(&transform, libc::SOL_ALG, libc::ALG_SET_KEY, key).context("It does not take this key")?;
        // SAFETY: accept takes no address when both pointers are null.
        let fd = unsafe {
            libc::accept4(
                transform.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        let requests = owned(fd)?;
        for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
            set_option(&requests, libc::SOL_SOCKET, option, &BUFFER.to_ne_bytes())?;
        }
        Ok(Self { _transform: transform, requests: requests.into() })
    }

    /// Runs one request: `out` becomes as long as `data`.
    pub fn run(&mut self, direction: Direction, iv: &[u8; BLOCK], data: &[u8], out: &mut [u8]) -> Result<()> {
        ensure!(data.len() == out.len(), "the result has another length");
        self.send(direction, iv, data).context("Cannot send a request")?;
        let mut done = 0;
        while done < out.len() {
            // A request that is larger than the receive buffer comes in parts.
            match self.requests.read(&mut out[done..]).context("A request failed")? {
                0 => bail!("A request of {} bytes ended after {done}", data.len()),
                count => done += count,
            }
        }
        Ok(())
    }

    fn send(&self, direction: Direction, iv: &[u8; BLOCK], data: &[u8]) -> io::Result<()> {
        let operation: u32 = match direction {
            Direction::Encrypt => 1,
            Direction::Decrypt => 0,
        };
        let mut control = Control::new();
        control.push(libc::ALG_SET_OP, &operation.to_ne_bytes());
        // struct af_alg_iv: a length and the bytes.
        let mut value = [0; 4 + BLOCK];
        value[..4].copy_from_slice(&(BLOCK as u32).to_ne_bytes());
        value[4..].copy_from_slice(iv);
        control.push(libc::ALG_SET_IV, &value);
        let mut piece = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: all of msghdr's fields may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = control.len as _;
        // SAFETY: `message` points to live buffers, which the kernel only reads.
        let sent = unsafe { libc::sendmsg(self.requests.as_raw_fd(), &message, 0) };
        match usize::try_from(sent) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(sent) if sent < data.len() => {
                Err(io::Error::other("The request does not fit into the socket"))
            }
            Ok(_) => Ok(()),
        }
    }
}

/// Ancillary data, aligned as `cmsg(3)` wants it.
#[repr(align(8))]
struct Control {
    bytes: [u8; 128],
    len: usize,
}

impl Control {
    const HEADER: usize = size_of::<libc::cmsghdr>();

    fn new() -> Self {
        Self { bytes: [0; 128], len: 0 }
    }

    fn push(&mut self, kind: libc::c_int, value: &[u8]) {
        let entry = &mut self.bytes[self.len..];
        // struct cmsghdr: length, level, type.
        entry[..8].copy_from_slice(&(Self::HEADER + value.len()).to_ne_bytes());
        entry[8..12].copy_from_slice(&libc::SOL_ALG.to_ne_bytes());
        entry[12..16].copy_from_slice(&kind.to_ne_bytes());
        entry[Self::HEADER..][..value.len()].copy_from_slice(value);
        self.len += (Self::HEADER + value.len()).next_multiple_of(8);
    }
}

fn bind(name: &str) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(fd).context("No AF_ALG sockets here")?;
    // SAFETY: all of sockaddr_alg's fields may be zero.
    let mut address: libc::sockaddr_alg = unsafe { std::mem::zeroed() };
    address.salg_family = libc::AF_ALG as u16;
    ensure!(name.len() < address.salg_name.len(), "the name is too long");
    address.salg_type[..8].copy_from_slice(b"skcipher");
    address.salg_name[..name.len()].copy_from_slice(name.as_bytes());
    let len = size_of::<libc::sockaddr_alg>() as libc::socklen_t;
    // SAFETY: the address is live and of that length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    check(bound)?;
    Ok(socket)
}

fn set_option(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the value is live and of that length.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), len) })
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
