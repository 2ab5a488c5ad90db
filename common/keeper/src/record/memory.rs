//! Guest memory, as the frontend has shared it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use vhost_user::message::{MemoryRegion, MemoryTableHead, SingleMemoryRegion};
use zerocopy::FromBytes;

/// One region and its file.
pub(crate) struct Region {
    pub region: MemoryRegion,
    pub file: File,
}

/// All regions. Nothing of them is mapped here.
#[derive(Default)]
pub(crate) struct Regions(Vec<Region>);

impl Regions {
    /// `SET_MEM_TABLE`.
    pub fn set(&mut self, body: &[u8], fds: Vec<OwnedFd>) {
        let Ok((_, rest)) = MemoryTableHead::read_from_prefix(body) else { return };
        let Ok((regions, _)) = <[MemoryRegion]>::ref_from_prefix_with_elems(rest, fds.len()) else { return };
        let pair = |(region, fd): (&MemoryRegion, OwnedFd)| Region { region: *region, file: fd.into() };
        self.0 = regions.iter().zip(fds).map(pair).collect();
    }

    /// `ADD_MEM_REG`.
    pub fn add(&mut self, body: &[u8], fds: Vec<OwnedFd>) {
        let Ok(SingleMemoryRegion { region, .. }) = SingleMemoryRegion::read_from_bytes(body) else { return };
        // The same region again is no second one.
        self.0.retain(|have| !same(&have.region, &region));
        self.0.extend(fds.into_iter().next().map(|fd| Region { region, file: fd.into() }));
    }

    /// `REM_MEM_REG`.
    pub fn remove(&mut self, body: &[u8]) {
        if let Ok(SingleMemoryRegion { region, .. }) = SingleMemoryRegion::read_from_bytes(body) {
            self.0.retain(|have| !same(&have.region, &region));
        }
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Region> {
        self.0.iter()
    }

    /// Reads two bytes at an address of the frontend's.
    pub fn read_u16(&self, user: u64) -> Option<u16> {
        let inside = |each: &&Region| {
            let offset = user.checked_sub(each.region.user_addr.get());
            offset.is_some_and(|offset| offset < each.region.size.get())
        };
        let Region { region, file } = self.0.iter().find(inside)?;
        let mut bytes = [0; 2];
        let offset = region.mmap_offset.get().checked_add(user - region.user_addr.get())?;
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(u16::from_le_bytes(bytes))
    }
}

/// Whether two descriptions are of one region. QEMU leaves the offset in the file out when it removes one.
fn same(a: &MemoryRegion, b: &MemoryRegion) -> bool {
    (a.guest_addr, a.size, a.user_addr) == (b.guest_addr, b.size, b.user_addr)
}
