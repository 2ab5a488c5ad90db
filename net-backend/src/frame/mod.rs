//! Ethernet frames: headers, checksums, segmentation. Pure; knows no port and does no I/O.
//!
//! A frame is looked at once: its virtio-net header and its first [`HEAD`] bytes are copied into private memory
//! ([`NetHeader`], [`Head`]), and every decision is made on that copy. The rest stays where it is ([`Body`]) until
//! [`emit`] hands it, whole or in segments, to whoever receives it.
//!
//! | file | what |
//! |---|---|
//! | `mac.rs` | [`MacAddr`] |
//! | `header.rs` | [`NetHeader`], the virtio-net header in its three sizes |
//! | `place.rs` | where a sender may have a checksum stored |
//! | `head.rs`, `body.rs` | the private front of a frame, and the rest of it |
//! | `parse.rs` | [`parse::l2`] for every frame, [`parse::deep`] for those a filter, hash or offload looks into |
//! | `checksum.rs` | [`checksum::Sum`], the Internet checksum over pieces of any length |
//! | `offload.rs` | [`emit`]: what a sender left undone, done when the receiver cannot |
//! | `layout.rs`, `segment.rs`, `fragment.rs` | frames that claim to be many: checked, and cut into segments or fragments |
//! | `train.rs` | the reverse: frames of one flow joined into one that the receiver cuts |
//! | `hash.rs` | the RSS hash and its report, and a cheap one to spread flows |

mod body;
pub mod checksum;
mod fragment;
pub mod hash;
mod head;
mod header;
mod layout;
mod mac;
mod offload;
pub mod parse;
mod place;
mod segment;
mod train;

pub use body::{Body, Frame, Packet, Pieces};
pub use head::{HEAD, HEAD_MAX, Head, TAG_LEN};
pub use header::{BadHeader, Gso, HashReport, HeaderSize, NetHeader, flag};
pub use mac::{BadMac, MacAddr};
pub use offload::{BadOffload, MAX_SEGMENTS, Offloads, Scratch, Work, emit, needs_work};
pub use parse::{BadFrame, Deep, Fragment, L3, L4, Meta, Tag};
pub use train::{Offer, Place, Train};
