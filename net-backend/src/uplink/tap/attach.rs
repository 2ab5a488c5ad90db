//! Making a TAP interface, attaching to one, or taking queues that somebody has opened for us.

#![expect(unsafe_code, reason = "takes descriptors by number, and fcntl")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use super::control::{self, Control, Request};
use super::link::{self, Link};
use super::{Info, OpenError, QUEUE_LENGTH, Source, Spec};
use crate::frame::Offloads;
use crate::uplink::{MAX_NAME, is_name};

const DRIVER: &str = "/dev/net/tun";
/// How long an interface that is in use is waited for.
const BUSY: Duration = Duration::from_secs(1);

/// Queues of an interface, ready for frames.
pub(super) struct Attached {
    pub(super) files: Vec<OwnedFd>,
    pub(super) link: Link,
}

/// Opens `queues` queues, or takes the descriptors there are.
pub(super) fn attach(spec: &Spec, queues: u16) -> Result<Attached, OpenError> {
    let control = Control::new().map_err(|error| OpenError::system("No socket can be opened", error))?;
    let opened = match &spec.source {
        Source::Name(name) => by_name(&control, spec, name, queues, false)?,
        Source::Existing(name) => by_name(&control, spec, name, queues, true)?,
        Source::Descriptors(numbers) => inherited(numbers)?,
    };
    let (to_kernel, from_kernel) = negotiate(&opened, spec)?;
    settle(&control, spec, &opened)?;
    let name = opened.name;
    let info = Info {
        index: control.index(&name).unwrap_or(0),
        mtu: control.mtu(&name).unwrap_or(0),
        created: opened.created,
        queues: opened.files.len() as u16,
        header: opened.header,
        to_kernel,
        from_kernel,
        name,
    };
    Ok(Attached { files: opened.files, link: Link::new(info, opened.flags, spec, control) })
}

/// Queues that belong to an interface, which is not set up yet.
struct Opened {
    name: String,
    created: bool,
    header: bool,
    flags: Option<u16>,
    files: Vec<OwnedFd>,
}

fn by_name(
    control: &Control,
    spec: &Spec,
    name: &str,
    queues: u16,
    must_exist: bool,
) -> Result<Opened, OpenError> {
    check_name(name)?;
    if queues == 0 {
        return Err(OpenError::NoQueue);
    }
    let before = control.index(name).ok();
    let exists = before.is_some();
    if must_exist && !exists {
        return Err(OpenError::Unknown(name.into()));
    }
    let base = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    let multi_queue = libc::IFF_MULTI_QUEUE as u16;
    let napi = if spec.napi { libc::IFF_NAPI as u16 } else { 0 };
    let mut flags = base | napi | if queues > 1 { multi_queue } else { 0 };
    let mut first = open_queue(name, flags)?;
    // An interface that has been made for many queues takes no other way to have one.
    if exists && queues == 1 && matches!(&first, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
        flags |= multi_queue;
        first = open_queue(name, flags)?;
    }
    let refused = |error: io::Error| why_refused(control, name, exists, queues, error);
    let (first, name) = first.map_err(refused)?;
    let mut files = vec![first];
    for _ in 1..queues {
        files.push(open_queue(&name, flags)?.map_err(refused)?.0);
    }
    // A name stays, the number is another one: that of a predecessor may have gone while it was waited for.
    let created = before != control.index(&name).ok();
    if must_exist && created {
        return Err(OpenError::Unknown(name));
    }
    Ok(Opened { name, created, header: true, flags: Some(flags), files })
}

fn check_name(name: &str) -> Result<(), OpenError> {
    if name.len() > MAX_NAME {
        return Err(OpenError::NameTooLong(name.into()));
    }
    if is_name(name) { Ok(()) } else { Err(OpenError::InvalidName(name.into())) }
}

/// The driver, opened as a queue of no interface yet.
fn open_driver() -> Result<File, OpenError> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DRIVER);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoDriver,
        Some(libc::EACCES | libc::EPERM) => OpenError::DriverForbidden,
        _ => OpenError::system(format!("{DRIVER} cannot be opened"), error),
    })
}

/// A queue of the interface `name`, and the name that it has in the end. A predecessor that has just been killed may have
/// the interface for some milliseconds more: the kernel takes an io_uring down that watches it after the process.
fn open_queue(name: &str, flags: u16) -> Result<io::Result<(OwnedFd, String)>, OpenError> {
    let file = open_driver()?;
    let mut request = Request::about(name).with_flags(flags);
    let patience = Instant::now() + BUSY;
    loop {
        match control::exchange(&file, libc::TUNSETIFF, &mut request) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < patience => {
                std::thread::sleep(BUSY / 100);
            }
            attached => return Ok(attached.map(|()| (file.into(), request.name()))),
        }
    }
}

/// What a refused TUNSETIFF means.
fn why_refused(control: &Control, name: &str, exists: bool, queues: u16, error: io::Error) -> OpenError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM) if exists => OpenError::MissingCapability {
            instead: format!(
                "run as root, or as the owner that `ip tuntap add {name} mode tap user NAME` gave it"
            ),
            what: format!("Attaching to the TAP interface {name} of somebody else"),
        },
        Some(libc::EPERM) => OpenError::MissingCapability {
            instead: format!(
                "run as root, or make it beforehand with `ip tuntap add {name} mode tap user NAME`"
            ),
            what: format!("Making the TAP interface {name}"),
        },
        Some(libc::EBUSY) => OpenError::Busy(name),
        Some(libc::E2BIG) => OpenError::TooManyQueues { name, queues },
        Some(libc::EINVAL) if exists && !control.is_tap(&name) => OpenError::NotTap(name),
        Some(libc::EINVAL) if exists => OpenError::NotMultiQueue { name, queues },
        Some(libc::EINVAL) => OpenError::InvalidName(name),
        _ => OpenError::system(format!("The TAP interface {name} cannot be opened"), error),
    }
}

fn inherited(numbers: &[RawFd]) -> Result<Opened, OpenError> {
    let mut opened: Option<Opened> = None;
    for &number in numbers {
        let (file, name, header) = inherited_queue(number)?;
        match &mut opened {
            None => {
                opened = Some(Opened { name, created: false, header, flags: None, files: vec![file] });
            }
            Some(first) if first.name == name => {
                first.header &= header;
                first.files.push(file);
            }
            Some(first) => return Err(OpenError::Mixed(first.name.clone(), name)),
        }
    }
    opened.ok_or(OpenError::NoQueue)
}

/// Takes one open queue: it, the name of its interface, and whether frames have a virtio-net header.
fn inherited_queue(number: RawFd) -> Result<(OwnedFd, String, bool), OpenError> {
    // SAFETY: no pointers; a number that is no descriptor is refused.
    let status = unsafe { libc::fcntl(number, libc::F_GETFL) };
    if status < 0 {
        return Err(OpenError::NotOpen(number));
    }
    // SAFETY: it is open, and borrowed for one call only.
    let queue = unsafe { BorrowedFd::borrow_raw(number) };
    let mut request = Request::about("");
    control::exchange(queue, libc::TUNGETIFF, &mut request).map_err(|_| OpenError::NotQueue(number))?;
    let has = |flag: i32| request.flags() & flag as u16 != 0;
    if !has(libc::IFF_TAP) {
        return Err(OpenError::NotQueue(number));
    }
    if has_packet_information(&request.name()) {
        return Err(OpenError::PacketInformation(number));
    }
    // SAFETY: the descriptor is open, and whoever names it on the command line gives it to us.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK) } < 0 {
        return Err(OpenError::system("A TAP queue cannot be non-blocking", io::Error::last_os_error()));
    }
    Ok((file, request.name(), has(libc::IFF_VNET_HDR)))
}

/// Whether frames have four bytes before them. TUNGETIFF does not tell: it has IFF_NOFILTER in the bit of IFF_NO_PI. So
/// this is known only where sysfs shows the interface.
fn has_packet_information(name: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).unwrap_or_default();
    let flags = flags.trim().strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
    flags.is_some_and(|flags| flags & libc::IFF_NO_PI as u32 == 0)
}

/// Settles the form of frames on every queue, and what may be left unfinished on the way to the kernel and from it.
fn negotiate(opened: &Opened, spec: &Spec) -> Result<(Offloads, Offloads), OpenError> {
    if !opened.header {
        return Ok((Offloads::NONE, Offloads::NONE));
    }
    for file in &opened.files {
        link::prepare(file, spec.send_buffer)
            .map_err(|error| OpenError::system(format!("{} cannot be set up", opened.name), error))?;
    }
    let first = &opened.files[0];
    let without_uso = Offloads { uso4: false, uso6: false, ..Offloads::ALL };
    // The best that the kernel takes; USO is there since Linux 6.2.
    let known =
        [Offloads::ALL, without_uso].into_iter().find(|&wanted| link::set_offloads(first, wanted).is_ok());
    let known = known.unwrap_or(Offloads::NONE);
    if spec.offloads {
        return Ok((known, known));
    }
    let _ = link::set_offloads(first, Offloads::NONE);
    Ok((known, Offloads::NONE))
}

/// What concerns the interface as a whole.
fn settle(control: &Control, spec: &Spec, opened: &Opened) -> Result<(), OpenError> {
    let name = opened.name.as_str();
    if spec.persist && opened.flags.is_some() {
        control::set_value(&opened.files[0], libc::TUNSETPERSIST, 1).map_err(|error| {
            privileged(format!("Keeping the interface {name}"), "leave out `persist`", error)
        })?;
    }
    if let Some(mtu) = spec.mtu {
        set_mtu(control, name, mtu)?;
    }
    if let Some(frames) = spec.queue_length.or(opened.created.then_some(QUEUE_LENGTH)) {
        let what = || format!("Setting the queue length of {name}");
        let instead = "leave out `txqueuelen`";
        control.set_queue_length(name, frames).map_err(|error| privileged(what(), instead, error))?;
    }
    if let Some(bridge) = &spec.bridge {
        join(control, name, bridge)?;
    }
    // Inherited queues may be of another network namespace, and whoever has opened them takes care of the interface.
    if opened.flags.is_none() {
        return Ok(());
    }
    let instead = format!("run `ip link set {name} up` beforehand");
    control.bring_up(name).map_err(|error| privileged(format!("Taking {name} up"), &instead, error))
}

/// The error of a request that root alone may make.
fn privileged(what: String, instead: &str, error: io::Error) -> OpenError {
    match error.raw_os_error() {
        Some(libc::EPERM) => OpenError::MissingCapability { what, instead: instead.into() },
        _ => OpenError::system(format!("{what} failed"), error),
    }
}

fn set_mtu(control: &Control, name: &str, mtu: u32) -> Result<(), OpenError> {
    if control.mtu(name).is_ok_and(|have| have == mtu) {
        return Ok(());
    }
    control.set_mtu(name, mtu).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => OpenError::Mtu { name: name.into(), mtu },
        _ => privileged(format!("Setting the MTU of {name}"), "leave out `mtu`", error),
    })
}

/// Makes the interface a port of `bridge`, if it is not.
fn join(control: &Control, name: &str, bridge: &str) -> Result<(), OpenError> {
    let failed = |error| OpenError::system(format!("The number of {name} is not known"), error);
    let index = control.index(name).map_err(failed)?;
    if bridge.is_empty() || bridge.len() > MAX_NAME || control.index(bridge).is_err() {
        return Err(OpenError::NoBridge(bridge.into()));
    }
    if control.bridge_ports(bridge).is_ok_and(|ports| ports.contains(&index)) {
        return Ok(());
    }
    control.add_to_bridge(bridge, index).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => OpenError::NoBridge(bridge.into()),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => OpenError::NotBridge(bridge.into()),
        Some(libc::EBUSY) => OpenError::OtherBridge { name: name.into() },
        _ => {
            let instead = format!("run `ip link set {name} master {bridge}` beforehand");
            privileged(format!("Attaching {name} to the bridge {bridge}"), &instead, error)
        }
    })
}
