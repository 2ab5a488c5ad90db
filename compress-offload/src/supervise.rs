//! Surviving crashes: the process that the user starts keeps what must not be lost, and a process of its own does the work
//! (`--supervise`; see [`keeper`]).
//!
//! What must not be lost are sockets, memory tables and rings; requests that were in flight are done again from the start, which
//! gives the same result. Streams are lost: their next request is answered with BAD_STREAM.

use crate::app::{self, App};
use daemon::device::{placed, qemu};
use daemon::{Application, Configured, Failure};
use keeper::{KeeperConfig, Kept};
use std::process::ExitCode;

/// Whether the work is to be done in another process.
pub fn is_wanted(configured: &Configured<App>) -> bool {
    let Configured { args, config, .. } = configured;
    (args.supervise || config.supervise) && !args.handed.is_supervised()
}

/// Keeps the devices while other processes serve them, one after another.
pub fn keep(configured: &Configured<App>) -> Result<ExitCode, Failure> {
    let Configured { args, config, common } = configured;
    // What the other process would refuse is refused before there is one.
    app::scheduling(args, config, &common.workers)?;
    let devices = placed(app::devices(args, config, common.endpoint.is_given())?, common);
    qemu::show(&crate::qemu::first_steps(devices.iter().map(|(options, endpoint)| (options, endpoint))));
    let kept = devices.into_iter().map(|(options, endpoint)| Kept {
        name: options.id,
        endpoint,
        queue_size: options.queue_size,
    });
    Ok(keeper::run(KeeperConfig::new(App::PROGRAM.name, common, kept.collect())))
}
