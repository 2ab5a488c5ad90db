//! What a request ends with.

use crate::number::Status;
use crate::wire::{put, u32_at, u64_at};

/// Bytes of a response.
pub const RESPONSE_LEN: usize = 32;

/// Bits of [`Response::flags`] (§1.6.5).
pub mod response_flag {
    /// The engine of first choice failed, and another one gave this answer.
    pub const SECOND_ENGINE: u32 = 1 << 0;
    /// The result was decompressed again and is what the source was.
    pub const VERIFIED: u32 = 1 << 1;
    /// The stream, or this member of it, is complete.
    pub const STREAM_END: u32 = 1 << 2;
}

/// `struct virtio_compress_resp` as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Response {
    /// [`Status`].
    pub status: u32,
    /// [`response_flag`] bits.
    pub flags: u32,
    /// Bytes of source that were used.
    pub consumed: u32,
    /// Bytes of destination that are the result.
    pub produced: u32,
    /// The checksum that was asked for; the number of a stream that was opened.
    pub checksum: u64,
    /// What the request had.
    pub user_tag: u64,
}

impl Response {
    /// Nothing but a status.
    pub fn bare(status: Status, user_tag: u64) -> Self {
        Self { status: status.wire(), user_tag, ..Self::default() }
    }

    /// The status, if it is one that has a name.
    pub fn status(&self) -> Option<Status> {
        Status::from_wire(self.status)
    }

    /// Whether the request was done.
    pub fn is_ok(&self) -> bool {
        self.status == Status::Ok.wire()
    }

    /// The stream that STREAM_OPEN has opened.
    pub fn stream_id(&self) -> u64 {
        self.checksum
    }

    /// What is on the wire.
    #[inline]
    pub fn encode(&self) -> [u8; RESPONSE_LEN] {
        let mut wire = [0; RESPONSE_LEN];
        put(&mut wire, 0, self.status.to_le_bytes());
        put(&mut wire, 4, self.flags.to_le_bytes());
        put(&mut wire, 8, self.consumed.to_le_bytes());
        put(&mut wire, 12, self.produced.to_le_bytes());
        put(&mut wire, 16, self.checksum.to_le_bytes());
        put(&mut wire, 24, self.user_tag.to_le_bytes());
        wire
    }

    /// From what is on the wire: any bytes are a response.
    #[inline]
    pub fn decode(wire: &[u8; RESPONSE_LEN]) -> Self {
        Self {
            status: u32_at(wire, 0),
            flags: u32_at(wire, 4),
            consumed: u32_at(wire, 8),
            produced: u32_at(wire, 12),
            checksum: u64_at(wire, 16),
            user_tag: u64_at(wire, 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        let response = Response {
            status: Status::Truncated.wire(),
            flags: response_flag::VERIFIED | response_flag::STREAM_END,
            consumed: 0x0a0b_0c0d,
            produced: 0x1a1b_1c1d,
            checksum: 0x2021_2223_2425_2627,
            user_tag: 0x3031_3233_3435_3637,
        };
        #[rustfmt::skip]
        let golden = [
            4, 0, 0, 0,  6, 0, 0, 0,
            0x0d, 0x0c, 0x0b, 0x0a,  0x1d, 0x1c, 0x1b, 0x1a,
            0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0x20,
            0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31, 0x30,
        ];
        assert_eq!(response.encode(), golden);
        assert_eq!(Response::decode(&golden), response);
        assert_eq!(response.status(), Some(Status::Truncated));
    }

    #[test]
    fn a_status_of_a_later_version_is_kept() {
        let response = Response::decode(&[0xff; RESPONSE_LEN]);
        assert_eq!((response.status(), response.status, response.is_ok()), (None, u32::MAX, false));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_response_and_stay_what_they_are(wire in any::<[u8; RESPONSE_LEN]>()) {
            prop_assert_eq!(Response::decode(&wire).encode(), wire);
        }
    }
}
