//! AF_XDP sockets: the system calls, each as one safe function.

#![expect(unsafe_code, reason = "system calls without a wrapper in the standard library")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::{io, mem, ptr};

/// How to bind (`struct sockaddr_xdp`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding {
    /// `XDP_COPY`, `XDP_ZEROCOPY`, `XDP_USE_NEED_WAKEUP`, `XDP_USE_SG`; none of them with a shared UMEM.
    pub flags: u16,
    /// Index of the interface.
    pub interface: u32,
    /// Queue of the interface.
    pub queue: u32,
    /// The socket whose UMEM this one shares.
    pub shared: Option<RawFd>,
}

/// The buffers to register (`struct xdp_umem_reg`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Registration {
    /// Where they are in this process.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Size of a chunk.
    pub chunk: u32,
    /// Length of the metadata in front of a frame to be sent; 0: no metadata.
    pub metadata: u32,
}

/// One AF_XDP socket.
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed. The descriptor is new, and ours alone.
        unsafe {
            let fd = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(OwnedFd::from_raw_fd(fd))) }
        }
    }

    /// Pins the buffers for as long as the socket lives. They must stay mapped that long: the caller keeps them.
    pub(super) fn register(&self, buffers: Registration) -> io::Result<()> {
        // SAFETY: a structure of integers, for which zero is a value.
        let mut argument: libc::xdp_umem_reg = unsafe { mem::zeroed() };
        argument.addr = buffers.addr;
        argument.len = buffers.len;
        argument.chunk_size = buffers.chunk;
        if buffers.metadata != 0 {
            argument.tx_metadata_len = buffers.metadata;
            argument.flags = libc::XDP_UMEM_TX_METADATA_LEN;
        }
        self.set(libc::XDP_UMEM_REG, &argument)
    }

    /// Makes one of the rings: `XDP_RX_RING`, `XDP_TX_RING`, `XDP_UMEM_FILL_RING`, `XDP_UMEM_COMPLETION_RING`.
    pub(super) fn set_ring(&self, ring: libc::c_int, entries: u32) -> io::Result<()> {
        self.set(ring, &entries)
    }

    /// Most frames one `send` takes in copy mode (Linux 6.17).
    pub(super) fn set_transmit_budget(&self, frames: u32) -> io::Result<()> {
        const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
        self.set(XDP_MAX_TX_SKB_BUDGET, &frames)
    }

    /// Lets `receive_wakeup` and `send` drive the interface's NAPI: for `usecs`, `budget` frames at a time.
    pub(super) fn set_busy_poll(&self, usecs: u32, budget: u32) -> io::Result<()> {
        const SO_PREFER_BUSY_POLL: libc::c_int = 69;
        const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
        self.set_at(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &1_u32)?;
        self.set_at(libc::SOL_SOCKET, libc::SO_BUSY_POLL, &usecs)?;
        self.set_at(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget)
    }

    /// Where the rings are in their mappings.
    pub(super) fn offsets(&self) -> io::Result<libc::xdp_mmap_offsets> {
        // SAFETY: integers only.
        unsafe { self.get(libc::XDP_MMAP_OFFSETS) }
    }

    /// Whether the bound socket shares its buffers with the device.
    pub(super) fn is_zero_copy(&self) -> io::Result<bool> {
        // SAFETY: integers only.
        let options: libc::xdp_options = unsafe { self.get(libc::XDP_OPTIONS)? };
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// What the kernel has counted for this socket.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        // SAFETY: integers only.
        unsafe { self.get(libc::XDP_STATISTICS) }
    }

    pub(super) fn bind(&self, binding: Binding) -> io::Result<()> {
        // SAFETY: a structure of integers, for which zero is a value.
        let mut address: libc::sockaddr_xdp = unsafe { mem::zeroed() };
        address.sxdp_family = libc::AF_XDP as u16;
        address.sxdp_flags = binding.flags;
        address.sxdp_ifindex = binding.interface;
        address.sxdp_queue_id = binding.queue;
        if let Some(fd) = binding.shared {
            address.sxdp_flags |= libc::XDP_SHARED_UMEM;
            address.sxdp_shared_umem_fd = fd as u32;
        }
        let len = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is a socket address of `len` bytes.
        done(unsafe { libc::bind(self.0.as_raw_fd(), ptr::from_ref(&address).cast(), len) })
    }

    /// Makes the kernel look at the transmit ring.
    #[inline]
    pub(super) fn send(&self) -> io::Result<()> {
        // SAFETY: no bytes and no address are passed.
        let sent =
            unsafe { libc::sendto(self.0.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes the driver look at the fill ring, and polls the device when busy polling is on.
    #[inline]
    pub(super) fn receive_wakeup(&self) {
        // The answer does not matter: frames, if there are any, are in the ring.
        // SAFETY: no buffer and no address are passed.
        unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        self.set_at(libc::SOL_XDP, option, value)
    }

    fn set_at<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let len = mem::size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is a `T` of `len` bytes, which the kernel only reads.
        done(unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, ptr::from_ref(value).cast(), len) })
    }

    /// # Safety
    /// Any bytes make a `T`.
    unsafe fn get<T>(&self, option: libc::c_int) -> io::Result<T> {
        let mut len = mem::size_of::<T>() as libc::socklen_t;
        let mut value = mem::MaybeUninit::<T>::zeroed();
        // SAFETY: `value` has room for `len` bytes; the caller vouches that whatever is written makes a `T`.
        unsafe {
            let fd = self.0.as_raw_fd();
            done(libc::getsockopt(fd, libc::SOL_XDP, option, value.as_mut_ptr().cast(), &raw mut len))?;
            // Kernels before 5.4 have shorter structures, with the fields elsewhere.
            if len as usize != mem::size_of::<T>() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(value.assume_init())
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Pinned buffers count as locked memory, unless we have CAP_IPC_LOCK. Raises the limit as far as it can be without a
/// privilege, or with CAP_SYS_RESOURCE altogether; what is still missing the registration says.
pub(super) fn raise_locked_memory() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    let mut limit = unlimited;
    // SAFETY: `getrlimit` writes one `rlimit`, `setrlimit` reads one.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) < 0
            && libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) == 0
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        }
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
