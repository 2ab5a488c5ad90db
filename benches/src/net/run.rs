//! One run from attach to report: guests, threads, phases, supervision.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::{Pair, Port, Setup, Stamp};
use super::frame::Flow;
use super::host::{self, Sender};
use super::job::{Job, Outcome};
use super::lane::{Checker, Inbox, Lane};
use super::meter::Meter;
use super::options::{Load, Mode};
use super::outage::Outage;
use super::report::{Measured, Report};
use crate::clock::Clock;
use crate::control::{Control, Phase};
use crate::cpu;
use crate::progress::Progress;

/// How often the supervisor looks at the phases and reports progress.
const TICK: Duration = Duration::from_millis(50);
/// How long a backend may stay away with `--reconnect`.
const PATIENCE: Duration = Duration::from_secs(30);

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
    for (guest, socket) in target.sockets.iter().enumerate() {
        let setup = setup(load, guest, target);
        let (port, rings) = attach(socket, &setup)?;
        ports.push(port);
        pairs.push(rings);
    }
    Supervisor::start(ports, threads(load, pairs), load, meter)?.supervise(progress)
}

fn attach(socket: &Path, setup: &Setup) -> Result<(Port, Vec<Pair>)> {
    Port::attach(socket, setup).with_context(|| format!("Port {}", socket.display()))
}

fn setup(load: &Load, guest: usize, target: &Target) -> Setup {
    let rings = &load.rings;
    Setup {
        guest,
        to: if target.sockets.len() == 2 { 1 - guest } else { peer(load) },
        queues: load.queues,
        ring_size: rings.ring_size,
        frame: load.size as usize,
        tso: load.tso,
        rx_buffer: load.rx_buffer() as usize,
        mergeable: !rings.no_mergeable,
        packed: rings.packed,
        in_order: rings.in_order,
        indirect: rings.indirect,
        event_idx: !rings.no_event_idx,
        stamp: stamp(load),
        server: target.server,
    }
}

/// In a loop a guest speaks to itself, else to somebody beyond the uplink.
fn peer(load: &Load) -> usize {
    if matches!(load.mode, Mode::Loopback | Mode::Ping) { 0 } else { 1 }
}

fn stamp(load: &Load) -> Stamp {
    match (load.verify, load.blind && load.mode != Mode::Ping) {
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

/// Owns the control plane while the threads run.
struct Supervisor<'m> {
    ports: Vec<Port>,
    threads: Vec<JoinHandle<Outcome>>,
    control: Arc<Control>,
    outage: Arc<Outage>,
    clock: Clock,
    load: Load,
    meter: Option<&'m mut dyn Meter>,
    began: Instant,
    cpu_before: Option<Duration>,
    wire_before: u64,
    ended: bool,
    measured: Measured,
}

impl<'m> Supervisor<'m> {
    fn start(
        ports: Vec<Port>,
        threads: Vec<Vec<Lane>>,
        load: &Load,
        meter: Option<&'m mut dyn Meter>,
    ) -> Result<Self> {
        let clock = Clock::new();
        let mut supervisor = Self {
            ports,
            threads: Vec::new(),
            control: Arc::new(Control::new(threads.len())),
            outage: Arc::new(Outage::new(threads.len())),
            clock,
            load: load.clone(),
            meter,
            began: Instant::now(),
            cpu_before: None,
            wire_before: 0,
            ended: false,
            measured: Measured::default(),
        };
        let mut sender = sender(load)?;
        if load.warmup.is_zero() {
            // Before the first frame, so that each of them counts.
            supervisor.enter(Phase::Measure)?;
        }
        for (index, lanes) in threads.into_iter().enumerate() {
            let job = Job::new(index, lanes, sender.take(), clock, load);
            supervisor.spawn(index, job)?;
        }
        supervisor.began = Instant::now();
        Ok(supervisor)
    }

    fn spawn(&mut self, index: usize, job: Job) -> Result<()> {
        let pinned = self.load.cpus.as_ref().map(|cpus| cpus.0[index % cpus.0.len()]);
        let (control, outage) = (Arc::clone(&self.control), Arc::clone(&self.outage));
        let body = move || {
            if let Some(cpu) = pinned
                && let Err(error) = cpu::pin_current_thread(&[cpu])
            {
                eprintln!("vhostd-bench: cannot pin thread {index} to CPU {cpu}: {error}");
            }
            job.run(&control, &outage)
        };
        self.threads.push(std::thread::Builder::new().name(format!("pair-{index}")).spawn(body)?);
        Ok(())
    }

    fn supervise(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
        let watched = self.watch_phases(progress);
        if watched.is_err() {
            self.control.advance(Phase::Abort);
            self.outage.end();
        }
        self.wake_all();
        let mut outcomes = Vec::new();
        for thread in self.threads.drain(..) {
            outcomes.push(thread.join().map_err(|_| anyhow::anyhow!("A thread of the driver panicked"))?);
        }
        watched?;
        if let Some(failure) = outcomes.iter_mut().find_map(|outcome| outcome.failure.take()) {
            return Err(failure.into());
        }
        let mut tallies = Vec::new();
        let mut rings: Vec<Vec<Pair>> = self.ports.iter().map(|_| Vec::new()).collect();
        for outcome in outcomes {
            tallies.push(outcome.tally);
            outcome.lanes.into_iter().for_each(|lane| rings[lane.guest].push(lane.pair));
        }
        for (port, pairs) in self.ports.into_iter().zip(rings) {
            port.detach(pairs)?;
        }
        Ok(Report::new(&self.load, tallies, self.measured, &self.clock))
    }

    /// Moves from phase to phase until all threads have ended.
    fn watch_phases(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let total = self.load.warmup + self.load.runtime;
        while !self.control.all_finished() {
            let elapsed = self.began.elapsed();
            if elapsed >= self.load.warmup && self.control.phase() == Phase::Warmup {
                self.enter(Phase::Measure)?;
            }
            if elapsed >= total && self.control.phase() == Phase::Measure {
                self.enter(Phase::Drain)?;
            }
            if self.control.phase() >= Phase::Drain {
                // A thread that ended the run has told no one who sleeps.
                self.wake_all();
            }
            progress(self.progress(false));
            self.watch_backend(self.nap(elapsed, total), progress)?;
        }
        // Short loads can end before the measured time is over.
        self.enter(Phase::Drain)
    }

    /// Sleeps for `nap`, unless the backend goes away.
    fn watch_backend(&mut self, nap: Duration, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        if self.ports[0].hung_up_within(nap) {
            self.go_on_later(progress)?;
        }
        Ok(())
    }

    fn progress(&self, outage: bool) -> Progress {
        let total = (self.load.warmup + self.load.runtime).as_secs_f64().max(1e-9);
        let elapsed = self.began.elapsed();
        let fraction = (elapsed.as_secs_f64() / total).min(1.0);
        Progress { elapsed, fraction, completed: self.control.completed(), outage }
    }

    /// Sleeps until the next phase begins, at most a tick.
    fn nap(&self, elapsed: Duration, total: Duration) -> Duration {
        let next = if elapsed < self.load.warmup { self.load.warmup } else { total };
        next.checked_sub(elapsed)
            .filter(|left| !left.is_zero())
            .map_or(Duration::from_millis(2), |left| left.min(TICK))
    }

    fn enter(&mut self, phase: Phase) -> Result<()> {
        let cpu = self.ports[0].backend_pid().and_then(|pid| cpu::process_cpu_time(pid).ok());
        let wire = match self.load.wire.as_ref().filter(|_| self.load.mode == Mode::Tx) {
            Some(interface) => Some(host::packets(interface)?),
            None => None,
        };
        if phase == Phase::Measure {
            (self.cpu_before, self.wire_before) = (cpu, wire.unwrap_or(0));
            self.meter.as_mut().map_or(Ok(()), |meter| meter.begin())?;
        }
        self.control.advance(phase);
        if phase != Phase::Measure && !std::mem::replace(&mut self.ended, true) {
            self.measured.cpu = cpu.zip(self.cpu_before).and_then(|(now, before)| now.checked_sub(before));
            self.measured.wire = wire.map(|now| now.saturating_sub(self.wire_before));
            self.measured.busy = self.meter.as_mut().map_or(Ok(None), |meter| meter.end())?;
        }
        self.wake_all();
        Ok(())
    }

    fn wake_all(&self) {
        self.ports.iter().for_each(Port::wake_all);
    }

    /// The backend has closed the connection: the threads stand still until there is a new one.
    fn go_on_later(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        if self.control.all_finished() {
            return Ok(());
        }
        ensure!(
            self.load.reconnect,
            "The backend closed the connection (--reconnect waits for it to come back)"
        );
        let begin = Instant::now();
        let Some(bases) = self.outage.begin(|| self.wake_all()) else { return Ok(()) };
        // The receiver first: what waits in the sender's ring would go to a port without a guest.
        for guest in (0..self.ports.len()).rev() {
            let of_guest = bases.iter().filter_map(|lanes| lanes.get(guest));
            let bases: Vec<u32> = of_guest.flatten().copied().collect();
            self.reattach(guest, &bases, begin, progress)?;
        }
        self.measured.outages_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        // The new process has its own clock and counters: no figure for this run.
        (self.cpu_before, self.meter) = (None, None);
        self.outage.end();
        Ok(())
    }

    fn reattach(
        &mut self,
        guest: usize,
        bases: &[u32],
        begin: Instant,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        while let Err(error) = self.ports[guest].reattach(bases) {
            if begin.elapsed() > PATIENCE {
                return Err(error).context(format!("The backend did not come back within {PATIENCE:?}"));
            }
            progress(self.progress(true));
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
