//! `cargo xtask lint`: what a reviewer should not have to look for. Warnings are errors.

mod licences;
mod spec;

use anyhow::{Result, bail};

use crate::report::Tally;
use crate::run;

/// Runs all lints.
pub fn run() -> Result<()> {
    check(&mut Tally::default())
}

type Lint = fn() -> Result<()>;

/// Runs all lints and counts them; the error names all that failed.
pub fn check(tally: &mut Tally) -> Result<()> {
    let lints: [(&str, Lint); 5] = [
        ("formatting", || run::check(&mut run::cargo(["fmt", "--all", "--check"]))),
        ("promises of SPEC.md", spec::check),
        ("licences and versions of dependencies", licences::check),
        ("clippy", clippy),
        ("rustdoc", rustdoc),
    ];
    let mut failures = Vec::new();
    for (name, lint) in lints {
        println!("lint: {name}");
        if let Err(error) = tally.check(lint()) {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn clippy() -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "--deny", "warnings"];
    run::check(&mut run::cargo(args))
}

fn rustdoc() -> Result<()> {
    let args = ["doc", "--workspace", "--no-deps", "--locked", "--quiet"];
    run::check(run::cargo(args).env("RUSTDOCFLAGS", "--deny warnings"))
}
