//! Guest memory, and everything else that is mapped from a file descriptor somebody sent us.
//!
//! This is the only crate of the suite that dereferences guest memory. It hands out three kinds of access:
//!
//! - [`GuestSlice`]: a checked piece of a buffer, bound to the table it came from, with copy semantics only;
//! - [`Area`]: a ring area with a frozen length that keeps its mapping alive, with atomic loads and stores;
//! - [`HostRange`]: a plain pointer and length for the kernel (`struct iovec`), which must be turned back into a
//!   [`GuestSlice`] by [`MemoryTable::reenter`] before this process touches it.
//!
//! The guest is hostile and runs at the same time: no `&T` or `&mut T` to its memory ever exists, and what is read
//! is copied once into private memory before it is looked at.
//!
//! # Who does what
//!
//! The control thread owns a [`MemoryMap`] and turns `SET_MEM_TABLE`, `ADD_MEM_REG` and `REM_MEM_REG` into immutable
//! [`MemoryTable`]s, one a generation. Each worker keeps the current one in an [`Epochs`], which counts its own
//! I/O in flight and lets go of a replaced table when the last I/O that uses it has ended. Nothing on the data path
//! takes a lock, allocates or touches a reference count.
//!
//! A memory file that shrinks under a mapping raises SIGBUS on the next access; with [`sigbus::install`] this marks
//! the mapping as failed ([`MemoryTable::failed`]) and zeros appear in its place, instead of the process dying.

mod addr;
mod area;
mod checksum;
mod copy;
mod dirty_log;
mod epoch;
mod map;
mod mapping;
mod own;
#[cfg(test)]
mod properties;
pub mod sigbus;
mod slice;
mod table;
mod view;

pub use addr::{GuestAddr, HostRange, UserAddr};
pub use area::Area;
pub use checksum::checksum;
pub use dirty_log::{DirtyLog, LOG_PAGE_SIZE};
pub use epoch::{Epoch, Epochs};
pub use map::{MapError, MemoryMap, RegionError};
pub use mapping::MappingError;
pub use own::OwnMemory;
pub use slice::GuestSlice;
pub use table::{MAX_REGIONS, MemoryTable, OutOfRange, RegionConfig};
pub use view::MemoryView;
