//! From an interface to queues: which mode works, and what goes with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::attach::{self, Attached, Means, Refused};
use super::error::OpenError;
use super::filter::Filter;
use super::interface::Interface;
use super::netlink::{ACT_ZERO_COPY, Netlink, SOCKETS_CHECKSUM};
use super::queue::{Queue, Rings, Traits};
use super::ring::{Consumer, Placement, Producer};
use super::socket::{self, Binding, Registration, Socket};
use super::spec::{Mode, Spec};
use super::umem::{Layout, TX_METADATA, Umem};

/// The kernel takes a UMEM apart some time after its socket is closed; until then the queue is busy.
const TEARDOWN: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);
/// What precedes the packet in a frame: addresses and ethertype, and two tags.
const ETHERNET: u32 = 14 + 8;
/// Largest MTU whose frames fit in one buffer.
const LARGEST_WHOLE_MTU: u32 = 4096 - 256 - ETHERNET;
/// Frames that one call may send in copy mode.
const TRANSMIT_BUDGET: u32 = 256;
/// Frames that one call of busy polling takes.
const BUSY_POLL_BUDGET: u32 = 64;

/// An uplink that is ready.
pub struct Opened {
    /// One object for each queue in use, to be given to the workers.
    pub queues: Vec<Queue>,
    /// How it was opened.
    pub report: Report,
    /// For changing the filter while the queues run.
    pub control: Control,
}

/// How an uplink was opened.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The interface.
    pub interface: String,
    /// How frames get to the buffers.
    pub mode: Mode,
    /// Why it is not a better mode, one sentence each.
    pub not_better: Vec<String>,
    /// Queues in use.
    pub queues: u32,
    /// Queues of the interface.
    pub device_queues: u32,
    /// Largest packet, without the Ethernet header.
    pub mtu: u32,
    /// Frames may be larger than a buffer (`XDP_USE_SG`).
    pub multi_buffer: bool,
    /// Checksums of frames sent are left to the kernel or the hardware (`XDP_TXMD_FLAGS_CHECKSUM`).
    pub transmit_checksum: bool,
    /// The kernel says when it needs a call (`XDP_USE_NEED_WAKEUP`).
    pub need_wakeup: bool,
    /// The worker drives the interface (`SO_PREFER_BUSY_POLL`).
    pub busy_poll: bool,
    /// Frames that one call sends in copy mode (`XDP_MAX_TX_SKB_BUDGET`, else 32).
    pub transmit_budget: u32,
    /// The program goes away by itself when the process is killed; otherwise the next start takes it away.
    pub ends_with_process: bool,
    /// Kilobytes of buffers.
    pub buffers_kib: usize,
    /// What will not work as the user may think.
    pub warnings: Vec<String>,
}

/// Changes which frames are the uplink's, from any thread and while the queues run. The program stays attached until
/// this and all queues are dropped.
#[derive(Clone)]
pub struct Control {
    attached: Arc<Attached>,
    sockets: Vec<Weak<Socket>>,
}

/// What the kernel has counted since the uplink was opened, for all queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Frames dropped because they were larger than a buffer, or no buffer was free.
    pub receive_dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that the kernel looked for a free buffer and there was none.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused to send: a fault of ours.
    pub transmit_invalid: u64,
}

impl Control {
    /// Redirects what `filter` says from now on.
    pub fn set_filter(&self, filter: &Filter) -> io::Result<()> {
        self.attached.maps().apply(filter)
    }

    /// What the kernel has counted, for the queues that are still there.
    pub fn statistics(&self) -> Statistics {
        let counts = self.sockets.iter().filter_map(|socket| socket.upgrade()?.statistics().ok());
        counts.fold(Statistics::default(), |sum, counts| Statistics {
            receive_dropped: sum.receive_dropped + counts.rx_dropped,
            receive_ring_full: sum.receive_ring_full + counts.rx_ring_full,
            fill_ring_empty: sum.fill_ring_empty + counts.rx_fill_ring_empty_descs,
            transmit_invalid: sum.transmit_invalid + counts.tx_invalid_descs,
        })
    }

    /// What is redirected now.
    pub fn filter(&self) -> io::Result<Filter> {
        self.attached.maps().read()
    }
}

/// Opens an interface with at most `workers` queues.
pub fn open(spec: &Spec, workers: usize) -> Result<Opened, OpenError> {
    open_by(spec, workers, Means::Best)
}

pub(super) fn open_by(spec: &Spec, workers: usize, means: Means) -> Result<Opened, OpenError> {
    spec.check()?;
    let mut netlink =
        Netlink::route().map_err(|error| OpenError::system("opening a netlink socket", error))?;
    let mut interface = Interface::find(&spec.interface, &mut netlink)?;
    check_privilege()?;
    let queue_is_taken =
        |index| queue_is_taken(index).map_err(|error| OpenError::system("binding an AF_XDP socket", error));
    let index = interface.link.index;
    let deadline = Instant::now() + TEARDOWN;
    attach::clear_stale(&mut interface, &mut netlink, || queue_is_taken(index), deadline)?;
    let mut not_better = Vec::new();
    for &mode in spec.modes() {
        match try_mode(spec, workers, &interface, mode, means) {
            Ok(mut opened) => {
                opened.report.not_better = not_better;
                return Ok(opened);
            }
            Err(Refused::Fatal(error)) => return Err(error),
            Err(Refused::Mode(reason)) => not_better.push(format!("No {mode} mode: {reason}")),
            Err(Refused::MultiBuffer) => {
                not_better.push(format!("No {mode} mode: the kernel has no XDP_USE_SG"))
            }
        }
    }
    Err(OpenError::NoMode { interface: interface.name, reasons: not_better.join("; ") })
}

/// The first thing that fails without a privilege, with an error that says so.
fn check_privilege() -> Result<(), OpenError> {
    match Socket::new() {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Err(OpenError::NoXdpSockets),
        Err(error) => Err(OpenError::system("opening an AF_XDP socket", error)),
    }
}

/// What is tried with a mode.
#[derive(Clone, Copy, Debug)]
struct Plan {
    mode: Mode,
    /// `XDP_USE_SG`.
    sg: bool,
    /// Room for checksum requests in front of frames to be sent.
    metadata: bool,
    need_wakeup: bool,
    layout: Layout,
}

fn try_mode(
    spec: &Spec,
    workers: usize,
    interface: &Interface,
    mode: Mode,
    means: Means,
) -> Result<Opened, Refused> {
    if mode == Mode::ZeroCopy && interface.driver.is_some_and(|driver| driver.xdp & ACT_ZERO_COPY == 0) {
        return Err(Refused::Mode("its driver has none".to_owned()));
    }
    let mut refusal = None;
    for plan in plans(spec, workers, interface, mode) {
        match open_with(spec, interface, plan, means) {
            Err(Refused::Mode(reason)) => refusal = refusal.or(Some(reason)),
            Err(Refused::MultiBuffer) => {}
            result => return result,
        }
    }
    // Nothing was wrong but that frames would need several buffers.
    let mtu = interface.link.mtu;
    let too_large =
        OpenError::MtuTooLarge { interface: interface.name.clone(), mtu, most: LARGEST_WHOLE_MTU };
    Err(refusal.map_or(Refused::Fatal(too_large), Refused::Mode))
}

/// The ways to open a mode, best first: frames of several buffers need Linux 6.6 and, with zero copy, the driver; checksum
/// requests need Linux 6.11.
fn plans(spec: &Spec, workers: usize, interface: &Interface, mode: Mode) -> Vec<Plan> {
    let ring = spec.ring_size();
    let longest = interface.link.mtu + ETHERNET;
    // Generic mode hands over frames that are not segmented yet, up to 64 KiB.
    let chunk = if mode == Mode::Generic { 4096 } else { Layout::chunk_for(longest) };
    let queues = interface.queues.min(workers.max(1) as u32);
    let layout = Layout { chunk, rx: ring, tx: ring, queues };
    let need_wakeup = spec.need_wakeup.unwrap_or(mode == Mode::ZeroCopy);
    let checksums = mode != Mode::ZeroCopy
        || interface.driver.is_some_and(|driver| driver.sockets & SOCKETS_CHECKSUM != 0);
    let mut plans = Vec::new();
    for sg in [true, false] {
        for metadata in [true, false] {
            let fits = longest <= layout.rx_capacity();
            if (sg || fits) && (checksums || !metadata) {
                plans.push(Plan { mode, sg, metadata, need_wakeup, layout });
            }
        }
    }
    plans
}

fn open_with(spec: &Spec, interface: &Interface, plan: Plan, means: Means) -> Result<Opened, Refused> {
    let native = plan.mode != Mode::Generic;
    let attached = Arc::new(Attached::new(interface, &spec.filter(), native, plan.sg, means)?);
    let bound = bind_when_free(spec, interface, plan)?;
    if plan.mode == Mode::ZeroCopy && !bound.sockets[0].0.is_zero_copy().unwrap_or(false) {
        return Err(Refused::Mode("the kernel copies all the same".to_owned()));
    }
    let umem = Arc::new(bound.umem);
    let traits = Traits {
        mtu: interface.link.mtu,
        multi_buffer: plan.sg,
        copies: plan.mode != Mode::ZeroCopy,
        checksum: plan.metadata,
        need_wakeup: plan.need_wakeup,
        busy_poll: bound.busy_poll,
        unfinished: interface.may_be_unfinished(!native),
    };
    let (mut queues, mut sockets) = (Vec::new(), Vec::new());
    for (index, (socket, rings)) in (0..).zip(bound.sockets) {
        let entry = attached.maps().insert_socket(index, socket.as_raw_fd());
        entry.map_err(|error| OpenError::system("giving the XDP program its sockets", error))?;
        let socket = Arc::new(socket);
        sockets.push(Arc::downgrade(&socket));
        queues.push(Queue::new(index, socket, rings, Arc::clone(&umem), Arc::clone(&attached), traits));
    }
    let report = report(spec, interface, plan, &traits, &attached, bound.budget);
    Ok(Opened { queues, report, control: Control { attached, sockets } })
}

/// Sockets that are bound.
struct Bound {
    sockets: Vec<(Socket, Rings)>,
    umem: Umem,
    busy_poll: bool,
    budget: u32,
}

fn bind_when_free(spec: &Spec, interface: &Interface, plan: Plan) -> Result<Bound, Refused> {
    let deadline = Instant::now() + TEARDOWN;
    loop {
        match bind_all(spec, interface, plan) {
            Err(Refused::Fatal(OpenError::QueueBusy { .. })) if Instant::now() < deadline => {
                thread::sleep(RETRY)
            }
            result => return result,
        }
    }
}

fn bind_all(spec: &Spec, interface: &Interface, plan: Plan) -> Result<Bound, Refused> {
    let umem = Umem::new(plan.layout).map_err(|error| OpenError::system("allocating the buffers", error))?;
    let mut bound = Bound { sockets: Vec::new(), umem, busy_poll: false, budget: 32 };
    for queue in 0..plan.layout.queues {
        let first = bound.sockets.first().map(|(socket, _)| socket.as_raw_fd());
        let (socket, mut rings) = prepare(&bound.umem, plan, first.is_none())?;
        bound
            .umem
            .rx_chunks(queue)
            .step_by(plan.layout.chunk as usize)
            .for_each(|chunk| rings.fill.push(chunk));
        rings.fill.publish();
        if socket.set_transmit_budget(TRANSMIT_BUDGET.min(spec.ring_size())).is_ok() {
            bound.budget = TRANSMIT_BUDGET.min(spec.ring_size());
        }
        if let Some(usecs) = spec.busy_poll {
            bound.busy_poll = socket.set_busy_poll(usecs, BUSY_POLL_BUDGET).is_ok();
        }
        let flags = if first.is_some() { 0 } else { bind_flags(plan) };
        let binding = Binding { flags, interface: interface.link.index, queue, shared: first };
        socket.bind(binding).map_err(|error| bind_error(error, interface, queue, plan))?;
        bound.sockets.push((socket, rings));
    }
    Ok(bound)
}

fn bind_flags(plan: Plan) -> u16 {
    let mut flags = if plan.mode == Mode::ZeroCopy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    if plan.sg {
        flags |= libc::XDP_USE_SG;
    }
    if plan.need_wakeup {
        flags |= libc::XDP_USE_NEED_WAKEUP;
    }
    flags
}

fn bind_error(error: io::Error, interface: &Interface, queue: u32, plan: Plan) -> Refused {
    match error.raw_os_error() {
        Some(libc::EBUSY) => OpenError::QueueBusy { interface: interface.name.clone(), queue }.into(),
        Some(libc::ENODEV) => OpenError::UnknownInterface(interface.name.clone()).into(),
        Some(libc::EPERM | libc::EACCES) => OpenError::Privilege { what: "binding an AF_XDP socket" }.into(),
        Some(libc::EOPNOTSUPP) if plan.mode == Mode::ZeroCopy => {
            Refused::Mode("its driver has none for these buffers".to_owned())
        }
        // The flag is unknown, or the driver has no such thing.
        Some(libc::EINVAL | libc::EOPNOTSUPP) if plan.sg => Refused::MultiBuffer,
        _ => Refused::Mode(format!("queue {queue} cannot be bound ({error})")),
    }
}

/// A socket with its four rings, not bound yet. The first registers the buffers, the others share them.
fn prepare(umem: &Umem, plan: Plan, is_first: bool) -> Result<(Socket, Rings), Refused> {
    let socket = Socket::new().map_err(|error| OpenError::system("opening an AF_XDP socket", error))?;
    if is_first {
        register(&socket, umem, plan)?;
    }
    let ring = plan.layout.rx;
    let rings = set_rings(&socket, ring).and_then(|()| map_rings(&socket, ring));
    let rings = rings.map_err(|error| OpenError::system("making the rings of an AF_XDP socket", error))?;
    Ok((socket, rings))
}

fn register(socket: &Socket, umem: &Umem, plan: Plan) -> Result<(), Refused> {
    let buffers = Registration {
        addr: umem.memory().config().user.0,
        len: umem.len() as u64,
        chunk: plan.layout.chunk,
        metadata: if plan.metadata { TX_METADATA } else { 0 },
    };
    socket::raise_locked_memory();
    socket.register(buffers).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOBUFS | libc::ENOMEM) => OpenError::LockedMemory { kib: umem.len() / 1024 }.into(),
        Some(libc::EINVAL) if plan.metadata => {
            Refused::Mode("the kernel knows no checksum requests".to_owned())
        }
        _ => OpenError::system("registering the buffers", error).into(),
    })
}

fn set_rings(socket: &Socket, entries: u32) -> io::Result<()> {
    let rings =
        [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING];
    rings.into_iter().try_for_each(|ring| socket.set_ring(ring, entries))
}

fn map_rings(socket: &Socket, size: u32) -> io::Result<Rings> {
    let offsets = socket.offsets()?;
    let place = |page_offset: u64, offsets| Placement { page_offset, offsets, size };
    Ok(Rings {
        fill: Producer::map(socket.as_fd(), place(libc::XDP_UMEM_PGOFF_FILL_RING, offsets.fr))?,
        completion: Consumer::map(socket.as_fd(), place(libc::XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr))?,
        rx: Consumer::map(socket.as_fd(), place(libc::XDP_PGOFF_RX_RING as u64, offsets.rx))?,
        tx: Producer::map(socket.as_fd(), place(libc::XDP_PGOFF_TX_RING as u64, offsets.tx))?,
    })
}

/// Whether an AF_XDP socket that is not about to go away is bound to the first queue.
fn queue_is_taken(interface: u32) -> io::Result<bool> {
    let layout = Layout { chunk: 2048, rx: 64, tx: 64, queues: 1 };
    let deadline = Instant::now() + TEARDOWN;
    loop {
        let (umem, socket) = (Umem::new(layout)?, Socket::new()?);
        let addr = umem.memory().config().user.0;
        socket.register(Registration { addr, len: umem.len() as u64, chunk: layout.chunk, metadata: 0 })?;
        set_rings(&socket, layout.rx)?;
        match socket.bind(Binding { flags: libc::XDP_COPY, interface, queue: 0, shared: None }) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result.map(|()| false),
        }
        if Instant::now() >= deadline {
            return Ok(true);
        }
        thread::sleep(RETRY);
    }
}

fn report(
    spec: &Spec,
    interface: &Interface,
    plan: Plan,
    traits: &Traits,
    attached: &Attached,
    budget: u32,
) -> Report {
    let Interface { name, link, queues: device_queues, .. } = interface;
    let Layout { queues, .. } = plan.layout;
    let mut warnings = Vec::new();
    if !link.is_up {
        warnings.push(format!("{name} is down: no frame passes until `ip link set dev {name} up`"));
    }
    if *device_queues > queues {
        warnings.push(format!(
            "{name} receives on {device_queues} queues, of which {queues} are used: frames on the others stay with the host; \
             use more workers, or `ethtool -L {name} combined {queues}`"
        ));
    }
    if spec.busy_poll.is_some() && !traits.busy_poll {
        warnings.push("The kernel refused busy polling (Linux 5.11, CAP_NET_ADMIN)".to_owned());
    }
    Report {
        interface: name.clone(),
        mode: plan.mode,
        not_better: Vec::new(),
        queues,
        device_queues: *device_queues,
        mtu: link.mtu,
        multi_buffer: plan.sg,
        transmit_checksum: plan.metadata,
        need_wakeup: plan.need_wakeup,
        busy_poll: traits.busy_poll,
        transmit_budget: budget,
        ends_with_process: attached.ends_with_process(),
        buffers_kib: plan.layout.len() / 1024,
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::xdp::netlink::Link;

    fn plan_flags(mtu: u32, mode: Mode) -> Vec<(bool, bool, u32)> {
        let link = Link { mtu, ..Link::default() };
        let interface = Interface { name: "e0".into(), link, queues: 4, driver: None };
        let plans = plans(&Spec::new("e0"), 2, &interface, mode);
        assert!(plans.iter().all(|plan| plan.layout.queues == 2));
        plans.iter().map(|plan| (plan.sg, plan.metadata, plan.layout.chunk)).collect()
    }

    #[test]
    fn older_kernels_are_asked_for_less_until_they_agree() {
        let all = [(true, true), (true, false), (false, true), (false, false)];
        assert_eq!(plan_flags(1500, Mode::Copy), all.map(|(sg, metadata)| (sg, metadata, 2048)));
        assert_eq!(plan_flags(1500, Mode::Generic), all.map(|(sg, metadata)| (sg, metadata, 4096)));
        // Not without a driver that says so.
        assert_eq!(plan_flags(1500, Mode::ZeroCopy), [(true, false, 2048), (false, false, 2048)]);
    }

    #[test]
    fn frames_larger_than_a_buffer_are_never_tried_with_single_ones() {
        assert_eq!(plan_flags(9000, Mode::Copy), [(true, true, 4096), (true, false, 4096)]);
        assert_eq!(plan_flags(LARGEST_WHOLE_MTU, Mode::Copy).len(), 4);
        assert_eq!(plan_flags(LARGEST_WHOLE_MTU + 1, Mode::Copy).len(), 2);
    }

    #[test]
    fn a_kernel_without_several_buffers_is_no_reason_against_the_mode() {
        let interface = Interface {
            name: "e0".into(),
            link: Link { mtu: 9000, ..Link::default() },
            queues: 1,
            driver: None,
        };
        let plan = plans(&Spec::new("e0"), 1, &interface, Mode::Copy)[0];
        let refused = |plan, code| bind_error(io::Error::from_raw_os_error(code), &interface, 0, plan);
        assert!(matches!(refused(plan, libc::EINVAL), Refused::MultiBuffer));
        assert!(matches!(refused(Plan { sg: false, ..plan }, libc::EINVAL), Refused::Mode(_)));
        assert!(matches!(refused(plan, libc::EBUSY), Refused::Fatal(OpenError::QueueBusy { .. })));
        assert!(matches!(refused(plan, libc::EPERM), Refused::Fatal(OpenError::Privilege { .. })));
        assert!(matches!(refused(plan, libc::ENODEV), Refused::Fatal(OpenError::UnknownInterface(_))));
    }
}
