//! `cargo xtask loom`: the concurrent code of the runtime under the loom model checker.

use anyhow::{Result, bail};

use crate::report::Tally;
use crate::{run, workspace};

/// Runs the models and prints their results.
pub fn run() -> Result<()> {
    check(&mut Tally::default())
}

/// Runs the models and counts them.
pub fn check(tally: &mut Tally) -> Result<()> {
    // Its own target directory: `--cfg loom` changes every crate, and would evict the ordinary build.
    let mut command = run::cargo(["test", "--package", "runtime", "--test", "loom"]);
    command
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", workspace::target()?.join("loom"))
        .env("CARGO_PROFILE_TEST_OPT_LEVEL", "2");
    let before = tally.passed;
    let ok = run::watch(&mut command, |line| tally.add_libtest_line(line))?;
    if !ok {
        bail!("A loom model failed");
    }
    if tally.passed == before {
        bail!("No loom model ran; a filter or a cfg is wrong");
    }
    Ok(())
}
