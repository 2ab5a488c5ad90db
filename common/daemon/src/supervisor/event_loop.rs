//! The main thread: waits for signals, the watchdog timer, and new clients of the control socket and the metrics.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::dispatch::Methods;
use super::setup::Service;
use super::{Application, Phase, Supervisor};
use crate::signals::{Signal, Signals};
use crate::{control, metrics, systemd};

/// How long the workers may take to answer before the watchdog is not fed.
const RESPONSE_LIMIT: Duration = Duration::from_millis(200);
/// Memory a client's thread needs at most.
const CLIENT_STACK: usize = 256 << 10;

/// Sockets of the control plane; dropping them removes their files.
pub(super) struct Listeners {
    pub control: Option<Service>,
    pub metrics: Option<MetricsListener>,
}

/// Where metrics are served.
pub(super) enum MetricsListener {
    Tcp(TcpListener),
    Unix(Service),
}

/// What became readable.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Source {
    Signal,
    Wake,
    Watchdog,
    Control,
    Metrics,
}

const SOURCES: [Source; 5] =
    [Source::Signal, Source::Wake, Source::Watchdog, Source::Control, Source::Metrics];

pub(super) struct EventLoop {
    epoll: Epoll,
    signals: Signals,
    watchdog: Option<TimerFd>,
    listeners: Listeners,
    supervisor: Arc<Supervisor>,
    control_clients: Arc<AtomicUsize>,
    metrics_clients: Arc<AtomicUsize>,
}

impl EventLoop {
    pub fn new(signals: Signals, listeners: Listeners, supervisor: &Arc<Supervisor>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |fd: RawFd, source: Source| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, source as u64))
        };
        watch(signals.as_raw_fd(), Source::Signal)?;
        watch(supervisor.wake.as_raw_fd(), Source::Wake)?;
        let watchdog = systemd::watchdog_interval().map(watchdog_timer).transpose()?;
        if let Some(timer) = &watchdog {
            watch(timer.as_raw_fd(), Source::Watchdog)?;
        }
        if let Some(control) = &listeners.control {
            control.listener.set_nonblocking(true)?;
            watch(control.listener.as_raw_fd(), Source::Control)?;
        }
        if let Some(metrics) = &listeners.metrics {
            watch(metrics.prepare()?, Source::Metrics)?;
        }
        let (control_clients, metrics_clients) = Default::default();
        let supervisor = Arc::clone(supervisor);
        Ok(Self { epoll, signals, watchdog, listeners, supervisor, control_clients, metrics_clients })
    }

    /// Runs until the process shall end; the sockets of the control plane are gone afterwards.
    pub fn run<A: Application>(mut self, methods: &Arc<Methods<A>>) -> io::Result<()> {
        let mut events = [EpollEvent::default(); SOURCES.len()];
        while self.supervisor.phase() != Phase::Stopping {
            let ready = match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                ready => ready?,
            };
            for event in &events[..ready] {
                if let Some(source) = SOURCES.iter().find(|source| **source as u64 == event.data()) {
                    self.handle(*source, methods);
                }
            }
        }
        Ok(())
    }

    fn handle<A: Application>(&mut self, source: Source, methods: &Arc<Methods<A>>) {
        match source {
            Source::Signal => self.signal(methods),
            Source::Wake => drop(self.supervisor.wake.read()),
            Source::Watchdog => self.feed_watchdog(&*methods.application),
            Source::Control => self.accept_control(methods),
            Source::Metrics => self.accept_metrics(methods),
        }
    }

    fn signal<A: Application>(&mut self, methods: &Methods<A>) {
        while let Some(signal) = self.signals.take() {
            match signal {
                Signal::Terminate => self.supervisor.shutdown(),
                Signal::Dump => {
                    let stats =
                        serde_json::to_string(&methods.application.stats().stamped()).unwrap_or_default();
                    tracing::info!(%stats, "counters");
                }
                Signal::Ignored => tracing::debug!("signal ignored"),
            }
        }
    }

    fn feed_watchdog(&mut self, application: &impl Application) {
        if let Some(timer) = &mut self.watchdog {
            let _ = timer.wait();
        }
        if application.responsive(RESPONSE_LIMIT) {
            systemd::watchdog();
        } else {
            tracing::error!("a worker does not answer; the watchdog is not fed");
        }
    }

    fn accept_control<A: Application>(&self, methods: &Arc<Methods<A>>) {
        let Some(control) = &self.listeners.control else { return };
        while let Some(stream) = accepted(control.listener.accept().map(|(stream, _)| stream)) {
            let Some(slot) = Slot::take(&self.control_clients, control::MAX_CLIENTS) else {
                let _ = control::refuse(&stream, control::code::BUSY, "Too many clients are connected");
                continue;
            };
            let methods = Arc::clone(methods);
            serve_in_thread("control", slot, move || control::serve_client(&stream, &*methods));
        }
    }

    fn accept_metrics<A: Application>(&self, methods: &Arc<Methods<A>>) {
        let Some(listener) = &self.listeners.metrics else { return };
        while let Some(stream) = listener.accept() {
            // One client too many is disconnected: Prometheus asks again.
            let Some(slot) = Slot::take(&self.metrics_clients, metrics::MAX_CLIENTS) else { continue };
            let methods = Arc::clone(methods);
            serve_in_thread("metrics", slot, move || metrics::serve_client(stream, || exposition(&methods)));
        }
    }
}

/// All metrics of the process as text.
fn exposition<A: Application>(methods: &Methods<A>) -> String {
    let mut out = metrics::Exposition::new();
    metrics::process(&mut out, methods.supervisor.program(), methods.supervisor.started.elapsed());
    metrics::snapshot(&mut out, &methods.application.stats().stamped());
    methods.application.metrics(&mut out);
    out.finish()
}

impl MetricsListener {
    fn prepare(&self) -> io::Result<RawFd> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true).map(|()| listener.as_raw_fd()),
            Self::Unix(service) => {
                service.listener.set_nonblocking(true).map(|()| service.listener.as_raw_fd())
            }
        }
    }

    fn accept(&self) -> Option<metrics::Stream> {
        match self {
            Self::Tcp(listener) => {
                accepted(listener.accept()).map(|(stream, _)| metrics::Stream::Tcp(stream))
            }
            Self::Unix(service) => {
                accepted(service.listener.accept()).map(|(stream, _)| metrics::Stream::Unix(stream))
            }
        }
    }
}

/// A place among a bounded number of clients, given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(clients: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        // Only the main thread takes, so the count cannot grow between the two steps.
        if clients.load(Ordering::Relaxed) >= limit {
            return None;
        }
        clients.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(clients)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_in_thread(name: &str, slot: Slot, serve: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let client = move || {
        if let Err(error) = serve() {
            tracing::debug!(%error, "client gone");
        }
        drop(slot);
    };
    if let Err(error) = std::thread::Builder::new().name(name.into()).stack_size(CLIENT_STACK).spawn(client) {
        tracing::warn!(%error, "no thread for a client of {name}");
    }
}

/// An accepted connection; `None` when there is none, or when it went away again.
fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(stream) => Some(stream),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => {
            static FAILURES: crate::logging::RateLimited = crate::logging::RateLimited::per_second(1);
            if let Some(suppressed) = FAILURES.permit() {
                tracing::warn!(%error, suppressed, "a client could not be accepted");
            }
            // Out of descriptors, the listener stays readable: without a pause this thread would spin.
            std::thread::sleep(Duration::from_millis(10));
            None
        }
    }
}

fn watchdog_timer(interval: Duration) -> io::Result<TimerFd> {
    let mut timer = TimerFd::new()?;
    timer.reset(interval, Some(interval))?;
    Ok(timer)
}
