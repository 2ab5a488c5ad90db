//! A split ring laid out once: descriptors and heads never change, a lap is one store to the avail index.

use virtqueue::layout::{
    DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, ENTRIES_OFFSET, INDEX_OFFSET, SplitDescriptor,
};
use zerocopy::IntoBytes;

use super::case::{Case, DESCRIPTORS, DRIVER_AREA};

/// Guest address of the avail index.
pub const AVAIL_INDEX: u64 = DRIVER_AREA + INDEX_OFFSET as u64;

/// Writes descriptors, indirect tables and avail entries of `case` by `write(guest address, bytes)`.
pub fn write_split(case: Case, mut write: impl FnMut(u64, &[u8])) {
    for chain in 0..case.chains() {
        let head = chain * case.descriptors();
        let first = DESCRIPTORS + u64::from(head) * DESC_BYTES as u64;
        let (table, base) = if case.indirect { (case.table(chain), 0) } else { (first, head) };
        for buffer in 0..case.buffers {
            let (addr, len, writable) = case.buffer(chain, buffer);
            let last = buffer + 1 == case.buffers;
            let flags = if writable { DESC_WRITE } else { 0 } | if last { 0 } else { DESC_NEXT };
            let next = if last { 0 } else { base + buffer + 1 };
            write(
                table + u64::from(buffer) * DESC_BYTES as u64,
                descriptor(addr, len, flags, next).as_bytes(),
            );
        }
        if case.indirect {
            let len = u32::from(case.buffers) * DESC_BYTES as u32;
            write(first, descriptor(table, len, DESC_INDIRECT, 0).as_bytes());
        }
    }
    for entry in 0..case.ring_size() {
        let head = entry % case.chains() * case.descriptors();
        write(DRIVER_AREA + (ENTRIES_OFFSET + 2 * usize::from(entry)) as u64, &head.to_le_bytes());
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT: the driver polls.
    write(DRIVER_AREA, &1u16.to_le_bytes());
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> SplitDescriptor {
    SplitDescriptor { addr: addr.into(), len: len.into(), flags: flags.into(), next: next.into() }
}
