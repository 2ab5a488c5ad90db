//! vhostd-compress: compresses and decompresses for virtual machines over vhost-user. See the library for what it does.

use compress_offload::app::App;
use compress_offload::supervise;
use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main_with::<App>(|configured| match supervise::is_wanted(&configured) {
        true => supervise::keep(&configured),
        false => daemon::run(configured),
    })
}
