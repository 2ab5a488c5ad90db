//! What the sandbox leaves open for devices added while running, so that a refusal can say so.

use std::path::{Path, PathBuf};

use crate::cli::{SandboxArgs, SandboxMode};
use crate::{EndpointSpec, Failure};

/// The sandbox as a device added later meets it.
#[derive(Debug, Default)]
pub struct Confinement {
    /// Directories named by `--allow-path`, if files elsewhere are closed off.
    open: Option<Vec<PathBuf>>,
}

impl Confinement {
    /// The sandbox that these arguments ask for.
    pub fn new(args: &SandboxArgs) -> Self {
        let paths = || args.allow_paths.iter().map(|path| absolute(path)).collect();
        Self { open: (args.mode() == SandboxMode::Enforce).then(paths) }
    }

    /// Why a file cannot be opened for lack of permission: if the sandbox may be the reason, with what it leaves open.
    pub fn explain_file(&self, path: &Path, failure: Failure) -> Failure {
        match self.outside(path) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// The same for a socket that cannot be made.
    pub fn explain_socket(&self, endpoint: &EndpointSpec, failure: Failure) -> Failure {
        let listens = endpoint.socket_path.is_some();
        if self.open.is_some() && listens && failure.message().contains("Permission denied") {
            failure.hint("the sandbox lets sockets be made only in directories that held one at the start")
        } else {
            failure
        }
    }

    fn outside(&self, path: &Path) -> Option<String> {
        let open = self.open.as_ref()?;
        let path = absolute(path);
        if open.iter().any(|directory| path.starts_with(directory)) {
            return None;
        }
        let shown: Vec<_> = open.iter().map(|directory| directory.display().to_string()).collect();
        Some(match shown.as_slice() {
            [] => "the sandbox closes off all files: start the daemon with --allow-path DIRECTORY".into(),
            shown => format!("the sandbox leaves open only what is below --allow-path {}", shown.join(", ")),
        })
    }
}

/// Without asking the file system, which the sandbox may close off.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(confinement: &Confinement, path: &str) -> String {
        confinement.explain_file(Path::new(path), Failure::usage("Permission denied")).to_string()
    }

    #[test]
    fn a_file_outside_the_allowed_directories_is_explained_by_them() {
        let confinement = Confinement { open: Some(vec!["/images".into(), "/more".into()]) };
        assert!(denied(&confinement, "/other/a").contains("--allow-path /images, /more"));
        assert!(denied(&Confinement { open: Some(Vec::new()) }, "/a").contains("--allow-path"));
    }

    #[test]
    fn a_file_that_the_sandbox_leaves_open_is_not() {
        let confinement = Confinement { open: Some(vec!["/images".into()]) };
        assert!(!denied(&confinement, "/images/a").contains("--allow-path"));
        assert!(!denied(&Confinement { open: None }, "/a").contains("--allow-path"));
    }
}
