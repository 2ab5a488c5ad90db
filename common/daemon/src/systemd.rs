//! The service manager: readiness, watchdog, status line (sd_notify(3)), and the sockets it passes (sd_listen_fds(3)).
//!
//! Everything here does nothing when the process was not started by systemd.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use vhost_user::{Endpoint, EndpointError};

/// Sockets systemd opened for us, by their `FileDescriptorName=`.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    sockets: Vec<(String, Endpoint)>,
}

impl Passed {
    /// Takes ownership of the passed descriptors; called once, before anything else is opened.
    pub fn take() -> Result<Self, EndpointError> {
        Ok(Self { sockets: vhost_user::listen::activated()? })
    }

    /// Takes the first socket of this name.
    pub fn named(&mut self, name: &str) -> Option<Endpoint> {
        self.first(|have| have == name)
    }

    /// Takes the first socket that has none of these names.
    pub fn except(&mut self, names: &[&str]) -> Option<Endpoint> {
        self.first(|have| !names.contains(&have))
    }

    /// Names nobody has asked for: a unit file and a configuration that do not fit.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(name, _)| name.as_str())
    }

    fn first(&mut self, wanted: impl Fn(&str) -> bool) -> Option<Endpoint> {
        let index = self.sockets.iter().position(|(name, _)| wanted(name))?;
        Some(self.sockets.remove(index).1)
    }
}

/// Start-up is finished: the sockets listen.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The process is about to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("Draining")]);
}

/// One line for `systemctl status`.
pub(crate) fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The process and its workers are alive.
pub(crate) fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] is due: half of `WatchdogSec=`.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| (limit / 2).max(Duration::from_millis(1)))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = send(state, &std::env::var_os("NOTIFY_SOCKET").unwrap_or_default()) {
        tracing::debug!(%error, "systemd was not notified");
    }
}

/// The crate knows no abstract sockets, which sd_notify(3) allows and a keeper uses.
fn send(state: &[NotifyState<'_>], socket: &OsStr) -> io::Result<()> {
    let Some(name) = socket.as_encoded_bytes().strip_prefix(b"@") else { return sd_notify::notify(state) };
    let text: String = state.iter().map(|line| format!("{line}\n")).collect();
    let manager = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &manager).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_abstract_socket_of_the_service_manager_is_reached() {
        let name = format!("vhostd-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(&[NotifyState::Ready, NotifyState::Status("Serving")], format!("@{name}").as_ref()).unwrap();
        let mut text = [0; 64];
        let len = manager.recv(&mut text).unwrap();
        assert_eq!(&text[..len], b"READY=1\nSTATUS=Serving\n");
    }

    #[test]
    fn passed_sockets_are_taken_once_by_name_or_by_what_they_are_not() {
        let socket = || Endpoint::Fd(UnixStream::pair().unwrap().0.into());
        let names = ["control", "disk0", "metrics", "disk1"];
        let mut passed = Passed { sockets: names.map(|name| (name.to_owned(), socket())).into() };
        assert!(passed.named("disk0").is_some() && passed.named("disk0").is_none());
        assert!(passed.except(&["control", "metrics"]).is_some());
        assert!(passed.except(&["control", "metrics"]).is_none());
        assert_eq!(passed.unused().collect::<Vec<_>>(), ["control", "metrics"]);
    }
}
