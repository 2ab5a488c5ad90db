//! Blocks of a pcapng file (draft-ietf-opsawg-pcapng), in the byte order of the machine.

use super::super::filter::Direction;
use super::queue::Header;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;

/// epb_flags, bits 0 and 1.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Nanoseconds, as a power of ten.
const NANOSECONDS: u8 = 9;

/// Appends a block around what `body` appends.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = ((out.len() - start + 4) as u32).to_ne_bytes();
    out[start + 4..start + 8].copy_from_slice(&len);
    out.extend_from_slice(&len);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&(value.len() as u16).to_ne_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

/// The beginning of a file, version 1.0, its length unknown.
pub(super) fn section(out: &mut Vec<u8>) {
    block(out, SECTION, |out| {
        out.extend_from_slice(&BYTE_ORDER.to_ne_bytes());
        out.extend_from_slice(&1u16.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        out.extend_from_slice(&u64::MAX.to_ne_bytes());
        option(out, SHB_USERAPPL, b"vhostd-net");
        end_of_options(out);
    });
}

/// An interface; they are numbered from 0 in the order of their blocks.
pub(super) fn interface(out: &mut Vec<u8>, name: &str, snaplen: u32) {
    block(out, INTERFACE, |out| {
        out.extend_from_slice(&LINKTYPE_ETHERNET.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        out.extend_from_slice(&snaplen.to_ne_bytes());
        option(out, IF_NAME, name.as_bytes());
        option(out, IF_TSRESOL, &[NANOSECONDS]);
        end_of_options(out);
    });
}

/// A frame on interface number `interface`; `lost` frames before it are not in the file.
pub(super) fn packet(out: &mut Vec<u8>, interface: u32, header: &Header, bytes: &[u8], lost: u64) {
    let flags = match header.direction {
        Direction::In => INBOUND,
        Direction::Out => OUTBOUND,
    };
    block(out, ENHANCED_PACKET, |out| {
        let time = [(header.time_ns >> 32) as u32, header.time_ns as u32];
        for word in [interface, time[0], time[1], bytes.len() as u32, header.len] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        padded(out, bytes);
        option(out, EPB_FLAGS, &flags.to_ne_bytes());
        if lost > 0 {
            option(out, EPB_DROPCOUNT, &lost.to_ne_bytes());
        }
        end_of_options(out);
    });
}
