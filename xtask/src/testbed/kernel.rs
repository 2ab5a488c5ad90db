//! The guest kernels: Debian's, downloaded and unpacked beside the build, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Outcome, packages};
use crate::run;

/// A kernel package, and what the guests need of it.
pub struct Source {
    /// What the testbed calls it.
    pub name: &'static str,
    /// The kernel image, relative to the testbed directory.
    pub file: &'static str,
    /// Where the package is unpacked, relative to the testbed directory.
    root: &'static str,
    /// The meta package that depends on the newest kernel of the release.
    meta: &'static str,
    /// The modules of interest, as patterns of tar(1). The others would take several times the space.
    modules: &'static [&'static str],
}

/// For most guests: small, boots fast, and has the virtio devices that clouds have.
pub const CLOUD: Source = Source {
    name: "guest kernel",
    file: "vmlinuz",
    root: "kernel",
    meta: "linux-image-cloud-amd64",
    modules: &[
        "*/kernel/drivers/virtio/*",
        "*/kernel/drivers/block/*",
        "*/kernel/drivers/net/*",
        "*/kernel/net/*",
    ],
};

/// For guests with a virtio-crypto device, which the cloud kernel has no driver for.
pub const GENERIC: Source = Source {
    name: "crypto guest kernel",
    file: "vmlinuz-crypto",
    root: "kernel-crypto",
    meta: "linux-image-amd64",
    modules: &["*/kernel/drivers/virtio/*", "*/kernel/drivers/crypto/virtio/*", "*/kernel/crypto/*"],
};

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

/// Downloads and unpacks a kernel unless that was done before.
pub fn set_up(dir: &Path, source: &Source) -> Result<Kernel> {
    let root = dir.join(source.root);
    let fresh = !dir.join(source.file).is_file();
    if fresh {
        download(&root, source)?;
    }
    let release = release_in(&root)?;
    if fresh {
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        // Last, because its presence means that the unpacked tree is complete.
        fs::copy(&image, dir.join(source.file))
            .with_context(|| format!("Cannot copy {}", image.display()))?;
    }
    let modules = root.join("lib/modules").join(&release);
    Ok(Kernel { release, modules, fresh })
}

fn download(root: &Path, source: &Source) -> Result<()> {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if !run::installed(program) {
            let meta = source.meta;
            bail!("No {program} here. Unpack a kernel package with {meta}'s options into {}", root.display());
        }
    }
    // A stale list names a package file that the mirror has replaced since; only root may refresh it.
    if packages::is_root()? {
        packages::update_lists()?;
    }
    let package = resolve(source.meta)?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::create_dir_all(root)?;
    run::capture(Command::new("apt-get").args(["download", "--quiet", &package]).current_dir(root))
        .with_context(|| format!("Cannot download {package}; is apt-get update needed?"))?;
    let archive = packages::archives_in(root)?
        .pop()
        .with_context(|| format!("apt-get download left no package file in {}", root.display()))?;
    let wanted = ["--wildcards", "./boot/vmlinuz-*"].iter().chain(source.modules);
    packages::unpack(&archive, root, wanted)?;
    fs::remove_file(archive)?;
    Ok(())
}

/// The real package behind the meta package.
fn resolve(meta: &str) -> Result<String> {
    let listing = run::capture(Command::new("apt-cache").args(["depends", meta]))?;
    real_package(&listing, meta)
        .with_context(|| format!("{meta} depends on no kernel; is apt-get update needed?"))
}

/// `linux-image-<flavour>` depends on `linux-image-<version>-<flavour>`.
fn real_package(listing: &str, meta: &str) -> Option<String> {
    let flavour = meta.strip_prefix("linux-image")?;
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-") && name.ends_with(flavour) && *name != meta)
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
    fn a_meta_package_resolves_to_the_kernel_it_depends_on() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        let found = real_package(listing, "linux-image-cloud-amd64");
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(real_package("linux-image-cloud-amd64\n", "linux-image-cloud-amd64"), None);
        let listing = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        let found = real_package(listing, "linux-image-amd64");
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-56-amd64"));
    }
}
