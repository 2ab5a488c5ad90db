//! Our program on the interface: attached so that it goes away with the process, whatever ends it.
//!
//! A bpf link does so by itself: its descriptor is closed with the process, kill -9 included. Kernels before 5.9 have no
//! links for XDP; there the program is attached by netlink, taken away when the uplink is closed, and left behind by a
//! kill. The next start recognises it by its name and takes it away.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use super::bpf;
use super::error::OpenError;
use super::filter::{Filter, FilterMaps};
use super::interface::Interface;
use super::netlink::{ATTACH_GENERIC, ATTACH_NATIVE, Netlink};
use super::program;

/// What keeps the program on the interface.
enum Hold {
    /// Until this is closed.
    Link { _fd: OwnedFd },
    /// Until it is taken away.
    Netlink { netlink: Netlink, interface: u32, mode: u32 },
}

/// Our program, attached. Dropping takes it away.
pub(super) struct Attached {
    hold: Hold,
    maps: FilterMaps,
    _program: OwnedFd,
}

/// By what the program is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// A link, or netlink where the kernel has no links for XDP.
    Best,
    /// Netlink.
    #[cfg_attr(not(test), expect(dead_code, reason = "kernels without links are imitated by tests"))]
    Netlink,
}

/// Why the program is not attached.
pub(super) enum Refused {
    /// No other mode would help.
    Fatal(OpenError),
    /// The mode is not for this interface.
    Mode(String),
    /// The kernel has no frames of several buffers.
    MultiBuffer,
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        Self::Fatal(error)
    }
}

impl Attached {
    /// Loads the program and attaches it, without a socket yet: all frames stay with the host.
    pub(super) fn new(
        interface: &Interface,
        filter: &Filter,
        native: bool,
        frags: bool,
        means: Means,
    ) -> Result<Self, Refused> {
        let maps =
            FilterMaps::create(interface.queues).map_err(|error| bpf_error("creating BPF maps", error))?;
        maps.apply(filter).map_err(|error| bpf_error("setting the filter of the XDP program", error))?;
        let program = bpf::load(bpf::PROGRAM_NAME, &program::assemble(maps.for_program()), frags);
        let program = program.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if frags => Refused::MultiBuffer,
            _ => bpf_error("loading the XDP program", error).into(),
        })?;
        let mode = if native { ATTACH_NATIVE } else { ATTACH_GENERIC };
        let hold =
            hold(&program, interface, mode, means).map_err(|error| refused(error, interface, native))?;
        Ok(Self { hold, maps, _program: program })
    }

    pub(super) fn maps(&self) -> &FilterMaps {
        &self.maps
    }

    /// Whether it goes away by itself when the process is killed.
    pub(super) fn ends_with_process(&self) -> bool {
        matches!(self.hold, Hold::Link { .. })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Hold::Netlink { netlink, interface, mode } = &mut self.hold
            && let Err(error) = netlink.detach(*interface, *mode)
        {
            // Without the privilege (the sandbox has dropped it), or the interface is gone.
            tracing::warn!(%error, "The XDP program stays on the interface; the next start takes it away");
        }
    }
}

fn hold(program: &OwnedFd, interface: &Interface, mode: u32, means: Means) -> io::Result<Hold> {
    let index = interface.link.index;
    if means == Means::Best {
        match bpf::attach(program.as_fd(), index, mode) {
            Ok(fd) => return Ok(Hold::Link { _fd: fd }),
            // No links for XDP: an unknown attach type, or no command at all.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    let mut netlink = Netlink::route()?;
    netlink.attach(index, program.as_raw_fd(), mode)?;
    Ok(Hold::Netlink { netlink, interface: index, mode })
}

fn refused(error: io::Error, interface: &Interface, native: bool) -> Refused {
    let mtu = interface.link.mtu;
    let reason = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            return OpenError::Privilege { what: "attaching the XDP program" }.into();
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            let (interface, queue) = (interface.name.clone(), 0);
            return OpenError::QueueBusy { interface, queue }.into();
        }
        Some(libc::ENODEV) => return OpenError::UnknownInterface(interface.name.clone()).into(),
        Some(libc::EOPNOTSUPP) if native => "its driver has no XDP".to_owned(),
        Some(libc::ERANGE | libc::EINVAL) if native => {
            format!("its driver has no XDP with an MTU of {mtu} bytes")
        }
        _ => format!("the XDP program cannot be attached ({error})"),
    };
    Refused::Mode(reason)
}

fn bpf_error(what: &'static str, error: io::Error) -> OpenError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => OpenError::NoBpf,
        _ => OpenError::system(what, error),
    }
}

/// Takes a program of ours away that a killed process has left behind. Another's is an error, and so is one of ours that
/// a living process holds: `in_use` tells, or a link that does not go away until `deadline`.
pub(super) fn clear_stale(
    interface: &mut Interface,
    netlink: &mut Netlink,
    in_use: impl FnOnce() -> Result<bool, OpenError>,
    deadline: Instant,
) -> Result<(), OpenError> {
    let busy = |name: &str| OpenError::QueueBusy { interface: name.to_owned(), queue: 0 };
    if foreign_or_ours(interface)?.is_none() {
        return Ok(());
    }
    if in_use()? {
        return Err(busy(&interface.name));
    }
    while let Some(mode) = foreign_or_ours(interface)? {
        match netlink.detach(interface.link.index, mode) {
            Ok(()) => {
                tracing::info!(
                    interface = interface.name,
                    "The XDP program of a killed process was taken away"
                );
            }
            // The process is about to end, and its link with it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(busy(&interface.name)),
            Err(error) => {
                return Err(OpenError::system("detaching the XDP program of a killed process", error));
            }
        }
        let link = netlink.link(&interface.name);
        let link = link.map_err(|error| OpenError::system("looking up the interface", error))?;
        interface.link = link.ok_or_else(|| OpenError::UnknownInterface(interface.name.clone()))?;
    }
    Ok(())
}

/// The mode of the program on the interface, which is an error unless it is ours.
fn foreign_or_ours(interface: &Interface) -> Result<Option<u32>, OpenError> {
    let Some((id, mode)) = interface.link.program else { return Ok(None) };
    match bpf::program_name(id) {
        Ok(name) if name == bpf::PROGRAM_NAME => Ok(Some(mode)),
        Ok(name) => Err(OpenError::ForeignProgram { interface: interface.name.clone(), name, id }),
        // It went away meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Some(mode)),
        Err(error) => Err(bpf_error("looking at the XDP program there", error)),
    }
}
