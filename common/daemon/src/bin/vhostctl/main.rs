//! `vhostctl`: watches and steers running vhostd daemons through their control sockets (`docs/control.md`).
//!
//! Exit codes: 0 done, 1 a daemon did not answer or refused, 2 the command line is wrong.

mod args;
mod commands;
mod daemons;
mod format;
mod rates;
mod show;
mod top;
mod tui;

use std::io;
use std::process::ExitCode;

use daemon::Failure;

use args::{Args, Command};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report("vhostctl");
            ExitCode::from(failure.code())
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some((args, _)) = daemon::cli::parse::<Args>()? else { return Ok(()) };
    let printed = match &args.command {
        Command::Completions { shell } => {
            let mut command = <Args as clap::CommandFactory>::command();
            clap_complete::generate(*shell, &mut command, "vhostctl", &mut io::stdout());
            Ok(())
        }
        Command::Top(top) => top::run(&args, top),
        command => commands::run(&args, command),
    };
    match printed {
        // The reader of a pipe has seen enough (`vhostctl stats | head`).
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stop::Output(error)) => Err(Failure::runtime(format!("Output cannot be written: {error}"))),
        Err(Stop::Failed(failure)) => Err(failure),
        Ok(()) => Ok(()),
    }
}

/// Why a command ends early.
enum Stop {
    Failed(Failure),
    Output(io::Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
