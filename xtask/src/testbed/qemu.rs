//! A QEMU newer than the release's: `vhost-user-test-device-pci`, which carries a whole device of ours, is there from 10.2
//! on.
//!
//! It comes from Debian's development branch, with the libraries it needs, and is unpacked beside the build: neither it nor
//! its C library touches the machine's own. apt resolves, downloads and verifies the packages with lists and a cache of its
//! own, so this needs no privilege.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Outcome, packages};
use crate::run;

/// What runs it, relative to the testbed directory; takes the options of `qemu-system-x86_64`.
pub const FILE: &str = "qemu/run";

/// Where the packages come from.
const SUITE: &str = "sid";
const PACKAGE: &str = "qemu-system-x86";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The first version with the device.
const NEEDED: (u32, u32) = (10, 2);

/// Its loader finds its libraries, and it finds its modules and firmware, wherever the directory is.
const RUN: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/root/usr
lib=$here/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$lib/qemu"
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib:$lib/systemd" "$here/bin/qemu-system-x86_64" \
    -L "$here/share/qemu" -L "$here/share/seabios" "$@"
"#;

/// Not needed to run it, and more than half of what is unpacked.
const UNWANTED: &[&str] = &[
    "--exclude=./usr/share/[^qs]*",
    "--exclude=./usr/lib/systemd",
    "--exclude=./usr/lib/*/gconv",
    "--exclude=./etc",
];

/// A QEMU that runs.
pub struct Qemu {
    version: String,
    fresh: bool,
}

impl Outcome for Qemu {
    fn summary(&self) -> String {
        format!("{}{}", self.version, if self.fresh { ", downloaded and unpacked" } else { ", there" })
    }
}

/// Downloads and unpacks it unless that was done before.
pub fn set_up(dir: &Path) -> Result<Qemu> {
    let run = dir.join(FILE);
    let fresh = !run.is_file();
    if fresh {
        let home = dir.join("qemu");
        install(&home).with_context(|| {
            let (major, minor) = NEEDED;
            format!(
                "Tests of whole devices need QEMU {major}.{minor} or newer; put yours at {}",
                run.display()
            )
        })?;
    }
    let version = version(&run)?;
    Ok(Qemu { version, fresh })
}

fn install(home: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg-deb"] {
        if !run::installed(program) {
            bail!("No {program} here to get one with");
        }
    }
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    let (apt, root) = (home.join("apt"), home.join("root"));
    fs::create_dir_all(&root)?;
    for archive in download(&apt)? {
        packages::unpack(&archive, &root, UNWANTED)?;
    }
    fs::remove_dir_all(apt)?;
    let partial = home.join("run.partial");
    fs::write(&partial, RUN)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    version(&partial)?;
    // Last, because its presence means that the rest is complete.
    fs::rename(partial, home.join("run"))?;
    Ok(())
}

/// The package and everything it depends on, as files.
fn download(apt: &Path) -> Result<Vec<PathBuf>> {
    let config = configure(apt)?;
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        run::capture(command.env("APT_CONFIG", &config).arg("--quiet").args(args))
    };
    apt_get(&["update"]).with_context(|| format!("Cannot read the package lists of {SUITE}"))?;
    apt_get(&["install", "--yes", "--no-install-recommends", "--download-only", PACKAGE])?;
    packages::archives_in(&apt.join("cache/archives"))
}

/// An apt that knows one suite, no installed package, and no directory but `apt`; returns its configuration file.
fn configure(apt: &Path) -> Result<PathBuf> {
    let mirror = mirror()?;
    for dir in ["state/lists/partial", "cache/archives/partial", "parts"] {
        fs::create_dir_all(apt.join(dir))?;
    }
    fs::write(apt.join("state/status"), "")?;
    let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    fs::write(apt.join("sources.list"), format!("deb {signed}{mirror} {SUITE} main\n"))?;
    let mut text = String::new();
    for (option, path) in [
        ("Dir::State", "state"),
        ("Dir::State::status", "state/status"),
        ("Dir::Cache", "cache"),
        ("Dir::Etc::sourcelist", "sources.list"),
        ("Dir::Etc::sourceparts", "parts"),
        ("Dir::Etc::preferencesparts", "parts"),
    ] {
        text.push_str(&format!("{option} \"{}\";\n", apt.join(path).display()));
    }
    // No other user reaches the directory; and of the lists, only that of the packages is needed.
    text.push_str("APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n");
    text.push_str("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n");
    let config = apt.join("apt.conf");
    fs::write(&config, text)?;
    Ok(config)
}

/// Where the machine's own packages come from has the other branches too.
fn mirror() -> Result<String> {
    let filters = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"];
    let listing = run::capture(Command::new("apt-get").arg("indextargets").args(filters))?;
    match listing.lines().next() {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("apt knows no mirror of Debian here, or has no lists yet; is apt-get update needed?"),
    }
}

/// What the program says about itself; an error when it is too old.
fn version(program: &Path) -> Result<String> {
    let text = run::capture(Command::new(program).arg("--version"))?;
    let version = text.split_whitespace().nth(3).unwrap_or_default();
    if parse(version).is_none_or(|found| found < NEEDED) {
        bail!("{} is version {version:?}, and {}.{} is needed", program.display(), NEEDED.0, NEEDED.1);
    }
    Ok(version.to_owned())
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(parse("11.1.3").is_some_and(|version| version > NEEDED));
        assert!(parse("10.2.0").is_some_and(|version| version >= NEEDED));
        assert!(parse("7.2.22").is_some_and(|version| version < NEEDED));
        assert_eq!(parse("unknown"), None);
    }
}
