//! The guest kernel: Debian's cloud kernel, downloaded and unpacked beside the build, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Outcome, packages};
use crate::run;

/// The kernel image, relative to the testbed directory.
pub const FILE: &str = "vmlinuz";

/// The meta package that depends on the newest kernel of the release.
const META: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
pub struct Kernel {
    /// `6.1.0-56-cloud-amd64` or the like.
    pub release: String,
    /// `lib/modules/<release>` of the unpacked package.
    pub modules: PathBuf,
    fresh: bool,
}

impl Outcome for Kernel {
    fn summary(&self) -> String {
        format!("{}{}", self.release, if self.fresh { ", downloaded and unpacked" } else { ", there" })
    }
}

/// Downloads and unpacks the kernel unless that was done before.
pub fn set_up(dir: &Path) -> Result<Kernel> {
    let root = dir.join("kernel");
    let fresh = !dir.join(FILE).is_file();
    if fresh {
        download(&root)?;
    }
    let release = release_in(&root)?;
    if fresh {
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        // Last, because its presence means that the unpacked tree is complete.
        fs::copy(&image, dir.join(FILE)).with_context(|| format!("Cannot copy {}", image.display()))?;
    }
    let modules = root.join("lib/modules").join(&release);
    Ok(Kernel { release, modules, fresh })
}

fn download(root: &Path) -> Result<()> {
    for program in ["apt-get", "apt-cache", "dpkg"] {
        if !run::installed(program) {
            bail!("No {program} here. Unpack a kernel package with {META}'s options into {}", root.display());
        }
    }
    // A stale list names a package file that the mirror has replaced since; only root may refresh it.
    if packages::is_root()? {
        packages::update_lists()?;
    }
    let package = resolve()?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::create_dir_all(root)?;
    run::capture(Command::new("apt-get").args(["download", "--quiet", &package]).current_dir(root))
        .with_context(|| format!("Cannot download {package}; is apt-get update needed?"))?;
    let archive = fs::read_dir(root)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no package file in {}", root.display()))?;
    run::capture(Command::new("dpkg").arg("-x").arg(&archive).arg(root))?;
    fs::remove_file(archive)?;
    Ok(())
}

/// The real package behind the meta package.
fn resolve() -> Result<String> {
    let listing = run::capture(Command::new("apt-cache").args(["depends", META]))?;
    real_package(&listing).with_context(|| format!("{META} depends on no kernel; is apt-get update needed?"))
}

fn real_package(listing: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-") && name.ends_with("-cloud-amd64"))
        .map(str::to_owned)
}

fn release_in(root: &Path) -> Result<String> {
    let modules = root.join("lib/modules");
    fs::read_dir(&modules)
        .with_context(|| format!("Cannot read {}", modules.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .max()
        .with_context(|| format!("{} is empty", modules.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_resolves_to_the_kernel_it_depends_on() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(real_package(listing).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(real_package("linux-image-cloud-amd64\n"), None);
    }
}
