//! Where things are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run;

/// The repository's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where downloaded and built test components are kept: `$VHOSTD_TESTBED`, else `target/testbed`.
pub fn testbed() -> PathBuf {
    std::env::var_os("VHOSTD_TESTBED").map_or_else(|| root().join("target/testbed"), PathBuf::from)
}

/// `cargo metadata` of the workspace, resolved for all its dependencies; read once.
pub fn metadata() -> Result<&'static Value> {
    static METADATA: OnceLock<Value> = OnceLock::new();
    if let Some(value) = METADATA.get() {
        return Ok(value);
    }
    let text = run::capture(&mut run::cargo(["metadata", "--format-version=1", "--locked"]))?;
    let value = serde_json::from_str(&text).context("Cannot parse the output of `cargo metadata`")?;
    Ok(METADATA.get_or_init(|| value))
}

/// Cargo's target directory, wherever configuration or the environment put it.
pub fn target() -> Result<PathBuf> {
    let dir =
        metadata()?["target_directory"].as_str().context("`cargo metadata` names no target directory")?;
    Ok(PathBuf::from(dir))
}

/// The binary `name` of the release profile.
pub fn release_binary(name: &str) -> Result<PathBuf> {
    Ok(target()?.join("release").join(name))
}

/// Says so when the file system of the target directory has less than `bytes` free: a full one shows as compilers and linkers
/// that crash.
pub fn warn_of_little_space(bytes: u64) -> Result<()> {
    const GIB: f64 = (1u64 << 30) as f64;
    let target = target()?;
    let place = if target.exists() { target.as_path() } else { root() };
    let text = run::capture(Command::new("df").args(["--output=avail", "--block-size=1"]).arg(place))?;
    let free: u64 =
        text.lines().last().unwrap_or_default().trim().parse().context("Cannot read what df says")?;
    if free < bytes {
        println!(
            "warning: {} has {:.1} GiB free, and a fresh build takes {:.0} GiB; CARGO_TARGET_DIR may name another disk",
            place.display(),
            free as f64 / GIB,
            bytes as f64 / GIB
        );
    }
    Ok(())
}
