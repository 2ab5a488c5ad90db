//! `cargo xtask lint`: what a reviewer should not have to look for. Warnings are errors.

mod licences;
mod spec;

use anyhow::Result;

use crate::report::Tally;
use crate::run;

/// Runs all lints.
pub fn run() -> Result<()> {
    check(&mut Tally::default())
}

/// Runs all lints and counts them; stops at the first that fails.
pub fn check(tally: &mut Tally) -> Result<()> {
    lint(tally, "formatting", || run::check(&mut run::cargo(["fmt", "--all", "--check"])))?;
    lint(tally, "promises of SPEC.md", spec::check)?;
    lint(tally, "licences and versions of dependencies", licences::check)?;
    lint(tally, "clippy", || {
        run::check(&mut run::cargo([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    lint(tally, "rustdoc", || {
        run::check(
            run::cargo([
                "doc",
                "--workspace",
                "--no-deps",
                "--locked",
                "--quiet",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings"),
        )
    })
}

fn lint(tally: &mut Tally, name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("lint: {name}");
    tally.check(body())
}
