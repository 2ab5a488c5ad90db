//! Opening the sockets of the frontends, those that systemd passes included.

use std::os::fd::OwnedFd;

use daemon::{EndpointSpec, Failure};
use vhost_user::Endpoint;
use vhost_user::listen::{self, SocketFile};

use crate::config::Kept;
use crate::line::Source;

/// Names of passed sockets that are not for frontends.
const OTHERS: [&str; 2] = ["control", "metrics"];

/// The source of each device, and the socket files to remove in the end.
pub(crate) fn open(devices: &[Kept]) -> Result<(Vec<Source>, Vec<SocketFile>), Failure> {
    let mut passed = listen::activated()?;
    let mut files = Vec::new();
    let sources =
        devices.iter().map(|device| source(device, &mut passed, &mut files)).collect::<Result<_, _>>()?;
    for (name, _) in passed {
        tracing::warn!(name, "systemd passed a socket that no device uses");
    }
    Ok((sources, files))
}

fn source(
    device: &Kept,
    passed: &mut Vec<(String, Endpoint)>,
    files: &mut Vec<SocketFile>,
) -> Result<Source, Failure> {
    let spec = &device.endpoint;
    if let Some(fd) = spec.fd {
        return inherited(listen::inherited(fd)?);
    }
    let nowhere = spec.socket_path.is_none() && spec.connect.is_none();
    let wanted = |name: &str| match &spec.fd_name {
        Some(wanted) => name == wanted,
        None => nowhere && !OTHERS.contains(&name),
    };
    if let Some(index) = passed.iter().position(|(name, _)| wanted(name)) {
        return inherited(passed.remove(index).1);
    }
    match (&spec.fd_name, &spec.connect) {
        (Some(name), _) => Err(Failure::usage(format!("systemd passed no socket named '{name}'"))),
        (None, Some(path)) if spec.socket_path.is_none() => Ok(Source::Connect(path.clone())),
        _ => listener(spec, files),
    }
}

fn listener(spec: &EndpointSpec, files: &mut Vec<SocketFile>) -> Result<Source, Failure> {
    let refused = |_| Failure::usage(format!("Socket {spec} does not listen"));
    let (listener, file) = spec.open()?.into_listener().map_err(refused)?;
    files.extend(file);
    Ok(Source::Listener(listener))
}

fn inherited(endpoint: Endpoint) -> Result<Source, Failure> {
    match endpoint {
        Endpoint::Fd(socket) => Ok(Source::Single(socket)),
        Endpoint::Listener(socket) => Ok(Source::Listener(nonblocking(socket)?)),
        _ => Err(Failure::usage("A supervised device needs a socket that listens or is connected")),
    }
}

fn nonblocking(socket: OwnedFd) -> Result<std::os::unix::net::UnixListener, Failure> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    let refused = |error| Failure::usage(format!("An inherited socket cannot be used: {error}"));
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}
