//! What the worker tells the service manager goes through the keeper, which is the process that systemd watches.
//!
//! The worker's readiness is also how the keeper knows that it serves, with or without systemd. The socket is an abstract one:
//! a datagram counts only when the kernel says that it is the worker's.
#![expect(unsafe_code, reason = "credentials of datagrams")]

use std::env;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The variable that names the socket (sd_notify(3)).
const VARIABLE: &str = "NOTIFY_SOCKET";
/// Longest message that is passed on.
const LONGEST: usize = 1024;

/// What the keeper understands of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Words {
    /// It serves.
    pub ready: bool,
    /// All of its threads answer.
    pub alive: bool,
}

/// The longest time between two signs of life that systemd asks for (`WatchdogSec=`), less some of it, so that the keeper
/// notices first.
pub(crate) fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|_| ours).map(|limit| Duration::from_micros(limit / 4 * 3))
}

/// The socket that a worker talks to, and where its words go.
pub(crate) struct Relay {
    socket: UnixDatagram,
    name: String,
    /// The service manager's, if there is one.
    manager: Option<SocketAddr>,
}

impl Relay {
    pub fn new() -> io::Result<Self> {
        let name = format!("vhostd-keeper-{}-{:016x}", std::process::id(), random());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        credentials(&socket)?;
        Ok(Self { socket, name, manager: env::var_os(VARIABLE).and_then(|name| address(&name)) })
    }

    /// The environment of the worker. Whoever is not the main process finds no `WATCHDOG_PID` of its own, so that one goes.
    pub fn prepare(&self, command: &mut std::process::Command) {
        command.env(VARIABLE, format!("@{}", self.name)).env_remove("WATCHDOG_PID");
    }

    /// Takes what the worker says. `None` when there is nothing more.
    pub fn take(&self, worker: u32) -> Option<Words> {
        let mut text = [0; LONGEST];
        let (len, pid) = receive(&self.socket, &mut text).ok()?;
        let text = text.get(..len)?;
        if pid != worker {
            tracing::debug!(pid, "somebody else talks on the worker's notification socket");
            return Some(Words::default());
        }
        self.say(text);
        let says = |words: &[u8]| text.split(|byte| *byte == b'\n').any(|line| line == words);
        Some(Words { ready: says(b"READY=1"), alive: says(b"WATCHDOG=1") })
    }

    /// Tells the service manager something.
    pub fn say(&self, text: &[u8]) {
        if let Some(manager) = &self.manager
            && let Err(error) = self.socket.send_to_addr(text, manager)
        {
            tracing::debug!(%error, "systemd was not notified");
        }
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn address(name: &std::ffi::OsStr) -> Option<SocketAddr> {
    match name.as_encoded_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).ok(),
        [] => None,
        _ => SocketAddr::from_pathname(name).ok(),
    }
}

/// So that nobody can have taken the name before.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: `bytes` has room for what is asked for. A failure leaves zeros, and a name that can be guessed.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u64::from_ne_bytes(bytes)
}

fn credentials(socket: &UnixDatagram) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` outlives the call, which is told its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A datagram and the process that has sent it.
fn receive(socket: &UnixDatagram, text: &mut [u8]) -> io::Result<(usize, u32)> {
    let mut control = [0u64; 16];
    let mut iov = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: msghdr is plain data for which zeros are valid; everything it is made to point to outlives the call.
    unsafe {
        let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        let len = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC);
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        Ok((len, sender(&header)))
    }
}

/// The sender in the control messages; 0 when there is none. Descriptors that came along are closed.
///
/// # Safety
/// `header` was filled by recvmsg and its control buffer is alive.
unsafe fn sender(header: &libc::msghdr) -> u32 {
    let mut pid = 0;
    // SAFETY: the macros stay inside the control buffer; a credentials message has a ucred behind its head, and a message of
    // rights has descriptors that were made for this process.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let (level, kind) = ((*message).cmsg_level, (*message).cmsg_type);
            let data = libc::CMSG_DATA(message);
            if level == libc::SOL_SOCKET && kind == libc::SCM_CREDENTIALS {
                pid = data.cast::<libc::ucred>().read_unaligned().pid as u32;
            } else if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
                let bytes = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for at in 0..bytes / size_of::<libc::c_int>() {
                    libc::close(data.cast::<libc::c_int>().add(at).read_unaligned());
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    pid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender_to(relay: &Relay) -> UnixDatagram {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect_addr(&SocketAddr::from_abstract_name(&relay.name).unwrap()).unwrap();
        socket
    }

    #[test]
    fn the_workers_words_reach_the_manager_and_its_readiness_the_keeper() {
        let mut relay = Relay::new().unwrap();
        let name = format!("{}-manager", relay.name);
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        relay.manager = address(format!("@{name}").as_ref());
        let worker = sender_to(&relay);
        worker.send(b"STATUS=x").unwrap();
        worker.send(b"READY=1\nSTATUS=Serving").unwrap();
        let me = std::process::id();
        let ready = Words { ready: true, alive: false };
        assert_eq!([(); 3].map(|()| relay.take(me)), [Some(Words::default()), Some(ready), None]);
        let mut text = [0; 64];
        assert_eq!(manager.recv(&mut text).unwrap(), 8);
        let len = manager.recv(&mut text).unwrap();
        assert_eq!(&text[..len], b"READY=1\nSTATUS=Serving");
    }

    #[test]
    fn nobody_else_is_believed() {
        let relay = Relay::new().unwrap();
        sender_to(&relay).send(b"READY=1").unwrap();
        assert_eq!(relay.take(std::process::id() + 1), Some(Words::default()));
    }
}
