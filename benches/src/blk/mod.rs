//! `vhostd-bench blk`: a driver and load generator for any vhost-user-blk backend.
//!
//! One thread drives one queue and owns it outright; a supervisor moves the run through its phases and notices when the
//! backend dies. The threads share nothing but the phase and their progress.

pub mod access;
pub mod client;
pub mod options;
mod report;
mod run;
mod verifier;
pub mod verify;
pub mod wire;
mod workload;

use std::process::ExitCode;

use anyhow::Result;

use crate::guest::Shown;
use crate::progress;
pub use options::{Load, Options};
pub use report::Report;
pub use run::run;

/// Runs the load of the command line; exit code 1 if a request failed or a byte was wrong, 2 for options that contradict
/// each other.
pub fn main(options: &Options) -> Result<ExitCode> {
    if let Err(error) = options.load.check() {
        eprintln!("vhostd-bench: {error}");
        return Ok(ExitCode::from(2));
    }
    let bar = progress::load(options.quiet || options.json);
    let report = run(&options.socket, &options.load, &mut |state| progress::show(&bar, state, "IOPS"))?;
    bar.finish_and_clear();
    report.print(options.json)
}
