//! vhostd-net: a switch between virtual machines over vhost-user. See the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main::<net_backend::app::App>()
}
