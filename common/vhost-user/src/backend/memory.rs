//! Guest memory and the dirty log.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, MapError, MemoryTable, RegionConfig, UserAddr};
use zerocopy::{FromBytes, IntoBytes};

use super::dispatch::{one_fd, payload};
use super::refusal::Refusal;
use super::{Answer, Handled, Session};
use crate::connection::Message;
use crate::message::{Log, MAX_FDS, MemoryRegion, MemoryTableHead, SingleMemoryRegion, features, protocol};

impl Session<'_> {
    /// vhost-user: SET_MEM_TABLE. QEMU sends the whole table again whenever it changes; what stays, stays mapped.
    pub(super) fn set_mem_table(&mut self, message: Message) -> Handled {
        let regions = regions(&message)?;
        if regions.len() != message.fds.len() {
            return Err(Refusal::FdCount { got: message.fds.len(), want: regions.len() });
        }
        let regions: Vec<(RegionConfig, OwnedFd)> = regions.into_iter().zip(message.fds).collect();
        let table = self.memory.set_table(regions)?;
        self.use_memory(table);
        Ok(Answer::Done)
    }

    pub(super) fn add_mem_reg(&mut self, mut message: Message) -> Handled {
        let region = payload::<SingleMemoryRegion>(&message)?.region;
        let fd = one_fd(&mut message)?;
        let before = Arc::clone(self.memory.table());
        let table = self.memory.add(config(&region), fd)?;
        if !Arc::ptr_eq(&table, &before) {
            self.use_memory(table);
        }
        Ok(Answer::Done)
    }

    /// vhost-user: REM_MEM_REG. A descriptor that came along (virtio-driver sends one) is closed unused.
    pub(super) fn rem_mem_reg(&mut self, message: &Message) -> Handled {
        let region = payload::<SingleMemoryRegion>(message)?.region;
        if message.fds.len() > 1 {
            return Err(Refusal::FdCount { got: message.fds.len(), want: 0 });
        }
        match self.memory.remove(&config(&region)) {
            Ok(table) => self.use_memory(table),
            // QEMU before 8.0 removes each region once for every queue pair; gone is gone.
            Err(error @ MapError::Unknown { .. }) => tracing::debug!(%error, "REM_MEM_REG has nothing to do"),
            Err(error) => return Err(error.into()),
        }
        Ok(Answer::Done)
    }

    /// Hands a new table to the device. Rings that the table moves or no longer covers are stopped (drained) before, and
    /// every ring that waits for memory is started again if the table now has it. So a ring survives the moment between
    /// `REM_MEM_REG` and `ADD_MEM_REG` in which its memory is gone.
    fn use_memory(&mut self, table: Arc<MemoryTable>) {
        let features = self.ring_features();
        for index in 0..self.rings.len() {
            let ring = &self.rings[index];
            if ring.running.is_some() && ring.locate(&table, features).ok() != ring.running {
                self.stop_ring(index);
            }
        }
        self.device.set_memory(table);
        for index in 0..self.rings.len() {
            if self.rings[index].started && self.rings[index].running.is_none() {
                // It stays parked when its memory is still missing; that is not this message's failure.
                if let Err(reason) = self.run_ring(index) {
                    tracing::debug!(ring = index, %reason, "ring waits for its memory");
                }
            }
        }
    }

    /// vhost-user: SET_LOG_BASE. With `LOG_SHMFD` it carries the log and is answered.
    pub(super) fn set_log_base(&mut self, mut message: Message) -> Handled {
        if !self.has_protocol(protocol::LOG_SHMFD) {
            return Err(Refusal::Unsupported);
        }
        let log: Log = payload(&message)?;
        let fd = one_fd(&mut message)?;
        self.dirty_log = Some(DirtyLog::map(fd, log.size.get(), log.offset.get())?);
        if self.has_feature(features::LOG_ALL) {
            self.switch_log();
        }
        // The specification gives no payload. QEMU takes any, crate vhost (and with it cloud-hypervisor) wants its own back.
        Ok(Answer::body(log.as_bytes()))
    }

    /// Switches the dirty log of every running ring on, off or over.
    pub(super) fn switch_log(&mut self) {
        self.device.set_log(self.active_log());
        // The device logs used rings at their own guest addresses. A front-end that wants another one is served by setting
        // the ring up anew.
        for index in 0..self.rings.len() {
            let ring = &self.rings[index];
            if ring.running.as_ref().is_some_and(|addresses| ring.used_log(addresses).is_some()) {
                self.stop_ring(index);
                if let Err(reason) = self.run_ring(index) {
                    tracing::warn!(ring = index, %reason, "ring cannot go on with its dirty log");
                }
            }
        }
    }
}

/// The regions of a `SET_MEM_TABLE`; some front-ends send more room than there are regions.
fn regions(message: &Message) -> Result<Vec<RegionConfig>, Refusal> {
    let bad_size = || Refusal::BadSize(message.body.len());
    let (head, rest) = message.prefix::<MemoryTableHead>().ok_or_else(bad_size)?;
    let count = head.count.get() as usize;
    if count > MAX_FDS {
        return Err(Refusal::BadValue(count as u64));
    }
    let (regions, _) = <[MemoryRegion]>::ref_from_prefix_with_elems(rest, count).map_err(|_| bad_size())?;
    Ok(regions.iter().map(config).collect())
}

fn config(region: &MemoryRegion) -> RegionConfig {
    RegionConfig {
        guest: GuestAddr(region.guest_addr.get()),
        len: region.size.get(),
        user: UserAddr(region.user_addr.get()),
        mmap_offset: region.mmap_offset.get(),
    }
}
