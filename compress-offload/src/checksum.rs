//! Checksums of uncompressed data.
//!
//! Every value begins anew with each call: there is no state that a failed request could leave to the next one.

#![expect(
    unsafe_code,
    reason = "libdeflate's checksums take pointers, so that they can read a guest's range"
)]

use libdeflate_sys::{libdeflate_adler32, libdeflate_crc32};
use twox_hash::{XxHash32, XxHash64};

use crate::algorithm::Checksum;

const CRC32_START: u32 = 0;
const ADLER32_START: u32 = 1;

/// The checksum of `data`; 0 for [`Checksum::None`].
pub fn of(kind: Checksum, data: &[u8]) -> u64 {
    match kind {
        Checksum::Xxh32 => XxHash32::oneshot(0, data).into(),
        Checksum::Xxh64 => XxHash64::oneshot(0, data),
        // SAFETY: pointer and length are a slice's.
        other => unsafe { of_range(other, data.as_ptr(), data.len()) }.unwrap_or_default(),
    }
}

/// Whether [`of_range`] can compute it.
pub(crate) fn reads_ranges(kind: Checksum) -> bool {
    matches!(kind, Checksum::None | Checksum::Crc32 | Checksum::Adler32)
}

/// The checksum of memory that a guest may write to meanwhile, or `None` when only private memory will do. A guest that
/// does write gets the checksum of something.
///
/// # Safety
///
/// `len` bytes from `start` on are readable.
pub(crate) unsafe fn of_range(kind: Checksum, start: *const u8, len: usize) -> Option<u64> {
    match kind {
        Checksum::None => Some(0),
        // SAFETY: the caller's promise. The functions read each byte once and decide nothing by what it is.
        Checksum::Crc32 => Some(unsafe { libdeflate_crc32(CRC32_START, start.cast(), len) }.into()),
        // SAFETY: as above.
        Checksum::Adler32 => Some(unsafe { libdeflate_adler32(ADLER32_START, start.cast(), len) }.into()),
        Checksum::Xxh32 | Checksum::Xxh64 => None,
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "a range is checked against the slice that it is")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_those_of_the_specifications() {
        let data = b"123456789";
        assert_eq!(of(Checksum::Crc32, data), 0xcbf4_3926);
        assert_eq!(of(Checksum::Adler32, data), 0x091e_01de);
        assert_eq!(of(Checksum::Xxh32, data), 0x937b_ad67);
        assert_eq!(of(Checksum::Xxh64, data), 0x8cb8_41db_40e6_ae83);
        assert_eq!(of(Checksum::None, data), 0);
    }

    #[test]
    fn nothing_has_the_start_values() {
        let values = Checksum::ALL.map(|kind| of(kind, b""));
        assert_eq!(values, [0, 0, 1, 0x02cc_5d05, 0xef46_db37_51d8_e999]);
    }

    proptest! {
        #[test]
        fn a_range_has_the_checksum_of_the_same_bytes(data: Vec<u8>) {
            for kind in Checksum::ALL {
                // SAFETY: pointer and length are the vector's.
                let range = unsafe { of_range(kind, data.as_ptr(), data.len()) };
                prop_assert_eq!(range, reads_ranges(kind).then(|| of(kind, &data)));
            }
        }
    }
}
