//! One run from attach to report: guests, threads, phases, supervision.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Pair, Port, Setup, Stamp};
use super::frame::Flow;
use super::host::{Counter, Sender};
use super::job::{Job, Outcome};
use super::lane::{Checker, Inbox, Lane};
use super::meter::Meter;
use super::options::{Load, Mode};
use super::outage::Outage;
use super::report::{Measured, Report};
use crate::clock::Clock;
use crate::control::{Control, Phase};
use crate::guest::{CpuMeter, Hooks, Socket, Supervisor, come_back, ensure_reconnect};
use crate::progress::Progress;

/// Where the guests are attached.
#[derive(Clone, Debug)]
pub struct Target {
    /// A socket for each guest.
    pub sockets: Vec<PathBuf>,
    /// We listen and the backend connects.
    pub server: bool,
}

/// Puts `load` on the backend at `target`; calls `progress` some 20 times a second. `meter` knows the backend's busy cycles.
pub fn run(
    target: &Target,
    load: &Load,
    meter: Option<&mut dyn Meter>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    load.check()?;
    load.check_sockets(target.sockets.len())?;
    let (mut ports, mut pairs) = (Vec::new(), Vec::new());
    for (guest, path) in target.sockets.iter().enumerate() {
        let socket = if target.server { Socket::Listen(path) } else { Socket::Connect(path) };
        let attached = Port::attach(socket, &setup(load, guest, target));
        let (port, rings) = attached.with_context(|| format!("Port {}", path.display()))?;
        ports.push(port);
        pairs.push(rings);
    }
    let clock = Clock::new();
    let mut plane = Plane::new(ports, load, meter)?;
    let mut sender = sender(load)?;
    let mut supervisor = Supervisor::new(load.queues.into(), &load.timing, None, &mut plane)?;
    for (index, lanes) in threads(load, pairs).into_iter().enumerate() {
        let job = Job::new(index, lanes, sender.take(), clock, load);
        let outage = Arc::clone(&plane.outage);
        supervisor.spawn(move |control| job.run(control, &outage))?;
    }
    let outcomes = supervisor.supervise(&mut plane, progress)?;
    finish(plane, outcomes, load, &clock)
}

/// Detaches and adds up.
fn finish(plane: Plane<'_>, outcomes: Vec<Outcome>, load: &Load, clock: &Clock) -> Result<Report> {
    let mut tallies = Vec::new();
    let mut rings: Vec<Vec<Pair>> = plane.ports.iter().map(|_| Vec::new()).collect();
    for outcome in outcomes {
        if let Some(failure) = outcome.failure {
            return Err(failure.into());
        }
        tallies.push(outcome.tally);
        outcome.lanes.into_iter().for_each(|lane| rings[lane.guest].push(lane.pair));
    }
    for (port, pairs) in plane.ports.into_iter().zip(rings) {
        port.detach(pairs)?;
    }
    Ok(Report::new(load, tallies, plane.measured, clock))
}

fn setup(load: &Load, guest: usize, target: &Target) -> Setup {
    Setup {
        guest,
        to: if target.sockets.len() == 2 { 1 - guest } else { peer(load) },
        queues: load.queues,
        frame: load.size as usize,
        tso: load.tso,
        checksum: load.to_socket,
        rx_buffer: load.rx_buffer() as usize,
        mergeable: !load.no_mergeable,
        shape: load.rings.shape(),
        stamp: stamp(load),
    }
}

/// In a loop a guest speaks to itself, else to somebody beyond the uplink.
fn peer(load: &Load) -> usize {
    if matches!(load.mode, Mode::Loopback | Mode::Ping) { 0 } else { 1 }
}

fn stamp(load: &Load) -> Stamp {
    match (load.verify, (load.blind && load.mode != Mode::Ping) || load.to_socket) {
        (true, _) => Stamp::Whole,
        (_, true) => Stamp::None,
        _ => Stamp::Tag,
    }
}

/// Turns rings by guest into lanes by thread.
fn threads(load: &Load, guests: Vec<Vec<Pair>>) -> Vec<Vec<Lane>> {
    let count = guests.len();
    let flows = flows(load, count);
    let mut threads: Vec<Vec<Lane>> = (0..load.queues).map(|_| Vec::new()).collect();
    for (guest, pairs) in guests.into_iter().enumerate() {
        for (lanes, pair) in threads.iter_mut().zip(pairs) {
            let checker = load.verify.then(|| Checker::new(&flows, load.size as usize, load.tso));
            let sends =
                load.mode != Mode::Rx && (guest == 0 || load.bidirectional || load.mode == Mode::Ping);
            lanes.push(Lane { guest, pair, sends, inbox: Inbox::new(flows.len(), checker) });
        }
    }
    threads
}

/// All streams by number: each queue of each guest, and at last the host's.
fn flows(load: &Load, guests: usize) -> Vec<Flow> {
    let to = |guest: usize| if guests == 2 { 1 - guest } else { peer(load) };
    let of = |guest: usize| (0..load.queues).map(move |queue| Flow { from: guest, to: to(guest), queue });
    (0..guests).flat_map(of).chain([HOST]).collect()
}

/// What the host sends to the guest.
const HOST: Flow = Flow { from: 1, to: 0, queue: 0 };

/// The host's end of the uplink, driven by the first thread.
fn sender(load: &Load) -> Result<Option<Sender>> {
    let Some(interface) = load.wire.as_ref().filter(|_| load.mode == Mode::Rx) else { return Ok(None) };
    let stream = load.queues as u8;
    Sender::open(interface, HOST, load.size as usize, stream, load.verify).map(Some)
}

/// The control plane while the threads run.
struct Plane<'m> {
    ports: Vec<Port>,
    outage: Arc<Outage>,
    reconnect: bool,
    /// Where frames that leave are counted.
    wire: Option<Counter>,
    wire_before: u64,
    meter: Option<&'m mut dyn Meter>,
    cpu: CpuMeter,
    ended: bool,
    measured: Measured,
}

impl<'m> Plane<'m> {
    fn new(ports: Vec<Port>, load: &Load, meter: Option<&'m mut dyn Meter>) -> Result<Self> {
        let wire = match &load.wire {
            Some(interface) if load.to_socket => Some(Counter::socket(interface)?),
            Some(interface) if load.mode == Mode::Tx => Some(Counter::Interface(interface.clone())),
            _ => None,
        };
        Ok(Self {
            ports,
            outage: Arc::new(Outage::new(load.queues.into())),
            reconnect: load.reconnect,
            wire,
            wire_before: 0,
            meter,
            cpu: CpuMeter::default(),
            ended: false,
            measured: Measured::default(),
        })
    }
}

impl Hooks for Plane<'_> {
    fn enter(&mut self, phase: Phase, control: &Control) -> Result<()> {
        self.cpu.enter(phase, self.ports[0].backend_pid());
        let wire = self.wire.as_ref().map(Counter::count).transpose()?;
        if phase == Phase::Measure {
            self.wire_before = wire.unwrap_or(0);
            self.meter.as_mut().map_or(Ok(()), |meter| meter.begin())?;
        }
        control.advance(phase);
        if phase != Phase::Measure && !std::mem::replace(&mut self.ended, true) {
            self.measured.cpu = self.cpu.used();
            self.measured.wire = wire.map(|now| now.saturating_sub(self.wire_before));
            self.measured.busy = self.meter.as_mut().map_or(Ok(None), |meter| meter.end())?;
        }
        Ok(())
    }

    fn wake_all(&self) {
        self.ports.iter().for_each(|port| port.wake_all());
    }

    fn hung_up_within(&self, limit: Duration) -> bool {
        self.ports[0].hung_up_within(limit)
    }

    /// The threads stand still until there is a new backend.
    fn outage(&mut self, waiting: &mut dyn FnMut()) -> Result<()> {
        ensure_reconnect(self.reconnect)?;
        let begin = Instant::now();
        let ports = &self.ports;
        let Some(bases) = self.outage.begin(|| ports.iter().for_each(|port| port.wake_all())) else {
            return Ok(());
        };
        // The receiver first: what waits in the sender's ring would go to a port without a guest.
        for (guest, port) in self.ports.iter_mut().enumerate().rev() {
            let bases: Vec<u32> =
                bases.iter().filter_map(|lanes| lanes.get(guest)).flatten().copied().collect();
            let pause = Duration::from_millis(1);
            come_back(begin, pause, waiting, || port.reattach_at(&bases))?;
        }
        self.measured.outages_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        // The new process has counters of its own.
        self.meter = None;
        self.cpu.forget();
        self.outage.end();
        Ok(())
    }

    fn give_up(&mut self) {
        self.outage.end();
    }
}
