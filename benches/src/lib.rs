//! Measuring and driving vhost-user backends: ours, and those of others.
//!
//! - [`guest`]: what every driver here has in common: connection, memory, rings, threads, phases.
//! - [`blk`]: a user-space vhost-user-blk driver ([`blk::client`]) and the load generator on top of it (`vhostd-bench blk`).
//! - [`demo`]: the first minute of a user: a daemon, its disk, every byte verified, a kill survived (`vhostd-bench demo`).
//! - [`net`]: a user-space virtio-net driver that plays one guest or two (`vhostd-bench net`).
//! - [`crypto`]: a user-space virtio-crypto driver through both doors (`vhostd-bench crypto`).
//! - [`compress`]: a user-space driver of our compression device (`vhostd-bench compress`).
//! - [`modes`]: how a daemon that batches waits for work (`vhostd-bench crypto-modes`, `compress-modes`).
//! - [`composite`]: a compressible data set on a slow disk: plain, compressed in software, offloaded (`vhostd-bench composite`).
//! - [`testpmd`]: DPDK's virtio-user as another driver, and testpmd as a peer (`vhostd-bench virtio-user`).
//! - [`compare`]: ours against a peer, interleaved, medians and ratios (`vhostd-bench compare`).
//! - [`idle`]: what disks and ports cost that nobody uses (`vhostd-bench idle`).
//! - [`blackout`]: what is lost, and for how long, when vhostd-net is killed (`vhostd-bench blackout`).
//! - [`ring`]: nanoseconds and instructions per chain against `virtio-queue` under `vhost-user-backend` (`vhostd-bench ring`).
//!
//! Nothing here runs in a daemon. Figures are never asserted by a timed test: `docs/bench.md` says how each one is reproduced.

pub mod blackout;
pub mod blk;
pub mod chart;
pub mod clock;
pub mod compare;
pub mod composite;
pub mod compress;
pub mod control;
pub mod cpu;
pub mod crypto;
pub mod demo;
pub mod flushes;
pub mod guest;
pub mod idle;
pub mod latency;
pub mod modes;
pub mod net;
pub mod output;
pub mod process;
pub mod progress;
pub mod ring;
mod signal;
pub mod testpmd;
pub mod units;
pub mod wait;
