//! bpf(2): maps, programs and links, each as one safe function.

#![expect(unsafe_code, reason = "a system call without a wrapper in the standard library")]

use std::ffi::CStr;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::program::Insn;

/// Name that our programs have in the kernel; a stale one is recognised by it.
pub(super) const PROGRAM_NAME: &str = "vhostd_xdp";

/// Commands (`enum bpf_cmd`).
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ProgFdById = 13,
    InfoByFd = 15,
    LinkCreate = 28,
}

/// Kinds of maps (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum MapKind {
    /// Any key.
    Hash = 1,
    /// Keys are indices.
    Array = 2,
    /// Values are AF_XDP sockets.
    Sockets = 17,
}

/// `BPF_PROG_TYPE_XDP`, and its attach type.
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `BPF_F_XDP_HAS_FRAGS`: the program takes frames of several buffers (Linux 5.18).
const HAS_FRAGS: u32 = 1 << 5;

/// A map, with keys of type `K` and values of type `V`.
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    types: std::marker::PhantomData<fn(K) -> V>,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    interface: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapElement {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Or the place for the next key.
    value: u64,
    flags: u64,
}

#[derive(IntoBytes, Immutable, FromZeros)]
#[repr(C)]
struct ProgLoad {
    kind: u32,
    insn_count: u32,
    insns: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Id {
    id: u32,
    next: u32,
    flags: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

/// The first part of `struct bpf_prog_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    unused: [u64; 6],
    name: [u8; 16],
}

impl<K: IntoBytes + FromBytes + Immutable, V: IntoBytes + FromBytes + Immutable> Map<K, V> {
    /// An empty map; an array is all zeros.
    pub(super) fn create(kind: MapKind, name: &str, entries: u32) -> io::Result<Self> {
        let attributes = MapCreate {
            kind: kind as u32,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries: entries,
            flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            name: object_name(name),
            interface: 0,
        };
        // SAFETY: no pointers are in the attributes.
        let fd = unsafe { new_descriptor(Command::MapCreate, &attributes)? };
        Ok(Self { fd, types: std::marker::PhantomData })
    }

    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let attributes = self.element(address_of(key), address_of(value));
        // SAFETY: key and value are of the sizes the map was made with, and only read.
        unsafe { bpf(Command::MapUpdate, &attributes).map(drop) }
    }

    /// Removes an entry; one that is not there is an error (ENOENT).
    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        let attributes = self.element(address_of(key), 0);
        // SAFETY: the key is of the size the map was made with, and only read.
        unsafe { bpf(Command::MapDelete, &attributes).map(drop) }
    }

    pub(super) fn get(&self, key: &K) -> io::Result<V> {
        let mut value = V::new_zeroed();
        let attributes = self.element(address_of(key), (&raw mut value).addr() as u64);
        // SAFETY: the key is of the size the map was made with, and `value` has room for one value. Any bytes make a `V`.
        unsafe { bpf(Command::MapLookup, &attributes)? };
        Ok(value)
    }

    /// All keys, in no order. Keys that others insert or remove meanwhile may be there or not.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::new_zeroed();
            let previous = keys.last().map_or(0, address_of);
            let attributes = self.element(previous, (&raw mut next).addr() as u64);
            // SAFETY: the previous key, if any, is only read; `next` has room for a key. Any bytes make a `K`.
            match unsafe { bpf(Command::MapNextKey, &attributes) } {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// For the instructions that name the map.
    pub(super) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn element(&self, key: u64, value: u64) -> MapElement {
        MapElement { map_fd: self.fd.as_raw_fd() as u32, pad: 0, key, value, flags: 0 }
    }
}

/// Loads an XDP program; `frags` says that it takes frames of several buffers.
pub(super) fn load(name: &str, program: &[Insn], frags: bool) -> io::Result<OwnedFd> {
    // No helper that it calls is reserved to GPL programs.
    const LICENCE: &CStr = c"Apache-2.0";
    let attributes = ProgLoad {
        kind: PROG_TYPE_XDP,
        insn_count: program.len() as u32,
        insns: program.as_ptr().addr() as u64,
        licence: LICENCE.as_ptr().addr() as u64,
        flags: if frags { HAS_FRAGS } else { 0 },
        name: object_name(name),
        expected_attach: ATTACH_XDP,
        ..ProgLoad::new_zeroed()
    };
    // SAFETY: the instructions and the licence are only read, and outlive the call.
    unsafe { new_descriptor(Command::ProgLoad, &attributes) }
}

/// Attaches a program until the descriptor is closed, by whatever end of the process. `flags` chooses the mode.
pub(super) fn attach(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    let prog_fd = program.as_raw_fd() as u32;
    let attributes = LinkCreate { prog_fd, interface, attach: ATTACH_XDP, flags };
    // SAFETY: no pointers are in the attributes.
    unsafe { new_descriptor(Command::LinkCreate, &attributes) }
}

/// The name of a loaded program.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    // SAFETY: no pointers are in the attributes.
    let fd = unsafe { new_descriptor(Command::ProgFdById, &Id { id, next: 0, flags: 0 })? };
    let mut info = ProgInfo::new_zeroed();
    let attributes = InfoByFd {
        fd: fd.as_raw_fd() as u32,
        len: size_of_val(&info) as u32,
        info: (&raw mut info).addr() as u64,
    };
    // SAFETY: `info` has room for `len` bytes. Any bytes make a `ProgInfo`.
    unsafe { bpf(Command::InfoByFd, &attributes)? };
    let end = info.name.iter().position(|&byte| byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

/// Names in the kernel have 15 characters.
fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    bytes
}

/// Pointers cross to the kernel as integers; the provenance is exposed because the kernel dereferences them.
fn address_of<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).expose_provenance() as u64
}

/// # Safety
/// The command returns a new descriptor; pointers in the attributes are as the command wants them.
unsafe fn new_descriptor<A: IntoBytes + Immutable>(command: Command, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the pointers; the descriptor is new, and ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attributes)?)) }
}

/// # Safety
/// Pointers in the attributes are as the command wants them.
unsafe fn bpf<A: IntoBytes + Immutable>(command: Command, attributes: &A) -> io::Result<i32> {
    let bytes = attributes.as_bytes();
    // SAFETY: the kernel reads `bytes.len()` bytes of attributes; the caller vouches for what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, bytes.as_ptr(), bytes.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
