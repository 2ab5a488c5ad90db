//! The inflight region that the keeper holds for a frontend that holds none.
//!
//! A worker notes in it which requests it has taken and not completed (vhost-user: Inflight I/O tracking); the next worker
//! gets it back and submits them again. The worker makes the region, as it would for a frontend; the keeper looks at
//! one thing in it: where a packed ring stands that was stopped.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vhost_user::message::Inflight;
use virtqueue::Format;
use virtqueue::inflight::region_size;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Offset of `version` in the part of a queue (vhost-user: QueueRegionPacked).
const VERSION: usize = 8;
/// Offset of `used_idx`.
const USED_IDX: usize = 16;
/// Offset of `used_wrap_counter`.
const USED_WRAP: usize = 20;
/// What is read of a part.
const HEADER: usize = 24;
/// The wrap counter in `SET_VRING_BASE`.
const WRAP: u32 = 1 << 15;

/// A region and how to send it.
pub(crate) struct Tracking {
    /// The payload of `SET_INFLIGHT_FD`.
    pub body: Vec<u8>,
    pub file: File,
    /// The ring format it was made for.
    pub packed: bool,
}

/// The payload of a `GET_INFLIGHT_FD`.
pub(crate) fn wanted(queues: u16, queue_size: u16) -> Inflight {
    let mut inflight = Inflight::new_zeroed();
    (inflight.num_queues, inflight.queue_size) = (queues.into(), queue_size.into());
    inflight
}

/// Where a packed ring stands that the worker has drained and stopped, as in `SET_VRING_BASE`. `None` when it runs, or never
/// did: then its region, or the frontend, knows.
pub(crate) fn packed_base(body: &[u8], file: &File, ring: u32) -> Option<u32> {
    let mut inflight = Inflight::new_zeroed();
    inflight.as_mut_bytes().get_mut(..body.len())?.copy_from_slice(body);
    if ring >= u32::from(inflight.num_queues.get()) {
        return None;
    }
    let part = region_size(Format::Packed, inflight.queue_size.get()) as u64 * u64::from(ring);
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, inflight.mmap_offset.get().checked_add(part)?).ok()?;
    let number =
        |at: usize| header.get(at..).and_then(|rest| u16::read_from_prefix(rest).ok()).map(|(n, _)| n);
    if number(VERSION)? != 0 {
        return None;
    }
    // Drained: both sides are at the same slot.
    let position = u32::from(number(USED_IDX)?) | if header[USED_WRAP] != 0 { WRAP } else { 0 };
    Some(position | position << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A region of two queues of 16, of which the second has this header.
    fn region(version: u16, used: u16, wrap: u8) -> (Vec<u8>, File) {
        let file = crate::sys::memfd("test", 2 * region_size(Format::Packed, 16) as u64).unwrap();
        let mut header = [0; HEADER];
        header[VERSION..][..2].copy_from_slice(&version.to_ne_bytes());
        header[USED_IDX..][..2].copy_from_slice(&used.to_ne_bytes());
        header[USED_WRAP] = wrap;
        file.write_all_at(&header, region_size(Format::Packed, 16) as u64).unwrap();
        (wanted(2, 16).as_bytes().to_vec(), file)
    }

    #[test]
    fn a_stopped_packed_ring_stands_where_its_region_says() {
        let (body, file) = region(0, 5, 1);
        assert_eq!(packed_base(&body, &file, 1), Some(0x8005_8005));
        let (body, file) = region(0, 7, 0);
        assert_eq!(packed_base(&body, &file, 1), Some(0x0007_0007));
    }

    #[test]
    fn a_region_in_use_speaks_for_itself() {
        let (body, file) = region(1, 5, 1);
        assert_eq!(packed_base(&body, &file, 1), None);
    }

    #[test]
    fn a_ring_without_a_part_has_no_base_in_it() {
        let (body, file) = region(0, 5, 1);
        assert_eq!(packed_base(&body, &file, 2), None);
        assert_eq!(packed_base(&body[..20], &file, 1), Some(0x8005_8005));
    }
}
