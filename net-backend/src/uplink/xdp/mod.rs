//! An AF_XDP socket as the uplink, by plain system calls and a program of our own: no library, no compiler.
//!
//! # What happens
//!
//! [`open`] looks at the interface, loads a small XDP program (`program.rs`) and attaches it by a bpf link, so that it goes
//! away with the process, kill -9 included (`attach.rs` has the way of kernels without such links). It binds one AF_XDP
//! socket a queue, all on the same buffers (`XDP_SHARED_UMEM`), in the best mode that works: zero copy, copy in the driver,
//! generic. The [`Report`] says which, and why none better.
//!
//! A [`Queue`] belongs to one worker. Received frames lie in buffers of the queue, from where they are copied straight into
//! guests' buffers; frames to be sent are copied straight from guests' buffers into those of the queue: one copy each way.
//! [`Control`] changes which frames are the uplink's ([`Filter`]); the others stay with the host.
//!
//! | file | what |
//! |---|---|
//! | `spec.rs`, `error.rs` | what the user may say, and what is answered when it cannot be |
//! | `open.rs` | the ladder of modes, and what goes with each |
//! | `interface.rs`, `netlink.rs` | what an interface is and can do |
//! | `bpf.rs`, `program.rs`, `filter.rs`, `attach.rs` | the program, its maps, and how long it stays |
//! | `socket.rs`, `ring.rs`, `umem.rs` | system calls, the four rings, the buffers |
//! | `queue.rs`, `partial.rs` | the data path, and frames that the kernel has not finished |
//!
//! # veth
//!
//! The other end of a veth pair is usually a network stack with its offloads on, and XDP sees its frames as they left TCP
//! and UDP: with the checksum field holding the sum of the pseudo-header alone. `partial.rs` recognises them, and they go on
//! with VIRTIO_NET_HDR_F_NEEDS_CSUM. A native program makes the other end segment TCP; in generic mode frames of up to
//! 64 KiB come in several buffers (`XDP_USE_SG`), and are marked for segmentation at the MTU. UDP that is to be segmented
//! (UDP_SEGMENT) comes in generic mode without the size of its segments, and is dropped: use the native mode.
//!
//! In the other direction a checksum that a guest has left open is left to the kernel (`XDP_TXMD_FLAGS_CHECKSUM`, Linux
//! 6.11), which on a veth means that nobody ever computes it.
//!
//! A VLAN interface on the other end keeps its tag beside the frame, where XDP does not see it: `ethtool -K PEER txvlan off`
//! puts it into the frame.
//!
//! # Figures
//!
//! Linux 6.18, veth, frames of 60 bytes, processor time of the sending thread with everything the kernel does in it (the
//! receiving stack included), on a machine with other load (medians of three to five; they vary by 5 %):
//!
//! | | ns a frame |
//! |---|---|
//! | DPDK 22.11 testpmd `txonly`, `net_af_xdp` | 980 |
//! | 8 frames a call | 1280 |
//! | 32 frames a call | 900 |
//! | 256 frames a call (`XDP_MAX_TX_SKB_BUDGET`) | 880 |
//! | the same with need_wakeup | no difference that could be measured |
//! | the same with busy polling | no difference that could be measured |
//! | the same in generic mode | 900 |
//! | the same without `XDP_USE_SG`, or without room for metadata | no difference that could be measured |
//!
//! One per cent of it is ours; the rest is the kernel's. So the defaults are: a budget of 256, need_wakeup with zero copy only
//! (where a call that can be left out is worth something), several buffers and checksum requests wherever the kernel has
//! them, no busy polling (a veth has no interrupts to save).

mod attach;
mod bpf;
mod error;
mod filter;
mod interface;
mod netlink;
mod open;
mod partial;
mod program;
mod queue;
mod ring;
mod socket;
mod spec;
mod umem;

pub use error::OpenError;
pub use filter::{Filter, Groups, MAX_CHOSEN};
pub use open::{Control, Opened, Report, Statistics, open};
pub use queue::{Buffers, Queue};
pub use spec::{DEFAULT_RING, MAX_RING, Mode, ModeChoice, Spec};

/// Commands of bpf(2) that [`Control`] uses, for the sandbox: BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM and
/// BPF_MAP_GET_NEXT_KEY. The other calls of an uplink (sendto, recvfrom, getsockopt) are everybody's.
pub const MAP_COMMANDS: &[u64] = &[1, 2, 3, 4];

#[cfg(test)]
mod tests;
