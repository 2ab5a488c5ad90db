//! Surviving crashes: the process that the user starts keeps what must not be lost, and a process of its own does the work
//! (`--supervise`; see [`keeper`]).

use crate::app::{self, App};
use crate::cli::Handed;
use crate::journal::Journals;
use crate::vault::Vault;
use daemon::device::{placed, qemu};
use daemon::sandbox;
use daemon::{Application, Configured, Failure};
use keeper::{HandedArgs, KeeperConfig, Kept, Memory};
use std::ffi::OsString;
use std::process::ExitCode;

/// Memory for the sessions of all devices. Only what is written takes memory.
const VAULT: Memory = Memory { name: "vhostd-vault", len: 256 << 20, secret: true };
/// Memory for the sources of requests in flight that are worked on in place.
const JOURNAL: Memory = Memory { name: "vhostd-journal", len: 64 << 20, secret: false };

/// Whether the work is to be done in another process.
pub fn is_wanted(configured: &Configured<App>) -> bool {
    let Configured { args, config, .. } = configured;
    (args.supervise || config.supervise) && !args.handed.devices.is_supervised()
}

/// Keeps the devices while other processes serve them, one after another.
pub fn keep(configured: &Configured<App>) -> Result<ExitCode, Failure> {
    let Configured { args, config, common } = configured;
    // What the other process would refuse is refused before there is one.
    app::scheduling(args, config, &common.workers)?;
    let devices = app::devices(args, config, common.endpoint.is_given())?;
    let devices = placed(devices, common);
    qemu::show(&crate::qemu::first_steps(devices.iter().map(|(options, endpoint)| (options, endpoint))));
    let kept = devices.into_iter().map(|(options, endpoint)| Kept {
        name: options.id,
        endpoint,
        queue_size: options.queue_size,
    });
    sandbox::keep_secrets().map_err(Failure::runtime)?;
    Ok(keeper::run(KeeperConfig {
        arguments: Box::new(|handed| arguments(std::env::args_os().skip(1), handed)),
        memories: vec![VAULT, JOURNAL],
        ..KeeperConfig::new(App::PROGRAM.name, common, kept.collect())
    }))
}

/// What the process that does the work finds.
pub struct Inherited {
    /// The sessions of all devices.
    pub vault: Vault,
    /// The sources of requests in flight.
    pub journals: Journals,
}

impl Inherited {
    /// Takes it over, if there is a process that keeps this one.
    pub fn take(handed: &Handed) -> Result<Option<Self>, Failure> {
        let (Some(vault), Some(journal)) = (handed.vault_fd, handed.journal_fd) else { return Ok(None) };
        let failed =
            |error| Failure::runtime(format!("What is kept for this process cannot be used: {error}"));
        let vault = keeper::inherited(vault).and_then(Vault::from_fd).map_err(failed)?;
        let journals = keeper::inherited(journal).and_then(Journals::from_fd).map_err(failed)?;
        Ok(Some(Self { vault: vault.with(&journals), journals }))
    }
}

/// What the process that does the work is started with: the user's arguments, and where to find what is kept for it.
fn arguments(given: impl Iterator<Item = OsString>, handed: &keeper::Handed) -> Vec<OsString> {
    let mut arguments = HandedArgs::of(given, handed);
    for (option, memory) in [("--vault-fd", VAULT), ("--journal-fd", JOURNAL)] {
        if let Some(fd) = handed.memory(memory.name) {
            arguments.extend([option.into(), fd.to_string().into()]);
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Args;
    use clap::Parser;

    #[test]
    fn the_other_process_gets_the_users_arguments_and_what_is_kept_for_it() {
        let given = ["--supervise", "--socket-path", "/s", "--queues", "2"];
        let handed = keeper::Handed {
            devices: vec![("a=b".into(), 7)],
            memories: vec![(VAULT.name, 8), (JOURNAL.name, 9)],
        };
        let arguments = arguments(given.iter().map(OsString::from), &handed);
        let args =
            Args::try_parse_from([OsString::from("vhostd-crypto")].into_iter().chain(arguments)).unwrap();
        assert!(!args.supervise && args.handed.devices.is_supervised());
        assert_eq!(args.device.queues, Some(2));
        assert_eq!(args.handed.devices.descriptor("a=b"), Some(7));
        assert_eq!((args.handed.vault_fd, args.handed.journal_fd), (Some(8), Some(9)));
    }
}
