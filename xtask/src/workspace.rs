//! Where things are.

use std::path::{Path, PathBuf};
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
