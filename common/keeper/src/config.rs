//! What a keeper is told.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use daemon::EndpointSpec;
use daemon::cli::{Common, LogFormat, LogLevel, SandboxMode};

use crate::arguments::HandedArgs;
use crate::respawn::Respawn;

/// What [`run`](crate::run) keeps, and how it starts the worker process.
pub struct KeeperConfig {
    /// The program's name, for messages.
    pub program: &'static str,
    /// What the worker process executes; usually [`own_executable`](crate::own_executable).
    pub executable: PathBuf,
    /// The arguments of the worker process, which name the descriptors it is given.
    pub arguments: Arguments,
    /// The devices.
    pub devices: Vec<Kept>,
    /// Memory that outlives each worker process.
    pub memories: Vec<Memory>,
    /// Confinement of the threads that hear frontends and worker.
    pub sandbox: SandboxMode,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// When a worker that has died is started again.
    pub respawn: Respawn,
}

impl KeeperConfig {
    /// Keeps these devices of a `program` that has [`HandedArgs`], in the way that its `common` options say; its worker processes
    /// run the same program with the same arguments.
    pub fn new(program: &'static str, common: &Common, devices: Vec<Kept>) -> Self {
        Self {
            program,
            executable: crate::own_executable(),
            arguments: Box::new(|handed| HandedArgs::of(std::env::args_os().skip(1), handed)),
            devices,
            memories: Vec::new(),
            sandbox: common.sandbox.mode(),
            log_level: common.service.log_level,
            log_format: common.service.log_format,
            respawn: Respawn::default(),
        }
    }
}

/// Makes the arguments of the worker process.
pub type Arguments = Box<dyn Fn(&Handed) -> Vec<OsString>>;

/// One device: where its frontends come from.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name, unique among the devices.
    pub name: String,
    /// The socket of the frontends.
    pub endpoint: EndpointSpec,
    /// Largest ring size the device accepts; the size of the inflight region.
    pub queue_size: u16,
}

/// Memory that the keeper holds and each worker process maps: a sealed memfd, zeroed at the start.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Its name, in `/proc/PID/maps` and for [`Handed::memory`].
    pub name: &'static str,
    /// Bytes; only those that were written take memory.
    pub len: u64,
    /// Has keys in it: it is kept from the swap device.
    pub secret: bool,
}

/// The descriptors that a worker process finds open, the same ones in every one.
#[derive(Clone, Debug, Default)]
pub struct Handed {
    /// For each device, by name, what to give as `--fd`: a socket over which connections are handed over
    /// ([`Endpoint::Handover`](vhost_user::Endpoint::Handover)).
    pub devices: Vec<(String, RawFd)>,
    /// The memories, by name.
    pub memories: Vec<(&'static str, RawFd)>,
}

impl Handed {
    /// The descriptor of a device.
    pub fn device(&self, name: &str) -> Option<RawFd> {
        self.devices.iter().find(|(have, _)| have == name).map(|(_, fd)| *fd)
    }

    /// The descriptor of a memory.
    pub fn memory(&self, name: &str) -> Option<RawFd> {
        self.memories.iter().find(|(have, _)| *have == name).map(|(_, fd)| *fd)
    }
}
