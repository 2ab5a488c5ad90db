//! DPDK's testpmd: as the backend that we are measured against, and with its virtio-user driver as a frontend that drives
//! any vhost-user-net backend (`vhostd-bench virtio-user`).
//!
//! It is steered by its own command prompt: counters are cleared and read there, cycles per packet included.

mod console;
pub mod frontend;
mod numbers;
pub mod options;

pub use console::Testpmd;
pub use frontend::run;
pub use options::{Load, Options, Path};

use std::process::ExitCode;

use anyhow::Result;

use crate::guest::Shown;
use crate::net::meter::{Control, Meter};

/// Debian package of the program.
pub const PACKAGE: &str = "dpdk";

/// Runs the load of the command line; exit code 1 if no frame has arrived, 2 for options that contradict each other.
pub fn main(options: &Options) -> Result<ExitCode> {
    if let Err(error) = options.load.check(options.socket.len()) {
        eprintln!("vhostd-bench: {error}");
        return Ok(ExitCode::from(2));
    }
    let mut meter = options.control.as_deref().map(Control::new);
    let meter = meter.as_mut().map(|meter| meter as &mut dyn Meter);
    let report = run(&options.socket, &options.load, meter)?;
    report.print(options.json)
}
