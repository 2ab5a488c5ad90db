//! What is linked in: permissive licences only, and one version of each crate whose types cross crate borders.
//!
//! `deny.toml` says the same for cargo-deny, which also knows advisories; it is run as well where it is installed, but
//! building it takes longer than all the other lints together.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::run;

/// SPDX identifiers a dependency may have.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Two versions of one of these do not fit together: their types appear in each other's interfaces.
const SINGLE: &[&str] = &[
    "vhost",
    "vhost-user-backend",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vmm-sys-util",
    "io-uring",
];

/// Checks every package that is compiled for any target, for tests and tools too. (The lock file has more: optional
/// dependencies that nobody turns on.)
pub fn check() -> Result<()> {
    let mut tree = run::cargo(["tree", "--workspace", "--locked", "--target", "all", "--prefix", "none"]);
    let packages = run::capture(tree.args(["--edges", "normal,build,dev", "--format", "{p}|{l}|"]))?;
    let complaints = complaints(&packages);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    if run::installed("cargo-deny") {
        run::check(&mut run::cargo(["deny", "check", "licenses", "bans", "sources"]))?;
    }
    Ok(())
}

/// Looks at lines of `name v1.2.3 ...|licence|...`; a package may come more than once.
fn complaints(packages: &str) -> Vec<String> {
    let mut complaints = BTreeSet::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in packages.lines().filter(|line| !line.is_empty()) {
        let (package, rest) = line.split_once('|').unwrap_or((line, ""));
        let licence = rest.split('|').next().unwrap_or_default();
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        versions.entry(name).or_default().insert(version);
        if !allowed(licence) {
            complaints.insert(format!("{name}: licence `{licence}`"));
        }
    }
    for (name, found) in versions.iter().filter(|(name, found)| SINGLE.contains(name) && found.len() > 1) {
        complaints.insert(format!("{name}: more than one version: {found:?}"));
    }
    complaints.into_iter().collect()
}

/// Evaluates an SPDX expression: an OR needs one permissive side, an AND both.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens: Vec<&str> = expression.split_whitespace().collect();
    tokens.reverse();
    let value = any(&mut tokens);
    value == Some(true) && tokens.is_empty()
}

fn any(tokens: &mut Vec<&str>) -> Option<bool> {
    let mut value = all(tokens)?;
    while tokens.last() == Some(&"OR") {
        tokens.pop();
        value |= all(tokens)?;
    }
    Some(value)
}

fn all(tokens: &mut Vec<&str>) -> Option<bool> {
    let mut value = one(tokens)?;
    while tokens.last() == Some(&"AND") {
        tokens.pop();
        value &= one(tokens)?;
    }
    Some(value)
}

fn one(tokens: &mut Vec<&str>) -> Option<bool> {
    let token = tokens.pop()?;
    if token == "(" {
        let value = any(tokens)?;
        return (tokens.pop() == Some(")")).then_some(value);
    }
    if tokens.last() == Some(&"WITH") {
        tokens.pop();
        let exception = tokens.pop()?;
        return Some(PERMISSIVE.contains(&format!("{token} WITH {exception}").as_str()));
    }
    Some(PERMISSIVE.contains(&token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissive_expressions_are_allowed() {
        for expression in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "LGPL-2.1-or-later OR MIT",
        ] {
            assert!(allowed(expression), "{expression}");
        }
    }

    #[test]
    fn a_second_version_and_a_bad_licence_are_named_once() {
        let packages = "a v1.0.0|MIT|\nvhost v0.18.0|Apache-2.0|\nvhost v0.17.0 (proc-macro)|Apache-2.0| (*)\n\n\
                        b v1.0.0|GPL-2.0|\nb v1.0.0|GPL-2.0| (*)\nlibc v0.1.0|MIT|\nlibc v0.2.0|MIT|\n";
        let found = complaints(packages);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("b: licence") && found[1].starts_with("vhost: more than one"),
            "{found:?}"
        );
    }

    #[test]
    fn copyleft_and_nonsense_are_refused() {
        for expression in ["GPL-2.0", "MIT AND GPL-2.0", "", "MIT OR", "(MIT", "MIT Apache-2.0", "MPL-2.0"] {
            assert!(!allowed(expression), "{expression}");
        }
    }
}
