//! The client: to the device if it can, in software if it must.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use compress_protocol::{Config, FS_DEVICE_ID, FS_TAG_LEN, Format, MAGIC, Status, carries};

use super::options::{OpenError, Options, Place};
use super::remote::{Remote, Returned};
use super::request::{Answer, By, Completion, Request, Ticket, bounded_by};
use super::software::Software;
use crate::fallback::{Counters, Reason};
use crate::pci::Found;
use crate::pci::capability::ConfigSpace;
use crate::transport::{Identity, Pci, Socket, Transport};

/// Looks at the ring before the processor is given to others.
const SPINS: u32 = 200;
/// Further looks before sleeping.
const YIELDS: u32 = 500;
/// How long a waiting client sleeps between looks then: far less than anything large takes.
const NAP: Duration = Duration::from_micros(20);

/// Everything is in flight: poll first. Gives the buffer back.
#[derive(Debug, thiserror::Error)]
#[error("All requests are in flight")]
pub struct Full(pub Vec<u8>);

/// Compresses and decompresses, one thread at a time.
///
/// Whatever happens to the device, every request that was taken ends: by the device, or in software. What ended how is
/// told by [`Completion::by`] and [`Client::counters`].
///
/// ```
/// use guest_driver::compress::{Client, Format, Options, Place, Request};
///
/// // `Options::default()` takes the first device on PCI.
/// let mut client = Client::open(Options { place: Place::Nowhere, ..Options::default() });
/// let data = b"the quick brown fox, ".repeat(100);
/// let packed = client.run(&Request::compress(Format::Gzip, &data)).into_result().unwrap();
/// assert!(packed.len() < data.len() / 10);
/// let restored = client.run(&Request::decompress(Format::Gzip, &packed, data.len()));
/// assert_eq!(restored.into_result().unwrap(), data);
/// ```
pub struct Client {
    options: Options,
    device: Option<Remote>,
    /// Why there is no device, or when there was one last.
    missing: Missing,
    software: Software,
    counters: Counters,
    ready: VecDeque<Completion>,
    in_flight: usize,
    next: u64,
}

/// State of what is not there.
struct Missing {
    error: Option<OpenError>,
    reason: Reason,
    /// When to look again.
    retry: Option<Instant>,
    /// The device is there but was too slow: it is left alone until then.
    pause: Option<Instant>,
    /// It has lost a stream: until then, streams are in software.
    streams: Option<Instant>,
}

impl Client {
    /// Takes a device as the options say; without one everything is done in software, and [`Client::problem`] says why.
    pub fn open(options: Options) -> Self {
        let opened = find(&options).and_then(|transport| Remote::start(transport, &options));
        Self::with(options, opened)
    }

    /// Drives this device.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn on(transport: Box<dyn Transport>, options: Options) -> Result<Self, OpenError> {
        let remote = Remote::start(transport, &options)?;
        Ok(Self::with(Options { place: Place::Nowhere, ..options }, Ok(remote)))
    }

    fn with(options: Options, opened: Result<Remote, OpenError>) -> Self {
        let (device, error) = match opened {
            Ok(remote) => (Some(remote), None),
            Err(error) => (None, Some(error)),
        };
        let missing = Missing { error, reason: Reason::Absent, retry: None, pause: None, streams: None };
        Self {
            options,
            device,
            missing,
            software: Software::default(),
            counters: Counters::default(),
            ready: VecDeque::new(),
            in_flight: 0,
            next: 0,
        }
    }

    /// Why there is no device, if there is none.
    pub fn problem(&self) -> Option<&OpenError> {
        self.missing.error.as_ref()
    }

    /// What the device can do.
    pub fn config(&self) -> Option<&Config> {
        self.device.as_ref().map(|device| &device.config)
    }

    /// Where the device is and what it works with, a line each.
    pub fn describe(&self) -> Option<[String; 2]> {
        self.device.as_ref().map(|device| [device.describe(), device.arena.describe()])
    }

    /// Queues that are driven.
    pub fn queues(&self) -> usize {
        self.device.as_ref().map_or(0, Remote::queues)
    }

    /// Who did how many requests.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How often the device was notified.
    pub fn kicks(&self) -> u64 {
        self.device.as_ref().map_or(0, Remote::kicks)
    }

    /// The longest source and the longest result that the device takes; software takes any.
    pub fn limits(&self) -> Option<(usize, usize)> {
        self.device.as_ref().map(Remote::limits)
    }

    /// The longest source that the device compresses whatever is in it: the result has room in any case.
    pub fn compress_limit(&self) -> Option<usize> {
        self.limits().map(|(source, result)| source.min(bounded_by(result)))
    }

    /// Whether the device has streams of this format.
    pub fn has_streams(&self, format: Format) -> bool {
        self.device.as_ref().is_some_and(|device| device.streams(format))
    }

    /// Requests that were submitted and not yet given back.
    pub fn pending(&self) -> usize {
        self.in_flight + self.ready.len()
    }

    /// Requests that are with the device.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Starts a request. Its result comes in `output`, whose memory is used again.
    ///
    /// # Errors
    /// [`Full`] when as many requests are in flight as the options allow.
    pub fn submit(&mut self, request: &Request<'_>, output: Vec<u8>) -> Result<Ticket, Full> {
        let ticket = self.enqueue(request, output)?;
        self.publish();
        Ok(ticket)
    }

    /// Starts as many of the requests as can be in flight, in order and with one notification; their tickets are appended to
    /// `tickets`. Returns how many that were.
    pub fn submit_batch(&mut self, requests: &[Request<'_>], tickets: &mut Vec<Ticket>) -> usize {
        let mut taken = 0;
        for request in requests {
            let Ok(ticket) = self.enqueue(request, Vec::new()) else { break };
            tickets.push(ticket);
            taken += 1;
        }
        self.publish();
        taken
    }

    fn publish(&mut self) {
        if let Some(device) = &mut self.device {
            device.publish();
        }
    }

    fn enqueue(&mut self, request: &Request<'_>, output: Vec<u8>) -> Result<Ticket, Full> {
        let ticket = Ticket(self.next);
        match self.obstacle(request) {
            Some(reason) => self.in_software(ticket, request, output, reason),
            None => self.offload(ticket, request, output)?,
        }
        self.next += 1;
        Ok(ticket)
    }

    fn offload(&mut self, ticket: Ticket, request: &Request<'_>, output: Vec<u8>) -> Result<(), Full> {
        let due = Instant::now() + self.options.deadline;
        let Some(device) = &mut self.device else { return Err(Full(output)) };
        match device.add(ticket, request, due, output) {
            Ok(()) => self.in_flight += 1,
            // All slots are with a device that does not give them back.
            Err(output) if self.in_flight == 0 => {
                self.in_software(ticket, request, output, Reason::Slow);
            }
            Err(output) => return Err(Full(output)),
        }
        Ok(())
    }

    /// Why a request does not go to the device.
    fn obstacle(&mut self, request: &Request<'_>) -> Option<Reason> {
        self.look_again();
        let Some(device) = &self.device else { return Some(self.missing.reason) };
        if request.source.len() < self.options.small {
            return Some(Reason::Small);
        }
        if let Some(reason) = device.refuses(request) {
            return Some(reason);
        }
        if self.missing.pause.is_some_and(|until| Instant::now() < until) {
            return Some(Reason::Slow);
        }
        self.missing.pause = None;
        None
    }

    /// Tries to get a device back that was lost.
    fn look_again(&mut self) {
        let Some(at) = self.missing.retry.filter(|_| self.device.is_none()) else { return };
        if Instant::now() < at {
            return;
        }
        self.missing.retry = Some(Instant::now() + self.options.pause);
        match find(&self.options).and_then(|transport| Remote::start(transport, &self.options)) {
            Ok(device) => {
                tracing::info!(device = device.describe(), "The device is back");
                (self.device, self.missing.retry, self.missing.error) = (Some(device), None, None);
            }
            Err(error) => self.missing.error = Some(error),
        }
    }

    fn in_software(&mut self, ticket: Ticket, request: &Request<'_>, mut output: Vec<u8>, reason: Reason) {
        if reason == Reason::Absent && self.counters.software(reason) == 0 {
            self.say_why();
        }
        self.counters.fall_back(reason);
        let answer = self.software.run(request, &mut output);
        self.finish(ticket, answer, output, By::Software);
    }

    /// There is no device, although there should be one.
    fn say_why(&self) {
        if let Some(problem) = self.problem().filter(|_| self.options.place != Place::Nowhere) {
            tracing::warn!("{}; working in software", problem.in_full());
        }
    }

    fn finish(&mut self, ticket: Ticket, answer: Answer, output: Vec<u8>, by: By) {
        let Answer { status, consumed, checksum } = answer;
        self.ready.push_back(Completion { ticket, status, output, consumed, checksum, by });
    }

    /// The next request that has ended, in the order in which they ended.
    pub fn poll(&mut self) -> Option<Completion> {
        if self.ready.is_empty() {
            self.look();
        }
        self.ready.pop_front()
    }

    /// Looks at the rings; returns how many requests have ended and were not yet given out.
    pub fn look(&mut self) -> usize {
        let Some(device) = &mut self.device else { return self.ready.len() };
        let mut returned = Vec::new();
        while let Some(one) = device.pop() {
            returned.push(one);
        }
        if returned.is_empty() && self.in_flight > 0 {
            if device.lost() {
                return self.lose();
            }
            self.expire();
        }
        for one in returned {
            self.returned(one);
        }
        self.ready.len()
    }

    /// What the device gave back.
    fn returned(&mut self, one: Returned) {
        let reason = match one.answer.map(|answer| answer.status) {
            Some(Status::Busy) => Reason::Busy,
            Some(Status::NotSupported) => Reason::Unsupported,
            // It was asked for something it should do, and says that it cannot.
            None | Some(Status::Error | Status::BadRequest | Status::BadStream | Status::NoSpace) => {
                Reason::Failed
            }
            Some(_) => {
                self.in_flight -= 1;
                self.counters.device += 1;
                let answer = one.answer.unwrap_or(Answer::failed(Status::Error));
                let output = one.flight.output.unwrap_or_default();
                return self.finish(one.flight.ticket, answer, output, By::Device);
            }
        };
        self.redo(one, reason);
    }

    /// Does in software what the device has not done.
    fn redo(&mut self, one: Returned, reason: Reason) {
        self.in_flight -= 1;
        let source = match &self.device {
            Some(device) => device.source(one.slot, one.flight.src_len),
            None => Vec::new(),
        };
        let mut flight = one.flight;
        let output = flight.output.take().unwrap_or_default();
        self.in_software(flight.ticket, &flight.request(&source), output, reason);
    }

    /// Requests that are late.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(one) = self.device.as_mut().and_then(|device| device.late(now)) {
            self.missing.pause = Some(now + self.options.pause);
            self.redo(one, Reason::Slow);
        }
    }

    /// The device is gone.
    fn lose(&mut self) -> usize {
        while let Some(one) = self.device.as_mut().and_then(Remote::orphan) {
            self.redo(one, Reason::Lost);
        }
        self.device = None;
        self.missing.reason = Reason::Lost;
        if self.options.place != Place::Nowhere {
            self.missing.retry = Some(Instant::now() + self.options.pause);
        }
        self.ready.len()
    }

    /// Waits for the next request to end; `None` when there is none.
    pub fn wait(&mut self) -> Option<Completion> {
        let mut looks = 0;
        while self.pending() > 0 {
            if let Some(completion) = self.poll() {
                return Some(completion);
            }
            rest(looks);
            looks += 1;
        }
        None
    }

    /// Waits for this request to end. Others that end meanwhile stay for [`Client::poll`].
    pub fn wait_for(&mut self, ticket: Ticket) -> Option<Completion> {
        let mut looks = 0;
        loop {
            self.look();
            if let Some(at) = self.ready.iter().position(|completion| completion.ticket == ticket) {
                return self.ready.remove(at);
            }
            if self.in_flight == 0 {
                return None;
            }
            rest(looks);
            looks += 1;
        }
    }

    /// Runs a request and waits for it.
    pub fn run(&mut self, request: &Request<'_>) -> Completion {
        let mut output = Vec::new();
        let mut looks = 0;
        loop {
            match self.submit(request, output) {
                Ok(ticket) => {
                    let completion = self.wait_for(ticket);
                    return completion.unwrap_or_else(|| unreachable!("a request that was taken ends"));
                }
                Err(Full(back)) => output = back,
            }
            self.look();
            rest(looks);
            looks += 1;
        }
    }

    /// The device has lost a stream, for this reason.
    pub(super) fn pause_streams(&mut self, reason: Reason) {
        self.counters.fall_back(reason);
        self.missing.streams = Some(Instant::now() + self.options.pause);
    }

    /// Whether it has done so lately.
    pub(super) fn streams_paused(&self) -> bool {
        self.missing.streams.is_some_and(|until| Instant::now() < until)
    }

    /// How long a request may take.
    pub(super) fn patience(&self) -> Duration {
        self.options.deadline
    }

    pub(super) fn device(&mut self) -> Option<&mut Remote> {
        self.device.as_mut()
    }
}

/// Between two looks in vain.
fn rest(looks: u32) {
    match looks {
        0..SPINS => std::hint::spin_loop(),
        SPINS..YIELDS => std::thread::yield_now(),
        _ => std::thread::sleep(NAP),
    }
}

/// The device that the options name.
fn find(options: &Options) -> Result<Box<dyn Transport>, OpenError> {
    match &options.place {
        Place::Nowhere => Err(OpenError::Absent),
        Place::Socket(path) => Ok(Box::new(Socket::connect(path)?)),
        Place::Pci(address) => {
            let found = Found::at(address)?.ok_or(OpenError::Absent)?;
            // Named by its place, it may have any number but the carrier's.
            let device_id = if found.id == FS_DEVICE_ID { options.device_id } else { found.id };
            let identity =
                identify(&found, device_id).ok_or_else(|| OpenError::AnotherKind(address.clone()))?;
            Ok(Box::new(Pci::open(&found, identity)?))
        }
        Place::Any => any(options.device_id),
    }
}

/// The first one that can be had.
fn any(device_id: u16) -> Result<Box<dyn Transport>, OpenError> {
    let mut refused = OpenError::Absent;
    for found in Found::all()? {
        let Some(identity) = identify(&found, device_id) else { continue };
        match Pci::open(&found, identity) {
            Ok(transport) => return Ok(Box::new(transport)),
            Err(error) => refused = error.into(),
        }
    }
    Err(refused)
}

/// Whether it is a compression device, and of which kind. A number alone says nothing (docs/compress-device.md §1.1.1).
fn identify(found: &Found, device_id: u16) -> Option<Identity> {
    if found.id == device_id {
        // Nothing but zeros is what a frontend shows that has lost its daemon.
        let magic = peek(found)?;
        return [MAGIC.to_le_bytes(), [0; 4]].contains(&magic).then_some(Identity::Device(found.id));
    }
    let carrier = found.id == FS_DEVICE_ID && peek::<FS_TAG_LEN>(found).is_some_and(|tag| carries(&tag));
    carrier.then_some(Identity::Carrier)
}

/// The first bytes of a device's own configuration, read without taking the device from anybody.
fn peek<const N: usize>(found: &Found) -> Option<[u8; N]> {
    let read = || {
        let space = ConfigSpace::open(found)?;
        let layout = space.layout().map_err(|source| crate::pci::PciError::File {
            what: "read the configuration of",
            path: found.address().into(),
            source,
        })?;
        let mut bytes = [0; N];
        space.peek(&layout, 0, &mut bytes)?;
        Ok::<_, crate::pci::PciError>(bytes)
    };
    read()
        .inspect_err(
            |error| tracing::debug!(device = found.address(), %error, "Its configuration cannot be read"),
        )
        .ok()
}
