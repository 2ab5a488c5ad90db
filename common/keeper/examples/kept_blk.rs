//! `vhostd-blk` under a keeper: `kept_blk SOCKET IMAGE [options of vhostd-blk]`, or `connect:SOCKET` for a
//! frontend that listens. The worker process is this program, too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use daemon::EndpointSpec;
use daemon::cli::{LogFormat, LogLevel, SandboxMode};
use keeper::{Handed, KeeperConfig, Kept, Memory, Respawn};

/// In the environment: every worker dies at once.
const ABORT: &str = "KEPT_BLK_ABORT";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(socket), Some(image)) = (arguments.next(), arguments.next()) else { return ExitCode::from(2) };
    if socket == "--blk-file" {
        return worker();
    }
    let options: Vec<OsString> = arguments.collect();
    let arguments = move |handed: &Handed| {
        let fd = handed.device("disk").unwrap_or(-1).to_string();
        let own: [OsString; 4] = ["--blk-file".into(), image.clone(), "--fd".into(), fd.into()];
        own.into_iter().chain(options.iter().cloned()).collect()
    };
    let mut endpoint = EndpointSpec::default();
    match socket.to_str().and_then(|socket| socket.strip_prefix("connect:")) {
        Some(path) => endpoint.connect = Some(PathBuf::from(path)),
        None => endpoint.socket_path = Some(PathBuf::from(socket)),
    }
    keeper::run(KeeperConfig {
        program: "kept_blk",
        executable: keeper::own_executable(),
        arguments: Box::new(arguments),
        devices: vec![Kept { name: "disk".into(), endpoint, queue_size: 1024 }],
        memories: vec![Memory { name: "example", len: 1 << 20, secret: true }],
        sandbox: SandboxMode::Enforce,
        log_level: LogLevel::Info,
        log_format: LogFormat::Text,
        respawn: Respawn::default(),
    })
}

fn worker() -> ExitCode {
    if std::env::var_os(ABORT).is_some() {
        std::process::abort();
    }
    daemon::main::<blk_backend::app::App>()
}
