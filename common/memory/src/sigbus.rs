//! What happens when a memory file shrinks under its mapping.
//!
//! The frontend owns the files behind the mappings and may truncate them at any time. The next access raises SIGBUS,
//! which would end the process and with it every other guest's devices. With the handler [`install`]ed a fault inside
//! one of our mappings puts zero pages in its place and marks the mapping as failed; a worker sees that by
//! [`MemoryTable::failed`](crate::MemoryTable::failed) or [`Area::failed`](crate::Area::failed) and fails the device.
//! Any other SIGBUS keeps its default action.
//!
//! The handler may run at any instruction of any thread, so the table it searches is a fixed array of atomics.

#![expect(unsafe_code, reason = "a signal handler, and mmap inside it")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// Mappings that can be guarded at a time: 64 guests with every memory slot in use. Untouched entries cost no memory.
pub const MAX_MAPPINGS: usize = 32768;

struct Entry {
    claimed: AtomicBool,
    failed: AtomicBool,
    page_size: AtomicUsize,
    start: AtomicUsize,
    /// Zero as long as nothing is guarded here. Stored last and cleared first, so that the handler never combines the
    /// start of one mapping with the end of another.
    end: AtomicUsize,
}

static ENTRIES: [Entry; MAX_MAPPINGS] = [const {
    Entry {
        claimed: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        page_size: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; MAX_MAPPINGS];

/// No entry at or above this index was ever claimed.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);

/// Mappings that are marked as failed now.
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Whether any mapping of the process has failed; one relaxed load.
#[inline]
pub(crate) fn any_failed() -> bool {
    FAILED.load(Ordering::Relaxed) != 0
}

/// A claimed entry of the table; given back when dropped.
pub(crate) struct Slot(&'static Entry);

impl Slot {
    /// `None` when all are taken.
    pub(crate) fn claim() -> Option<Self> {
        let free = |entry: &Entry| {
            !entry.claimed.load(Ordering::Relaxed)
                && entry.claimed.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let index = ENTRIES.iter().position(free)?;
        HIGH_WATER.fetch_max(index + 1, Ordering::Release);
        Some(Self(&ENTRIES[index]))
    }

    /// From now on a fault inside the mapping is survived.
    pub(crate) fn guard(&self, base: NonNull<u8>, len: usize, page_size: usize) {
        let start = base.as_ptr().addr();
        self.0.page_size.store(page_size, Ordering::Relaxed);
        self.0.start.store(start, Ordering::Relaxed);
        self.0.end.store(start + len, Ordering::Release);
    }

    /// The mapping is about to be unmapped: another one may be put at the same addresses.
    pub(crate) fn unguard(&self) {
        self.0.end.store(0, Ordering::SeqCst);
    }

    pub(crate) fn failed(&self) -> bool {
        self.0.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.unguard();
        if self.0.failed.swap(false, Ordering::AcqRel) {
            FAILED.fetch_sub(1, Ordering::AcqRel);
        }
        self.0.claimed.store(false, Ordering::Release);
    }
}

/// Installs the handler for the whole process; call it once, before the first connection. Calling it again is
/// harmless.
pub fn install() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: an all-zero sigaction is valid; the handler has the three-argument form that SA_SIGINFO announces and
    // does nothing but atomics, mmap and sigaction, all async-signal-safe.
    let result = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handle as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGBUS, action, ptr::null_mut())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler; `si_addr` is set for kernel-made SIGBUS.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // SAFETY: errno is thread-local; a handler must leave it as it was.
    let saved_errno = unsafe { *libc::__errno_location() };
    let survived = code > 0 && find(address).is_some_and(|entry| replace_page(entry, address));
    if !survived {
        give_up(signal, code);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = saved_errno };
}

/// The entry whose mapping holds the address. That mapping is alive (a thread is just accessing it), so its entry is
/// stable; entries that others change meanwhile cannot match, since live mappings do not overlap.
fn find(address: usize) -> Option<&'static Entry> {
    ENTRIES[..HIGH_WATER.load(Ordering::Acquire)].iter().find(|entry| {
        let end = entry.end.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Acquire);
        address < end && start <= address && entry.end.load(Ordering::Acquire) == end
    })
}

/// Marks the mapping as failed and puts zeros over the page, so that the access can go on.
fn replace_page(entry: &Entry, address: usize) -> bool {
    if !entry.failed.swap(true, Ordering::AcqRel) {
        FAILED.fetch_add(1, Ordering::AcqRel);
    }
    let page_size = entry.page_size.load(Ordering::Relaxed);
    let page = address & !(page_size - 1);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the page is part of a mapping of ours, made of whole pages of this size, which nothing references by
    // `&T`: replacing it changes what volatile reads see, as the other side may do at any time. The raw system call
    // touches no allocator or lock.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            page,
            page_size,
            protection,
            flags,
            -1 as libc::c_long,
            0 as libc::c_long,
        )
    };
    result >= 0
}

/// Not ours: back to the default action. A fault happens again when the handler returns; a signal that somebody sent
/// has to be sent again.
fn give_up(signal: libc::c_int, code: libc::c_int) {
    // SAFETY: signal() and raise() are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if code <= 0 {
            libc::raise(signal);
        }
    }
}
