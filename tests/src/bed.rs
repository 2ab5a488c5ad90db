//! Where the testbed and the binaries under test are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A file of the testbed: `vmlinuz`, `initramfs.cpio`.
///
/// # Errors
/// Says what to run when it is not there.
pub fn file(name: &str) -> Result<PathBuf> {
    let dir = std::env::var_os("VHOSTD_TESTBED").map_or_else(|| root().join("target/testbed"), PathBuf::from);
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} is missing; run: cargo xtask testbed", path.display());
    }
    Ok(path)
}

/// A program of a Debian package.
///
/// # Errors
/// Says what to run when it is not installed.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file()) {
        Some(found) => Ok(found),
        None => bail!("{name} is not installed; run: cargo xtask testbed"),
    }
}

/// One of our own binaries: from `$VHOSTD_BIN_DIR`, else from the release profile beside the tests' own profile.
///
/// # Errors
/// Says what to run when it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("VHOSTD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => target_dir()?.join("release"),
    };
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} is missing; run: cargo build --release", path.display());
    }
    Ok(path)
}

/// The target directory this very test was built in: `<target>/<profile>/deps/<test>`.
fn target_dir() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    match test.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()) {
        Some(target) => Ok(target.to_owned()),
        None => bail!("{} is not in a target directory; set VHOSTD_BIN_DIR", test.display()),
    }
}
