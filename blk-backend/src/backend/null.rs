//! Nothing behind the disk: writes are dropped and reads leave the guest's buffer as it is, like
//! qemu-storage-daemon's `null-co` with `read-zeroes=off`. What remains is the cost of the daemon itself.

use super::Inline;
use crate::request::{Extent, RangeOp, Status};
use memory::GuestSlice;

/// The null backend.
#[derive(Debug, Default)]
pub struct NullBackend;

impl Inline for NullBackend {
    const IGNORES_DATA: bool = true;

    #[inline]
    fn read(&self, _: u64, _: GuestSlice<'_>) -> Status {
        Status::Ok
    }

    #[inline]
    fn write(&self, _: u64, _: GuestSlice<'_>) -> Status {
        Status::Ok
    }

    #[inline]
    fn range(&self, _: RangeOp, _: Extent) -> Status {
        Status::Ok
    }
}
