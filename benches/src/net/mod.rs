//! `vhostd-bench net`: a driver that plays one guest or two on any vhost-user-net backend.
//!
//! One thread drives one queue pair of every guest and owns their rings outright; a supervisor moves the run through its
//! phases and notices when the backend dies. The threads share nothing but the phase and their progress.

pub mod client;
pub mod frame;
pub mod host;
mod job;
pub mod lane;
pub mod ledger;
pub mod meter;
pub mod options;
mod outage;
mod ping;
mod report;
mod run;
pub mod wire;

use std::process::ExitCode;

use anyhow::Result;

use crate::guest::Shown;
use crate::progress;
use meter::{Control, Meter};
pub use options::{Load, Options};
pub use report::{Counted, Report};
pub use run::{Target, run};

/// Runs the load of the command line; exit code 1 if nothing arrived or something was wrong, 2 for options that contradict
/// each other.
pub fn main(options: &Options) -> Result<ExitCode> {
    let checked = options.load.check().and_then(|()| options.load.check_sockets(options.socket.len()));
    if let Err(error) = checked {
        eprintln!("vhostd-bench: {error}");
        return Ok(ExitCode::from(2));
    }
    let bar = progress::load(options.quiet || options.json);
    let target = Target { sockets: options.socket.clone(), server: options.server };
    let mut meter = options.control.as_deref().map(Control::new);
    let meter = meter.as_mut().map(|meter| meter as &mut dyn Meter);
    let report = run(&target, &options.load, meter, &mut |state| progress::show(&bar, state, "pps"))?;
    bar.finish_and_clear();
    report.print(options.json)
}
