//! vhostd-guest: gzip's manners, the device's speed.
//!
//! [`cli`] is the command line, [`run`](mod@run) what a command does. [`files`] treats files as gzip does; [`pack`] and [`unpack`] turn
//! what they hold into requests and back, with [`flights`] of them under way and a [`window`] on the input. [`archive`] knows
//! what compressed files look like.

mod archive;
mod bench;
mod ciphers;
mod cli;
mod cpu;
mod failure;
mod files;
mod flights;
mod info;
mod notice;
mod pack;
mod progress;
mod run;
mod signal;
mod unpack;
mod window;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::try_parse() {
        Ok(cli) => run::run(&cli),
        Err(error) => {
            let _ = error.print();
            // As gzip: 2 is for warnings.
            if error.use_stderr() { ExitCode::from(run::ERROR) } else { ExitCode::SUCCESS }
        }
    }
}
