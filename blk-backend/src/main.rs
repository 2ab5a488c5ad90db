//! vhostd-blk: disks for virtual machines over vhost-user. See the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main::<blk_backend::app::App>()
}
