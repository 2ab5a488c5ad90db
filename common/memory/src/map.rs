//! The control side: turns the frontend's memory messages into tables.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use crate::addr::GuestAddr;
use crate::mapping::{FileId, MAX_MAPPED, MappableFile, Mapping, MappingError};
use crate::table::{MAX_REGIONS, MemoryTable, Region, RegionConfig};

/// Guest addresses, user addresses and file offsets of regions are multiples of this; then alignment in the guest is
/// alignment in this process.
const REGION_ALIGN: u64 = 4096;

/// Why a memory message was refused; the table stays as it was.
#[derive(Debug, Error)]
pub enum MapError {
    /// More regions than memory slots.
    #[error("{count} memory regions are more than {MAX_REGIONS}")]
    TooManyRegions {
        /// How many there would be.
        count: usize,
    },
    /// More memory than one connection may map.
    #[error("{bytes} bytes of memory are more than {MAX_MAPPED}")]
    TooMuch {
        /// How many there would be.
        bytes: u64,
    },
    /// REM_MEM_REG of a region that is not there.
    #[error("No memory region of {len} bytes at guest address {guest}")]
    Unknown {
        /// Guest address that was named.
        guest: GuestAddr,
        /// Length that was named.
        len: u64,
    },
    /// Two regions share guest addresses.
    #[error("The memory regions at {first} and {second} overlap")]
    Overlap {
        /// The lower one.
        first: GuestAddr,
        /// The higher one.
        second: GuestAddr,
    },
    /// One region cannot be used.
    #[error("The memory region at {guest} is not usable")]
    Region {
        /// Its guest address.
        guest: GuestAddr,
        /// Why.
        source: RegionError,
    },
}

/// Why one region cannot be used.
#[derive(Debug, Error)]
pub enum RegionError {
    /// A length of zero.
    #[error("It has no bytes")]
    Empty,
    /// An address or the offset is not on a page boundary.
    #[error("Its guest address, user address or file offset is not a multiple of {REGION_ALIGN}")]
    Misaligned,
    /// It wraps around the end of an address space.
    #[error("It reaches past the end of the address space")]
    Overflow,
    /// The file cannot be mapped.
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

impl RegionConfig {
    /// What can be said without the file.
    fn check(&self) -> Result<(), RegionError> {
        if self.len == 0 {
            return Err(RegionError::Empty);
        }
        if [self.guest.0, self.user.0, self.mmap_offset]
            .iter()
            .any(|value| !value.is_multiple_of(REGION_ALIGN))
        {
            return Err(RegionError::Misaligned);
        }
        if self.guest.checked_add(self.len).is_none() || self.user.checked_add(self.len).is_none() {
            return Err(RegionError::Overflow);
        }
        Ok(())
    }

    /// vhost-user: REM_MEM_REG identifies a region by its addresses and size; the offset is ignored.
    fn same_place(&self, other: &Self) -> bool {
        (self.guest, self.user, self.len) == (other.guest, other.user, other.len)
    }
}

/// The memory of one connection, on the control thread.
///
/// Every change makes a new [`MemoryTable`]; regions that stay keep their mapping, so host addresses stay valid and
/// nothing is faulted in again.
#[derive(Debug)]
pub struct MemoryMap {
    table: Arc<MemoryTable>,
}

impl MemoryMap {
    /// No memory yet.
    pub fn new() -> Self {
        Self { table: MemoryTable::empty() }
    }

    /// The current table.
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// Replaces all regions (vhost-user: SET_MEM_TABLE). A region with the configuration and the file of a present one
    /// keeps its mapping. The descriptors are closed in any case.
    pub fn set_table(&mut self, regions: Vec<(RegionConfig, OwnedFd)>) -> Result<Arc<MemoryTable>, MapError> {
        check_layout(regions.iter().map(|(config, _)| *config).collect())?;
        let mapped = regions.into_iter().map(|(config, fd)| self.map(config, &fd));
        let mapped = mapped.collect::<Result<_, _>>()?;
        Ok(self.replace(mapped))
    }

    /// Adds one region (vhost-user: ADD_MEM_REG); the others are not touched. The descriptor is closed in any case. Adding
    /// what is there already changes nothing: QEMU before 8.0 adds each region once for every queue pair.
    pub fn add(&mut self, config: RegionConfig, fd: OwnedFd) -> Result<Arc<MemoryTable>, MapError> {
        if self.has(&config, &fd) {
            return Ok(Arc::clone(&self.table));
        }
        check_layout(self.table.regions().chain([config]).collect())?;
        let added = self.map(config, &fd)?;
        let mut regions = self.table.mapped().to_vec();
        regions.push(added);
        Ok(self.replace(regions))
    }

    /// Removes one region (vhost-user: REM_MEM_REG); its mapping goes when the last table with it is dropped.
    pub fn remove(&mut self, config: &RegionConfig) -> Result<Arc<MemoryTable>, MapError> {
        let mut regions = self.table.mapped().to_vec();
        let place = regions.iter().position(|region| region.config.same_place(config));
        let place = place.ok_or(MapError::Unknown { guest: config.guest, len: config.len })?;
        regions.remove(place);
        Ok(self.replace(regions))
    }

    /// Removes all regions.
    pub fn clear(&mut self) {
        self.replace(Vec::new());
    }

    fn replace(&mut self, regions: Vec<Region>) -> Arc<MemoryTable> {
        self.table = Arc::new(MemoryTable::new(self.table.generation() + 1, regions));
        Arc::clone(&self.table)
    }

    /// Maps a region that `check_layout` has seen, or takes the present mapping.
    fn map(&self, config: RegionConfig, fd: &OwnedFd) -> Result<Region, MapError> {
        let refused = |source: MappingError| MapError::Region { guest: config.guest, source: source.into() };
        let file = MappableFile::examine(fd.as_fd()).map_err(refused)?;
        file.check(config.mmap_offset, config.len).map_err(refused)?;
        let mapping = match self.present(&config, file.id()) {
            Some(mapping) => mapping,
            None => Arc::new(Mapping::of_file(&file, config.mmap_offset, config.len).map_err(refused)?),
        };
        Ok(Region { config, mapping })
    }

    /// Whether the region is there, backed by the same part of the same file.
    fn has(&self, config: &RegionConfig, fd: &OwnedFd) -> bool {
        let file = MappableFile::examine(fd.as_fd()).ok();
        file.is_some_and(|file| self.present(config, file.id()).is_some())
    }

    /// The mapping of the same part of the same file, unless it has failed.
    fn present(&self, config: &RegionConfig, file: FileId) -> Option<Arc<Mapping>> {
        let same = |region: &&Region| {
            region.config == *config && region.mapping.file() == Some(file) && !region.mapping.failed()
        };
        self.table.mapped().iter().find(same).map(|region| Arc::clone(&region.mapping))
    }
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

/// Everything that can be refused before a file is looked at.
pub(crate) fn check_layout(mut configs: Vec<RegionConfig>) -> Result<(), MapError> {
    if configs.len() > MAX_REGIONS {
        return Err(MapError::TooManyRegions { count: configs.len() });
    }
    for config in &configs {
        config.check().map_err(|source| MapError::Region { guest: config.guest, source })?;
    }
    let bytes = configs.iter().fold(0u64, |bytes, config| bytes.saturating_add(config.len));
    if bytes > MAX_MAPPED {
        return Err(MapError::TooMuch { bytes });
    }
    configs.sort_by_key(|config| config.guest);
    let overlap = configs.windows(2).find(|pair| pair[0].guest.0 + pair[0].len > pair[1].guest.0);
    match overlap {
        Some(pair) => Err(MapError::Overlap { first: pair[0].guest, second: pair[1].guest }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::UserAddr;

    fn region(guest: u64, len: u64) -> RegionConfig {
        RegionConfig { guest: GuestAddr(guest), len, user: UserAddr(0), mmap_offset: 0 }
    }

    fn refused(config: RegionConfig) -> RegionError {
        match check_layout(vec![config]) {
            Err(MapError::Region { source, .. }) => source,
            other => panic!("{config:?} gave {other:?}"),
        }
    }

    #[test]
    fn regions_without_bytes_or_past_the_address_space_are_refused() {
        assert!(matches!(refused(region(0, 0)), RegionError::Empty));
        assert!(matches!(refused(region(u64::MAX - 4095, 4096)), RegionError::Overflow));
        assert!(matches!(refused(region(0x1000, u64::MAX)), RegionError::Overflow));
        let user = RegionConfig { user: UserAddr(u64::MAX - 4095), ..region(0, 8192) };
        assert!(matches!(refused(user), RegionError::Overflow));
    }

    #[test]
    fn misaligned_regions_are_refused() {
        for config in [
            region(0x1001, 4096),
            RegionConfig { user: UserAddr(8), ..region(0, 4096) },
            RegionConfig { mmap_offset: 512, ..region(0, 4096) },
        ] {
            assert!(matches!(refused(config), RegionError::Misaligned), "{config:?}");
        }
    }

    #[test]
    fn overlaps_are_refused_and_touching_is_not() {
        let overlapping = check_layout(vec![region(0x4000, 0x1000), region(0x2000, 0x2001)]);
        assert!(matches!(
            overlapping,
            Err(MapError::Overlap { first: GuestAddr(0x2000), second: GuestAddr(0x4000) })
        ));
        assert!(check_layout(vec![region(0x1000, 1), region(0x1000, 1)]).is_err());
        assert!(check_layout(vec![region(0x4000, 0x1000), region(0x2000, 0x2000)]).is_ok());
    }

    #[test]
    fn one_connection_cannot_take_all_addresses_of_the_process() {
        let half = MAX_MAPPED / 2;
        let (low, high) = (region(0, half), region(half, half));
        assert!(check_layout(vec![low, high]).is_ok());
        let more = region(MAX_MAPPED, 4096);
        assert!(matches!(check_layout(vec![low, high, more]), Err(MapError::TooMuch { .. })));
    }

    #[test]
    fn more_regions_than_slots_are_refused() {
        let regions = |count: u64| (0..count).map(|index| region(index << 12, 4096)).collect();
        assert!(check_layout(regions(MAX_REGIONS as u64)).is_ok());
        assert!(matches!(check_layout(regions(510)), Err(MapError::TooManyRegions { count: 510 })));
    }
}
