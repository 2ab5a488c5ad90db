//! The initramfs images: a static busybox as user space, kernel modules, and the tools the tests run in the guest.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Outcome;
use super::cpio::Archive;
use super::kernel::Kernel;
use crate::run;

/// What an image is made of, besides busybox.
pub struct Recipe {
    /// What the testbed calls it.
    pub name: &'static str,
    /// The image, relative to the testbed directory.
    pub file: &'static str,
    /// Modules the guest loads at boot; what they depend on comes before them.
    modules: &'static [&'static str],
    /// Programs copied from this machine with the libraries they are linked to.
    tools: &'static [&'static str],
}

/// For guests with disks and network devices.
pub const GENERAL: Recipe = Recipe {
    name: "initramfs",
    file: "initramfs.cpio",
    modules: &["virtio_pci", "virtio_blk", "virtio_net", "8021q"],
    tools: &[
        "fio",
        "mkfs.ext4",
        "e2fsck",
        "sfdisk",
        "partprobe",
        "blkdiscard",
        "fstrim",
        "blockdev",
        "dash",
        "iperf3",
        "ip",
        "ping",
        "ethtool",
    ],
};

/// For guests with a virtio-crypto device. The device's driver is last: its self-test finds all the others there.
pub const CRYPTO: Recipe = Recipe {
    name: "crypto initramfs",
    file: "initramfs-crypto.cpio",
    modules: &[
        "virtio_pci",
        "algif_skcipher",
        "algif_hash",
        "algif_aead",
        "crypto_user",
        "pkcs8_key_parser",
        "virtio_crypto",
    ],
    tools: &["dash", "kcapi-enc", "kcapi-dgst", "keyctl"],
};

/// The guest's first process.
const INIT: &str = include_str!("init.sh");

/// Whether the image had to be built.
pub enum Image {
    /// It was up to date.
    There,
    /// Built, of this many bytes.
    Built(u64),
}

impl Outcome for Image {
    fn summary(&self) -> String {
        match self {
            Image::There => "there".to_owned(),
            Image::Built(bytes) => format!("built, {} MiB", bytes >> 20),
        }
    }
}

/// Builds the image unless its inputs are unchanged. `programs` are ours, linked statically.
pub fn set_up(dir: &Path, recipe: &Recipe, kernel: &Kernel, programs: &[PathBuf]) -> Result<Image> {
    let stamp = stamp(recipe, kernel, programs)?;
    let image = dir.join(recipe.file);
    // Names the inputs of the image that is there, so that a change in any of them rebuilds it.
    let stamp_file = image.with_extension("stamp");
    if image.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(Image::There);
    }
    let partial = image.with_extension("partial");
    let out = BufWriter::new(File::create(&partial)?);
    build(out, recipe, kernel, programs)?.into_inner().map_err(|error| error.into_error())?;
    fs::rename(&partial, &image)?;
    fs::write(stamp_file, stamp)?;
    Ok(Image::Built(fs::metadata(&image)?.len()))
}

fn stamp(recipe: &Recipe, kernel: &Kernel, programs: &[PathBuf]) -> Result<String> {
    let modules = recipe.modules;
    let mut stamp = format!("{}\n{}\n{modules:?}\n{INIT}", kernel.release, env!("CARGO_PKG_VERSION"));
    let tools =
        recipe.tools.iter().chain(&["busybox"]).map(|tool| tool_path(tool)).collect::<Result<Vec<_>>>()?;
    for path in tools.iter().chain(programs) {
        let meta = fs::metadata(path)?;
        stamp.push_str(&format!("{} {} {:?}\n", path.display(), meta.len(), meta.modified()?));
    }
    Ok(stamp)
}

fn build<W: Write>(out: W, recipe: &Recipe, kernel: &Kernel, programs: &[PathBuf]) -> Result<W> {
    let mut archive = Archive::new(out);
    archive.file("init", INIT.as_bytes())?;
    for dir in ["dev", "proc", "sys", "tmp", "mnt", "usr/bin", "usr/sbin", "bin", "sbin"] {
        archive.directory(dir)?;
    }
    // The kernel opens these for init before devtmpfs is mounted.
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    for program in programs {
        let name = program.file_name().context("A program without a name")?;
        archive.file(Path::new("bin").join(name), &fs::read(program)?)?;
    }
    add_tools(&mut archive, recipe.tools)?;
    add_busybox(&mut archive)?;
    add_modules(&mut archive, recipe.modules, kernel)?;
    Ok(archive.finish()?)
}

fn add_tools<W: Write>(archive: &mut Archive<W>, tools: &[&str]) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for tool in tools {
        let path = tool_path(tool)?;
        archive.file(Path::new("bin").join(tool), &fs::read(&path)?)?;
        libraries.extend(libraries_of(&path)?);
    }
    // busybox's own shell runs its applets in place of programs of the same name.
    archive.symlink("bin/sh", "dash")?;
    for library in libraries {
        archive.file(
            &library,
            &fs::read(&library).with_context(|| format!("Cannot read {}", library.display()))?,
        )?;
    }
    Ok(())
}

/// Files the dynamic linker would load for `program`: the absolute paths in the output of `ldd`.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = run::capture(Command::new("ldd").arg(program))?;
    if let Some(line) = listing.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks a library: {}", program.display(), line.trim());
    }
    Ok(listing
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(Into::into)
        .collect())
}

fn add_busybox<W: Write>(archive: &mut Archive<W>) -> Result<()> {
    let path = tool_path("busybox")?;
    archive.file("bin/busybox", &fs::read(&path)?)?;
    let applets = run::capture(Command::new(&path).arg("--list"))?;
    for applet in applets.lines().filter(|applet| !applet.is_empty() && *applet != "busybox") {
        // A tool of the same name, added before, wins.
        archive.symlink(Path::new("bin").join(applet), "busybox")?;
    }
    Ok(())
}

fn add_modules<W: Write>(archive: &mut Archive<W>, modules: &[&str], kernel: &Kernel) -> Result<()> {
    let mut order = Vec::new();
    for module in modules {
        load_order(&kernel.modules, module, &mut order)?;
    }
    let mut list = String::new();
    for path in &order {
        let name = path.file_name().context("A module without a name")?;
        archive.file(Path::new("modules").join(name), &fs::read(path)?)?;
        list.push_str(&format!("/modules/{}\n", name.to_string_lossy()));
    }
    archive.file("modules/order", list.as_bytes())?;
    Ok(())
}

/// Appends `module` after everything it depends on, as its own `.modinfo` section says.
fn load_order(modules: &Path, module: &str, order: &mut Vec<PathBuf>) -> Result<()> {
    let path = find_module(modules, module)?.with_context(|| format!("The kernel has no module {module}"))?;
    if order.contains(&path) {
        return Ok(());
    }
    for dependency in dependencies(&fs::read(&path)?) {
        load_order(modules, &dependency, order)?;
    }
    order.push(path);
    Ok(())
}

/// The `depends=a,b` entry of a module.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Module names have `_` where file names may have `-`.
fn find_module(dir: &Path, module: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find_module(&path, module)? {
                return Ok(Some(found));
            }
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && path.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == module)
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn tool_path(tool: &str) -> Result<PathBuf> {
    run::find(tool).with_context(|| format!("{tool} is not installed; run: cargo xtask testbed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependencies_of_a_module_are_read_from_its_modinfo() {
        let module = b"\x7fELF..license=GPL\0depends=virtio_ring,virtio\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["virtio_ring", "virtio"]);
        assert!(dependencies(b"license=GPL\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }
}
