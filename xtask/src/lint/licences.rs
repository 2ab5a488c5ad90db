//! What is linked in: permissive licences only, and one version of each crate whose types cross crate borders.
//!
//! `deny.toml` says the same for cargo-deny, which also knows advisories; it is run as well where it is installed, but
//! building it takes longer than all the other lints together.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::{run, workspace};

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

/// Checks every package in the lock file.
pub fn check() -> Result<()> {
    let packages =
        workspace::metadata()?["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let mut complaints = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        versions.entry(name).or_default().push(package["version"].as_str().unwrap_or("?"));
        match package["license"].as_str() {
            Some(expression) if allowed(expression) => {}
            Some(expression) => complaints.push(format!("{name}: licence {expression}")),
            None => complaints.push(format!("{name}: no licence given")),
        }
    }
    for name in SINGLE {
        if let Some(found) = versions.get(name).filter(|found| found.len() > 1) {
            complaints.push(format!("{name}: more than one version: {}", found.join(", ")));
        }
    }
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    if run::installed("cargo-deny") {
        run::check(&mut run::cargo(["deny", "check", "licenses", "bans", "sources"]))?;
    }
    Ok(())
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
    fn copyleft_and_nonsense_are_refused() {
        for expression in ["GPL-2.0", "MIT AND GPL-2.0", "", "MIT OR", "(MIT", "MIT Apache-2.0", "MPL-2.0"] {
            assert!(!allowed(expression), "{expression}");
        }
    }
}
