//! Disk images.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Makes a sparse file of `mib` MiB named `name` in `dir`.
///
/// # Errors
/// Those of the file system.
pub fn sparse(dir: &Path, name: &str, mib: u64) -> Result<PathBuf> {
    let path = dir.join(name);
    File::create(&path)?.set_len(mib << 20)?;
    Ok(path)
}

/// Bytes the file really occupies.
///
/// # Errors
/// Those of the file system.
pub fn allocated(path: &Path) -> Result<u64> {
    // stat(2): blocks are 512 bytes here, whatever the file system's are.
    Ok(std::fs::metadata(path)?.blocks() * 512)
}
