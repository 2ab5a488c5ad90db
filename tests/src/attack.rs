//! What no driver should put on a ring: each breaks the ring's own rules, whatever the device.

use anyhow::Result;

use crate::bare::{AVAIL, BASE, Bare, DATA, DESC, HEADER, LEN, STATUS};

/// Flags of a descriptor (virtio 1.3 §2.7.5).
pub const NEXT: u16 = 1;
/// For the device to write.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// Writes a split descriptor (virtio 1.3 §2.7.5).
///
/// # Errors
/// None in practice.
pub fn desc(ring: &Bare, index: u64, addr: u64, len: u32, flags: u16, next: u16) -> Result<()> {
    desc_at(ring, DESC + index * 16, addr, len, flags, next)
}

/// The same anywhere in the memory: in an indirect table.
///
/// # Errors
/// When it does not fit.
pub fn desc_at(ring: &Bare, offset: u64, addr: u64, len: u32, flags: u16, next: u16) -> Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    ring.put(offset, &bytes)
}

/// Makes `head` available in the first slot and moves the avail index to `index` (virtio 1.3 §2.7.6), then kicks.
///
/// # Errors
/// None in practice.
pub fn avail(ring: &Bare, head: u16, index: u16) -> Result<()> {
    ring.put(AVAIL + 4, &head.to_le_bytes())?;
    ring.put(AVAIL + 2, &index.to_le_bytes())?;
    Ok(ring.kick.write(1)?)
}

/// A chain of 16 readable bytes, 512 writable ones and a status in descriptors 0 to 2; the attacks change one thing about it.
///
/// # Errors
/// None in practice.
pub fn chain(ring: &Bare) -> Result<()> {
    desc(ring, 0, BASE + HEADER, 16, NEXT, 1)?;
    desc(ring, 1, BASE + DATA, 512, NEXT | WRITE, 2)?;
    desc(ring, 2, BASE + STATUS, 1, WRITE, 0)
}

/// Something that is done to a ring.
pub type Attack = fn(&Bare) -> Result<()>;

/// Violations of the rules of a split ring of 64 entries that has [`chain`] in it: each must break the ring.
pub const SPLIT: &[(&str, Attack)] = &[
    ("a head beyond the ring", |ring| avail(ring, 64, 1)),
    ("the largest head", |ring| avail(ring, u16::MAX, 1)),
    ("more available than the ring holds", |ring| avail(ring, 0, 65)),
    ("an avail index that goes back", |ring| avail(ring, 0, u16::MAX)),
    ("a next beyond the ring", |ring| {
        desc(ring, 0, BASE + HEADER, 16, NEXT, 64)?;
        avail(ring, 0, 1)
    }),
    ("a loop of two descriptors", |ring| {
        desc(ring, 0, BASE + HEADER, 16, NEXT, 1)?;
        desc(ring, 1, BASE + HEADER, 16, NEXT, 0)?;
        avail(ring, 0, 1)
    }),
    ("a descriptor that is its own next", |ring| {
        desc(ring, 0, BASE + HEADER, 16, NEXT, 0)?;
        avail(ring, 0, 1)
    }),
    ("an address outside the memory", |ring| {
        desc(ring, 1, BASE + LEN, 512, NEXT | WRITE, 2)?;
        avail(ring, 0, 1)
    }),
    ("a buffer that leaves the memory", |ring| {
        desc(ring, 1, BASE + LEN - 511, 512, NEXT | WRITE, 2)?;
        avail(ring, 0, 1)
    }),
    ("an address that wraps around", |ring| {
        desc(ring, 1, u64::MAX - 15, 512, NEXT | WRITE, 2)?;
        avail(ring, 0, 1)
    }),
    ("address zero", |ring| {
        desc(ring, 0, 0, 16, NEXT, 1)?;
        avail(ring, 0, 1)
    }),
    ("a readable buffer after a writable one", |ring| {
        desc(ring, 0, BASE + DATA, 512, NEXT | WRITE, 1)?;
        desc(ring, 1, BASE + HEADER, 16, NEXT, 2)?;
        avail(ring, 0, 1)
    }),
    ("an indirect table that is no multiple of 16", |ring| {
        desc(ring, 0, BASE + DATA, 40, INDIRECT, 0)?;
        avail(ring, 0, 1)
    }),
    ("an empty indirect table", |ring| {
        desc(ring, 0, BASE + DATA, 0, INDIRECT, 0)?;
        avail(ring, 0, 1)
    }),
    ("an indirect table outside the memory", |ring| {
        desc(ring, 0, BASE + LEN - 16, 32, INDIRECT, 0)?;
        avail(ring, 0, 1)
    }),
    ("an indirect table within another", |ring| {
        desc_at(ring, DATA, BASE + DATA, 16, INDIRECT, 0)?;
        desc(ring, 0, BASE + DATA, 16, INDIRECT, 0)?;
        avail(ring, 0, 1)
    }),
    ("a loop in an indirect table", |ring| {
        desc_at(ring, DATA, BASE + HEADER, 16, NEXT, 0)?;
        desc(ring, 0, BASE + DATA, 16, INDIRECT, 0)?;
        avail(ring, 0, 1)
    }),
];

const PACKED_AVAIL: u16 = 1 << 7;

/// Writes a packed descriptor (virtio 1.3 §2.8.13) that is available in the first lap.
fn packed_desc(ring: &Bare, index: u64, addr: u64, len: u32, flags: u16) -> Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[14..].copy_from_slice(&(flags | PACKED_AVAIL).to_le_bytes());
    ring.put(DESC + index * 16, &bytes)
}

/// As [`SPLIT`], for an empty packed ring.
pub const PACKED: &[(&str, Attack)] = &[
    ("a packed chain without an end", |ring| {
        // Backwards, so that the device sees the first one last.
        for index in (0..64).rev() {
            packed_desc(ring, index, BASE + HEADER, 16, NEXT)?;
        }
        Ok(())
    }),
    ("a packed address outside the memory", |ring| packed_desc(ring, 0, BASE + LEN, 16, 0)),
    ("a packed address that wraps around", |ring| packed_desc(ring, 0, u64::MAX - 7, 16, 0)),
    ("a packed readable buffer after a writable one", |ring| {
        packed_desc(ring, 1, BASE + HEADER, 16, 0)?;
        packed_desc(ring, 0, BASE + DATA, 16, NEXT | WRITE)
    }),
    ("an odd packed indirect table", |ring| packed_desc(ring, 0, BASE + DATA, 17, INDIRECT)),
];
