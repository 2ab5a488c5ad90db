//! Keeps vhost-user frontends connected while the process that serves them dies and comes back.
//!
//! Many frontends do not survive the end of their back-end. QEMU's cryptodev, for one, connects again but never sends its
//! memory table and rings a second time, so the guest hangs for good. A keeper is a small process between the two: it owns
//! what a back-end must not lose, and serves no ring itself.

mod config;
mod respawn;

use std::path::PathBuf;
use std::process::ExitCode;

pub use config::{Arguments, Handed, KeeperConfig, Kept, Memory};
pub use respawn::Respawn;

/// Keeps the devices until SIGTERM, or until the worker process ends by itself.
pub fn run(config: KeeperConfig) -> ExitCode {
    let _ = config;
    ExitCode::SUCCESS
}

/// The program of this process, for [`KeeperConfig::executable`].
pub fn own_executable() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}
