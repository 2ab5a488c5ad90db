//! Files that regions can be made of.

#![expect(unsafe_code, reason = "memfd_create has no safe wrapper here")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memory::{GuestAddr, HostRange, MemoryTable, RegionConfig, UserAddr};

/// Size of an ordinary page.
pub const PAGE: u64 = 4096;

/// A memfd that may still shrink.
pub fn memfd(flags: libc::c_uint, len: u64) -> io::Result<File> {
    // SAFETY: the name is a C string; the descriptor is new, and ours alone.
    let file = unsafe {
        let fd = libc::memfd_create(c"memory-test".as_ptr(), flags | libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(len)?;
    Ok(file)
}

/// A memfd in which every 8 bytes say which file they are in and where.
pub fn patterned(tag: u64, pages: u64) -> File {
    let file = memfd(0, pages * PAGE).expect("memfd");
    for at in (0..pages * PAGE).step_by(PAGE as usize) {
        file.write_all_at(&pattern(tag, at).to_ne_bytes(), at).expect("write to a memfd");
    }
    file
}

/// What `patterned` writes at the start of the page at `offset`.
pub fn pattern(tag: u64, offset: u64) -> u64 {
    tag << 48 | offset
}

/// A duplicate, as it would arrive with a message.
pub fn send(file: &File) -> OwnedFd {
    file.try_clone().expect("a duplicate descriptor").into()
}

/// A region whose user address differs from its guest address.
pub fn region(guest: u64, pages: u64, mmap_offset: u64) -> RegionConfig {
    let user = UserAddr(guest + 0x7f00_0000_0000);
    RegionConfig { guest: GuestAddr(guest), len: pages * PAGE, user, mmap_offset }
}

/// Where the region at `guest` is mapped.
pub fn host(table: &MemoryTable, guest: u64) -> HostRange {
    table.slice(GuestAddr(guest), 1).expect("a mapped address").range()
}

/// The first word of the page at `guest`.
pub fn word(table: &MemoryTable, guest: u64) -> u64 {
    table.slice(GuestAddr(guest), 8).expect("a mapped address").read_obj(0).expect("8 bytes")
}
