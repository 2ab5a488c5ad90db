//! `vhostd-bench compress`: a driver and load generator for the compression device.
//!
//! One thread drives one queue and owns it outright. Requests point at blocks of a corpus that lies in guest memory, so the
//! driver copies nothing. The daemon's engines and zlib are measured by themselves too ([`alone`]).

pub mod algorithm;
pub mod alone;
pub mod client;
pub mod corpus;
pub mod foreign;
pub mod material;
pub mod modes;
pub mod options;
mod ours;
mod report;
mod run;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::guest::Shown;
use crate::progress;
pub use options::{Load, Options};
pub use report::Report;
pub use run::{Target, run};

/// Runs the load of the command line; exit code 1 if a request failed or a byte was wrong, 2 for options that contradict
/// each other.
pub fn main(options: &Options) -> Result<ExitCode> {
    if let Err(error) = options.load.check() {
        eprintln!("vhostd-bench: {error}");
        return Ok(ExitCode::from(2));
    }
    let bar = progress::load(options.quiet || options.json);
    let mut show = |state| progress::show(&bar, state, "op/s");
    let report = match options.engine_alone {
        Some(engine) => alone::run(engine, &options.load, &mut show)?,
        None => {
            let socket = options.socket.as_deref().context("--socket is missing")?;
            let target = Target { socket, control: options.control.as_deref() };
            run(target, &options.load, &mut show)?
        }
    };
    bar.finish_and_clear();
    report.print(options.json)
}
