//! Confinement once the devices are open: no new privileges, no capabilities, Landlock, seccomp.
//!
//! Entered on the only thread there is, so that every thread started later inherits all of it.
//!
//! | layer | leaves | where it is missing |
//! |---|---|---|
//! | capabilities | [`Policy::keep_capability`] | always there |
//! | Landlock | the policy's paths, no TCP, no signals to others | warning, the rest still holds |
//! | seccomp | [`mod@syscalls`]: others fail with EPERM, and those only an intruder makes kill the process | error |
//!
//! Mode `log` drops capabilities, lets every system call through and has the kernel log what `enforce` would refuse.

mod confinement;
mod limits;
mod paths;
pub mod syscalls;

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

use crate::Failure;
use crate::cli::SandboxMode;

pub use confinement::Confinement;
pub use limits::{keep_secrets, raise_limits};
pub use paths::PathAccess;

/// What stays possible inside the sandbox beyond what every daemon needs.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    paths: paths::Paths,
    capabilities: CapsHashSet,
    syscalls: Vec<i64>,
    commands: Vec<syscalls::Commands>,
    ioctls: Vec<u64>,
}

impl Policy {
    /// This file or directory tree may be read.
    pub fn allow_read(&mut self, path: &Path) {
        self.paths.allow(path, PathAccess::Read);
    }

    /// This file may be opened again for reading and writing.
    pub fn allow_file(&mut self, path: &Path) {
        self.paths.allow(path, PathAccess::ReadWrite);
    }

    /// Files in this directory tree may be opened for reading and writing, for devices added later.
    pub fn allow_directory(&mut self, path: &Path) {
        self.paths.allow(path, PathAccess::ReadWrite);
    }

    /// Files may be made, written, renamed and removed in this directory.
    pub fn allow_new_files_in(&mut self, directory: &Path) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        self.paths.allow(directory, PathAccess::NewFiles);
    }

    /// Sockets may be made and removed in this directory.
    pub fn allow_sockets_in(&mut self, directory: &Path) {
        // The parent of a bare file name is the empty path.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        self.paths.allow(directory, PathAccess::Sockets);
    }

    /// This capability is kept, if the process has it.
    pub fn keep_capability(&mut self, capability: Capability) {
        self.capabilities.insert(capability);
    }

    /// This system call is allowed with any arguments.
    pub fn allow_syscall(&mut self, number: i64) {
        self.syscalls.push(number);
    }

    /// This system call is allowed when its first argument is one of these.
    pub fn allow_commands(&mut self, number: i64, first: &[u64]) {
        self.commands.push(syscalls::Commands { number, first: first.to_vec() });
    }

    /// This `ioctl` request is allowed on any descriptor.
    pub fn allow_ioctl(&mut self, request: u64) {
        self.ioctls.push(request);
    }
}

/// Closes the sandbox around the calling thread and all it will start.
pub fn enter(mode: SandboxMode, policy: &Policy) -> Result<(), Failure> {
    if mode == SandboxMode::Off {
        return Ok(());
    }
    drop_capabilities(&policy.capabilities)?;
    if mode == SandboxMode::Enforce {
        policy.paths.restrict()?;
    }
    syscalls::install(mode, &policy.syscalls, &policy.commands, &policy.ioctls)
}

fn drop_capabilities(keep: &CapsHashSet) -> Result<(), Failure> {
    let failed =
        |error: caps::errors::CapsError| Failure::runtime(format!("Capabilities cannot be dropped: {error}"));
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let kept: CapsHashSet = permitted.intersection(keep).copied().collect();
    // Only a process with CAP_SETPCAP may shrink its bounding set; without it, no new privileges has the same effect.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
        }
    }
    // Effective before permitted: it can never hold more than permitted does.
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(failed)?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}
