//! What a command does, and its exit code.

use std::path::Path;
use std::process::ExitCode;

use guest_driver::compress::{Client, Options};

use crate::cli::{Cli, Command, Compress, Decompress, Device, Manners};
use crate::failure::Trouble;
use crate::files::{Files, Work};
use crate::pack::Settings;
use crate::{bench, info, notice, signal};

/// Exit code of errors.
pub const ERROR: u8 = 1;
/// Exit code of warnings.
pub const WARNING: u8 = 2;

/// Runs a command to its end.
pub fn run(cli: &Cli) -> ExitCode {
    notice::install(
        matches!(&cli.command, Command::Compress(c) if c.manners.quiet)
            || matches!(&cli.command, Command::Decompress(d) if d.manners.quiet),
    );
    signal::catch();
    match &cli.command {
        Command::Compress(command) => compress(command, &cli.device),
        Command::Decompress(command) => decompress(command, &cli.device),
        Command::Bench(command) => only(bench::run(command, &cli.device)),
        Command::Info(command) => only(info::run(command, &cli.device)),
    }
}

fn compress(command: &Compress, device: &Device) -> ExitCode {
    if command.decompress {
        let work = Work::Decompress { format: None, depth: device.depth.into(), test: false };
        return with_files(device, &command.manners, work);
    }
    let settings = Settings {
        format: command.format.into(),
        level: command.level.0,
        chunk: device.chunk,
        depth: device.depth.into(),
        verify: command.verify,
    };
    let work = Work::Compress { settings, no_name: command.no_name };
    with_files(device, &command.manners, work)
}

fn decompress(command: &Decompress, device: &Device) -> ExitCode {
    let format = command.format.map(Into::into);
    let work = Work::Decompress { format, depth: device.depth.into(), test: command.test };
    with_files(device, &command.manners, work)
}

/// Takes the device; the library says so if there is none.
pub fn client(device: &Device) -> Result<Client, Trouble> {
    open(device, device.options())
}

/// The same with options of its own.
pub fn open(device: &Device, options: Options) -> Result<Client, Trouble> {
    let client = Client::open(options);
    match client.problem() {
        Some(problem) if device.require_device => Err(Trouble::Error(problem.in_full())),
        _ => Ok(client),
    }
}

fn with_files(device: &Device, manners: &Manners, work: Work) -> ExitCode {
    let mut client = match client(device) {
        Ok(client) => client,
        Err(trouble) => return only(Err(trouble)),
    };
    let mut files = Files { client: &mut client, work, manners };
    let mut code = 0;
    let standard = [std::ffi::OsString::from("-")];
    let names = if manners.files.is_empty() { &standard[..] } else { &manners.files };
    for name in names {
        let result = if name == "-" { files.pipe() } else { files.file(Path::new(name)) };
        match result {
            Ok(()) => {}
            Err(Trouble::Error(text)) => {
                say(&text);
                code = ERROR;
            }
            Err(Trouble::Warning(text)) => {
                if !manners.quiet {
                    say(&text);
                }
                code = if code == 0 { WARNING } else { code };
            }
            Err(ending) => {
                // The device is given back before the process ends.
                drop(client);
                end(&ending);
            }
        }
    }
    ExitCode::from(code)
}

/// The exit code of a command that does one thing.
fn only(result: Result<(), Trouble>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Error(text)) => {
            say(&text);
            ExitCode::from(ERROR)
        }
        Err(Trouble::Warning(text)) => {
            say(&text);
            ExitCode::from(WARNING)
        }
        Err(ending) => end(&ending),
    }
}

fn end(trouble: &Trouble) -> ! {
    if matches!(trouble, Trouble::BrokenPipe) { signal::broken_pipe() } else { signal::end() }
}

fn say(text: &str) {
    eprintln!("vhostd-guest: {text}");
}
