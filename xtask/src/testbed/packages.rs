//! The Debian packages, through the machine's own apt set-up.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run;

/// A package and why it is here.
pub struct Package {
    /// Debian's name.
    pub name: &'static str,
    /// A program it brings, or the whole path of another file; its presence counts as installed.
    program: &'static str,
    /// What the tests use it for.
    pub purpose: &'static str,
}

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package { name, program, purpose }
}

/// Everything the tests use that comes as a package.
pub const PACKAGES: &[Package] = &[
    package("qemu-system-x86", "qemu-system-x86_64", "the guests of the end-to-end tests"),
    package("qemu-system-common", "qemu-storage-daemon", "a vhost-user-blk backend nobody here wrote"),
    package("fio", "fio", "verified load inside the guest"),
    package("busybox-static", "busybox", "the guest's user space"),
    package("dash", "dash", "the guest's shell"),
    package("e2fsprogs", "mkfs.ext4", "file system in the guest"),
    package("fdisk", "sfdisk", "partitions in the guest"),
    package("parted", "partprobe", "partitions in the guest"),
    package("util-linux", "blkdiscard", "discard in the guest, network namespaces"),
    package("dpdk-dev", "dpdk-testpmd", "virtio-user, a network frontend nobody here wrote"),
    package("iperf3", "iperf3", "traffic from and to the guests"),
    package("iproute2", "ip", "network namespaces, veth pairs, VLANs"),
    package("iputils-ping", "ping", "echo requests whose payload is checked"),
    package("ethtool", "ethtool", "offloads and queues, on the host and in the guest"),
    package("kcapi-tools", "kcapi-enc", "ciphers in the guest, by a program nobody here wrote"),
    package("keyutils", "keyctl", "RSA in the guest"),
    package("openssl", "openssl", "RSA on the host, to compare with"),
    package("gzip", "gzip", "files of the compression device, read and written by others"),
    package("zstd", "zstd", "the same for Zstandard"),
    package("lz4", "lz4", "the same for LZ4"),
    package("python3", "python3", "zlib streams of every kind, made and read by zlib itself"),
    package(
        "libisal-dev",
        "/usr/lib/x86_64-linux-gnu/libisal.so",
        "ISA-L, an engine of compression by choice",
    ),
    package("g++", "g++", "libFuzzer's runtime"),
];

/// Names of the packages whose program is not there.
pub fn missing() -> Vec<&'static str> {
    PACKAGES.iter().filter(|package| !run::installed(package.program)).map(|package| package.name).collect()
}

/// Installs what is missing, or says what to run by hand.
pub fn set_up() -> Result<String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(format!("all {} there", PACKAGES.len()));
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !run::installed("apt-get") {
        bail!(
            "No apt-get here, and these Debian packages (or their like) are missing: {}",
            missing.join(" ")
        );
    }
    if !is_root()? {
        bail!("Not root, so this is for you to run: sudo {by_hand}");
    }
    update_lists()?;
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing);
    run::capture(quiet(&mut install)).with_context(|| format!("Try by hand: {by_hand}"))?;
    let still: Vec<_> = self::missing();
    if !still.is_empty() {
        bail!("apt-get succeeded, yet these programs are not found: {}", still.join(" "));
    }
    Ok(format!("installed {}", missing.join(" ")))
}

/// Refreshes apt's package lists.
pub fn update_lists() -> Result<()> {
    run::capture(quiet(Command::new("apt-get").args(["update", "--quiet"])))?;
    Ok(())
}

/// True for the superuser, as `id -u` says.
pub fn is_root() -> Result<bool> {
    Ok(run::capture(Command::new("id").arg("-u"))?.trim() == "0")
}

/// The package files in `dir`.
pub fn archives_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    let mut archives = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    archives.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    Ok(archives)
}

/// Unpacks the files of a package below `root`, without installing it. `options` are those of tar(1), patterns among them.
pub fn unpack<I>(archive: &Path, root: &Path, options: I) -> Result<()>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut files = Command::new("dpkg-deb");
    files.arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped());
    let mut files = files.spawn().context("Cannot start dpkg-deb")?;
    let stream = files.stdout.take().context("Standard output was not piped")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--directory"]).arg(root).args(options).stdin(stream);
    let unpacked = run::capture(&mut tar);
    let status = files.wait()?;
    unpacked.with_context(|| format!("Cannot unpack {}", archive.display()))?;
    if !status.success() {
        bail!("{} is not a whole package ({status})", archive.display());
    }
    Ok(())
}

fn quiet(command: &mut Command) -> &mut Command {
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null())
}
