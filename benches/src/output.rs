//! Results that go into files.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Writes what `text` makes into `file`, if one is wanted.
pub fn write(file: Option<&PathBuf>, text: impl FnOnce() -> Result<String>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text()?).with_context(|| format!("Cannot write {}", file.display()))
}
