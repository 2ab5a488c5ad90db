//! The private front of a frame.

use super::parse::{BadFrame, Tag};

/// Bytes of a frame that are copied for the first look: every header a switch ordinarily looks at is in them.
pub const HEAD: usize = 128;
/// Bytes of a frame that a [`Head`] can hold.
pub const HEAD_MAX: usize = 256;
/// Bytes of one VLAN tag.
pub const TAG_LEN: usize = 4;
/// Room in front for two pushed tags.
const HEADROOM: usize = 2 * TAG_LEN;
/// Both addresses; a tag goes behind them.
const ADDRESSES: usize = 12;

/// The first bytes of a frame, from the destination address on, in private memory.
///
/// About 270 bytes: kept in place and filled again, not moved about.
#[derive(Clone)]
pub struct Head {
    bytes: [u8; HEADROOM + HEAD_MAX],
    start: u16,
    end: u16,
}

impl Head {
    /// An empty head.
    pub const fn new() -> Self {
        Self { bytes: [0; HEADROOM + HEAD_MAX], start: HEADROOM as u16, end: HEADROOM as u16 }
    }

    /// The head of a frame that starts with `bytes`, of which at most [`HEAD_MAX`] are taken.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut head = Self::new();
        let len = bytes.len().min(HEAD_MAX);
        head.fill(len).copy_from_slice(&bytes[..len]);
        head
    }

    /// Starts a new frame with `len` bytes, to be written over by the caller: they hold what was there before.
    ///
    /// # Panics
    /// When `len` is more than [`HEAD_MAX`].
    #[inline]
    pub fn fill(&mut self, len: usize) -> &mut [u8] {
        let bytes = &mut self.bytes[HEADROOM..][..len];
        (self.start, self.end) = (HEADROOM as u16, (HEADROOM + len) as u16);
        bytes
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..usize::from(self.end)]
    }

    /// The bytes, to be changed.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[usize::from(self.start)..usize::from(self.end)]
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.end - self.start)
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Inserts a VLAN tag behind the addresses. The places a [`NetHeader`](super::NetHeader) names move by
    /// [`TAG_LEN`]. Fails when the frame is too short to have addresses, or two tags have been pushed already.
    #[inline]
    pub fn push_tag(&mut self, tag: Tag) -> Result<(), BadFrame> {
        let start = usize::from(self.start);
        if self.len() < ADDRESSES || start < TAG_LEN {
            return Err(BadFrame::NoRoomForTag);
        }
        self.bytes.copy_within(start..start + ADDRESSES, start - TAG_LEN);
        self.start -= TAG_LEN as u16;
        self.write_tag(tag);
        Ok(())
    }

    /// Removes the outer VLAN tag and returns it, or `None` when there is none.
    #[inline]
    pub fn pop_tag(&mut self) -> Option<Tag> {
        let tag = self.tag()?;
        let start = usize::from(self.start);
        self.bytes.copy_within(start..start + ADDRESSES, start + TAG_LEN);
        self.start += TAG_LEN as u16;
        Some(tag)
    }

    /// Gives the outer VLAN tag another control field; without a tag nothing happens and the answer is `false`.
    #[inline]
    pub fn set_tci(&mut self, tci: u16) -> bool {
        let Some(tag) = self.tag() else { return false };
        self.write_tag(Tag { tci, ..tag });
        true
    }

    /// The outer VLAN tag.
    #[inline]
    pub fn tag(&self) -> Option<Tag> {
        Tag::read(self.as_slice().get(ADDRESSES..ADDRESSES + TAG_LEN)?.first_chunk()?)
    }

    #[inline]
    fn write_tag(&mut self, tag: Tag) {
        self.as_mut_slice()[ADDRESSES..ADDRESSES + TAG_LEN].copy_from_slice(&tag.to_bytes());
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({:02x?})", self.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::ethertype;
    use super::*;

    const FRAME: [u8; 18] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0, 0x45, 1, 2, 3];

    #[test]
    fn tags_go_behind_the_addresses_and_come_off_again() {
        let mut head = Head::from_slice(&FRAME);
        let (inner, outer) = (Tag::new(0x2007), Tag { tpid: ethertype::SERVICE_VLAN, tci: 99 });
        assert_eq!(head.pop_tag(), None);
        head.push_tag(inner).expect("room");
        assert_eq!(head.as_slice(), [&FRAME[..12], &[0x81, 0, 0x20, 7], &FRAME[12..]].concat());
        head.push_tag(outer).expect("room");
        assert_eq!((head.tag(), head.len()), (Some(outer), FRAME.len() + 8));
        assert_eq!(head.push_tag(inner), Err(BadFrame::NoRoomForTag));
        assert!(head.set_tci(98));
        assert_eq!(head.pop_tag(), Some(Tag { tci: 98, ..outer }));
        assert_eq!(head.pop_tag(), Some(inner));
        assert_eq!(head.as_slice(), FRAME);
        assert!(!head.set_tci(1));
    }

    #[test]
    fn a_tag_that_came_with_the_frame_comes_off_a_full_head() {
        let mut frame = vec![7; HEAD_MAX];
        frame[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
        let mut head = Head::from_slice(&frame);
        assert_eq!(head.pop_tag(), Some(Tag::new(5)));
        assert_eq!(head.as_slice(), [&frame[..12], &frame[16..]].concat());
        for _ in 0..3 {
            head.push_tag(Tag::new(6)).expect("room");
        }
        assert_eq!(head.push_tag(Tag::new(6)), Err(BadFrame::NoRoomForTag));
    }

    #[test]
    fn frames_without_addresses_get_no_tag() {
        for len in 0..12 {
            let mut head = Head::from_slice(&FRAME[..len]);
            assert_eq!(head.push_tag(Tag::new(1)), Err(BadFrame::NoRoomForTag));
            assert_eq!(head.pop_tag(), None);
        }
    }

    #[test]
    fn a_head_is_filled_again_from_the_start() {
        let mut head = Head::from_slice(&FRAME);
        head.push_tag(Tag::new(1)).expect("room");
        head.fill(3).copy_from_slice(&[4, 5, 6]);
        assert_eq!(head.as_slice(), [4, 5, 6]);
        assert!(head.fill(0).is_empty() && head.is_empty());
        assert_eq!(Head::from_slice(&[1; 300]).len(), HEAD_MAX);
    }
}
