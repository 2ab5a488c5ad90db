//! What a daemon opens before the sandbox closes: endpoints, and the paths it will need later.

use std::fmt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use vhost_user::listen::{self, SocketFile};
use vhost_user::{Endpoint, EndpointError, Transport};

use crate::cli::{Common, EndpointArgs, GroupName, SocketMode};
use crate::systemd::Passed;
use crate::{Failure, sandbox};

/// `FileDescriptorName=` of a control socket passed by systemd.
pub(super) const CONTROL_NAME: &str = "control";
/// `FileDescriptorName=` of a metrics socket passed by systemd.
pub(super) const METRICS_NAME: &str = "metrics";

/// Handed to [`crate::Application::open`].
pub struct Setup {
    common: Common,
    passed: Passed,
    policy: sandbox::Policy,
    inherited: Vec<i32>,
}

/// Where one device meets its frontend, as configured: one of the four ways.
#[derive(Clone, Debug, Default)]
pub struct EndpointSpec {
    /// Listen on this path.
    pub socket_path: Option<PathBuf>,
    /// Connect to this path, for ever.
    pub connect: Option<PathBuf>,
    /// Serve this inherited descriptor.
    pub fd: Option<i32>,
    /// Serve the socket systemd passes under this name.
    pub fd_name: Option<String>,
    /// Permission bits of the listening socket.
    pub socket_mode: SocketMode,
    /// Group of the listening socket.
    pub socket_group: Option<GroupName>,
}

impl From<&EndpointArgs> for EndpointSpec {
    fn from(args: &EndpointArgs) -> Self {
        Self {
            socket_path: args.socket_path.clone(),
            connect: args.connect.clone(),
            fd: args.fd,
            fd_name: None,
            socket_mode: args.socket_mode,
            socket_group: args.socket_group.clone(),
        }
    }
}

impl fmt::Display for EndpointSpec {
    /// For logs: the path, or what stands for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.socket_path, &self.connect, self.fd, &self.fd_name) {
            (Some(path), ..) => write!(f, "{}", path.display()),
            (_, Some(path), ..) => write!(f, "connect:{}", path.display()),
            (_, _, Some(fd), _) => write!(f, "fd:{fd}"),
            (.., Some(name)) => write!(f, "systemd:{name}"),
            _ => f.write_str("systemd"),
        }
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        Failure::usage(error)
    }
}

impl EndpointSpec {
    /// Opens a socket by its path; this is all a device added while running can have.
    pub fn open(&self) -> Result<Transport, Failure> {
        match (&self.socket_path, &self.connect) {
            (Some(path), None) => self.listen(path),
            (None, Some(path)) => Ok(Endpoint::Connect(path.clone()).open(0)?),
            (Some(_), Some(_)) => Err(Failure::usage("A device either listens or connects, not both")),
            (None, None) => Err(Failure::usage("No socket is given for the frontend").hint(
                "use --socket-path, --connect, --fd or a configuration file, or start through systemd",
            )),
        }
    }

    fn listen(&self, path: &Path) -> Result<Transport, Failure> {
        let transport = Endpoint::Listen(path.to_owned()).open(self.socket_mode.0)?;
        if let Some(group) = &self.socket_group {
            let refused = |error| {
                Failure::usage(format!("Socket {} cannot be given to group {group}: {error}", path.display()))
            };
            std::os::unix::fs::chown(path, None, Some(group.gid)).map_err(refused)?;
        }
        Ok(transport)
    }

    /// Whether it names none of them.
    pub fn is_empty(&self) -> bool {
        self.socket_path.is_none() && self.connect.is_none() && self.fd.is_none() && self.fd_name.is_none()
    }
}

impl Setup {
    pub(super) fn new(common: Common, passed: Passed) -> Result<Self, Failure> {
        check_cpus(&common)?;
        let mut policy = sandbox::Policy::default();
        for path in &common.sandbox.allow_paths {
            if !path.is_dir() {
                return Err(Failure::usage(format!("Allowed path {} is not a directory", path.display())));
            }
            policy.allow_directory(path);
        }
        Ok(Self { common, passed, policy, inherited: Vec::new() })
    }

    /// For a process that opens sockets and has another one serve them: with what systemd has passed.
    pub fn for_another(common: Common) -> Result<Self, Failure> {
        Self::new(common, Passed::take()?)
    }

    /// The settings all daemons share: arguments first, then the configuration file, then defaults.
    pub fn common(&self) -> &Common {
        &self.common
    }

    /// What the sandbox will leave open.
    pub fn sandbox(&mut self) -> &mut sandbox::Policy {
        &mut self.policy
    }

    /// Opens the endpoint of the command line, or the socket systemd passed.
    pub fn endpoint(&mut self) -> Result<Transport, Failure> {
        let spec = EndpointSpec::from(&self.common.endpoint);
        if spec.is_empty()
            && let Some(socket) = self.passed.except(&[CONTROL_NAME, METRICS_NAME])
        {
            return Ok(socket.open(0)?);
        }
        self.endpoint_of(&spec)
    }

    /// Opens the endpoint of one device of a configuration file.
    pub fn endpoint_of(&mut self, spec: &EndpointSpec) -> Result<Transport, Failure> {
        if let Some(name) = &spec.fd_name {
            let missing = || Failure::usage(format!("systemd passed no socket named '{name}'"));
            return Ok(self.passed.named(name).ok_or_else(missing)?.open(0)?);
        }
        if let Some(fd) = spec.fd {
            if self.inherited.contains(&fd) {
                return Err(Failure::usage(format!("Descriptor {fd} is given to two devices")));
            }
            self.inherited.push(fd);
            return Ok(listen::inherited(fd)?.open(0)?);
        }
        let transport = spec.open()?;
        if let Some(directory) = spec.socket_path.as_deref().and_then(Path::parent) {
            self.policy.allow_sockets_in(directory);
        }
        Ok(transport)
    }

    /// A listening socket for the control plane: the one systemd passed under `name`, or a new one at `path`.
    pub(super) fn service(&mut self, name: &str, path: Option<&Path>) -> Result<Option<Service>, Failure> {
        let (socket, mode) = match (self.passed.named(name), path) {
            (Some(socket), _) => (socket, 0),
            (None, Some(path)) => {
                self.policy.allow_sockets_in(path.parent().unwrap_or(path));
                (Endpoint::Listen(path.to_owned()), 0o600)
            }
            (None, None) => return Ok(None),
        };
        let refused = |_| Failure::usage(format!("The socket systemd passed as '{name}' does not listen"));
        let (listener, file) = socket.open(mode)?.into_listener().map_err(refused)?;
        Ok(Some(Service { listener, _file: file }))
    }

    pub(super) fn finish(self) -> sandbox::Policy {
        for name in self.passed.unused() {
            tracing::warn!(name, "systemd passed a socket that no device uses");
        }
        self.policy
    }
}

/// A worker can only be pinned to a CPU that is there and that the process may use.
fn check_cpus(common: &Common) -> Result<(), Failure> {
    let Some(wanted) = &common.workers.cpus else { return Ok(()) };
    let unknown = |error| Failure::runtime(format!("The CPUs of this process cannot be found out: {error}"));
    let usable = runtime::cpu::available().map_err(unknown)?;
    match wanted.cpus().iter().find(|cpu| !usable.contains(cpu)) {
        Some(cpu) => Err(Failure::usage(format!("CPU {cpu} is not one of those this process may use"))),
        None => Ok(()),
    }
}

/// A listening Unix socket of the control plane.
pub(super) struct Service {
    pub listener: UnixListener,
    /// Removes the file we made when it is dropped.
    _file: Option<SocketFile>,
}
