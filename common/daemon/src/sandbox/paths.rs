//! Landlock: which files can still be opened.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};

use crate::Failure;

/// Rights of the newest kernel interface this was tested with; an older kernel enforces those it knows.
const TESTED_ABI: ABI = ABI::V7;

/// What every daemon reads while it runs: its own state, and where its CPUs are.
const ALWAYS_READ: [&str; 4] = ["/proc/self", "/sys/devices/system", "/sys/fs/cgroup", "/dev/urandom"];

/// What may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathAccess {
    /// Open files for reading, list directories.
    Read,
    /// And open them for writing, truncate them, and use a device's ioctls.
    ReadWrite,
    /// Files may also be made, renamed within the directory, and removed.
    NewFiles,
    /// Make and remove sockets.
    Sockets,
}

impl PathAccess {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            Self::ReadWrite => {
                make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | IoctlDev})
            }
            Self::NewFiles => {
                make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile})
            }
            Self::Sockets => make_bitflags!(AccessFs::{MakeSock | RemoveFile}),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Paths(BTreeSet<(PathBuf, PathAccess)>);

impl Paths {
    pub fn allow(&mut self, path: &Path, access: PathAccess) {
        self.0.insert((path.to_owned(), access));
    }

    /// Closes off every other path, TCP, and signals to other processes.
    pub fn restrict(&self) -> Result<(), Failure> {
        match self.restrict_self() {
            Ok(RulesetStatus::FullyEnforced) => {}
            Ok(RulesetStatus::PartiallyEnforced) => {
                tracing::info!("this kernel's Landlock is older than the policy; what it knows is enforced");
            }
            Ok(RulesetStatus::NotEnforced) => {
                tracing::warn!("this kernel has no Landlock: files are protected by their permissions alone");
            }
            Err(error) => return Err(Failure::runtime(format!("Landlock cannot be set up: {error}"))),
        }
        Ok(())
    }

    fn restrict_self(&self) -> Result<RulesetStatus, landlock::RulesetError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(TESTED_ABI))?
            .handle_access(AccessNet::from_all(TESTED_ABI))?
            .scope(scopes())?
            .create()?
            .add_rules(path_beneath_rules(ALWAYS_READ, PathAccess::Read.rights()))?;
        for (path, access) in &self.0 {
            rules = rules.add_rules(path_beneath_rules([path], access.rights()))?;
        }
        rules.restrict_self().map(|status| status.ruleset)
    }
}

/// Signals go to nobody else; abstract sockets too, unless that is where systemd listens.
fn scopes() -> BitFlags<Scope> {
    let notify = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    if notify.as_encoded_bytes().starts_with(b"@") {
        Scope::Signal.into()
    } else {
        Scope::Signal | Scope::AbstractUnixSocket
    }
}
