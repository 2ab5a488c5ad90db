//! `vhostd-bench crypto`: a driver and load generator for any virtio-crypto backend.
//!
//! One thread drives one data queue and owns it outright; the submitters that share a queue have keys and sessions of their
//! own. The library that results are checked against is measured by itself too ([`alone`]).

pub mod algorithm;
pub mod alone;
mod batch;
pub mod client;
pub mod library;
pub mod modes;
pub mod options;
mod report;
mod run;
pub mod sample;
pub mod wire;
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
