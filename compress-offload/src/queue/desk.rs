//! What a worker has beside its rings: the requests that were taken, what waits, the engines, and how requests end.

#![expect(unsafe_code, reason = "gives guest memory to engines")]

use crate::algorithm::Params;
use crate::buffers::Buffers;
use crate::engine::{Engines, Outcome, Output};
use crate::queue::lanes::Lanes;
use crate::queue::request::Request;
use crate::queue::{Collected, QueueState};
use crate::stats::{Ending, Kind, QueueCounters, ServiceStats};
use crate::steal::Member;
use crate::stream::Stream;
use crate::task::{Task, status_of};
use crate::unit::{Rules, Unit};
use compress_protocol::{Direction, Response, Status, response_flag};
use memory::{HostRange, MemoryView};
use offload::collector::Collector;
use offload::fair::Share;
use offload::flush::{Policy, Reason};
use offload::service::{Done, Env, Look, Offload, OffloadRings};
use offload::slab::Slab;
use offload::stats::BatchCounters;
use runtime::stats::WorkerStats;
use std::sync::Arc;
use virtqueue::DeviceRing;

/// The rings of a worker; without a state when their device is not known.
pub type CompressRings = OffloadRings<QueueState>;

/// A device as one worker knows it.
pub(crate) struct Known {
    /// Its number.
    device: u32,
    /// What its session thread and its workers share.
    pub unit: Arc<Unit>,
    /// How its rings share their quantum.
    pub share: Share,
    /// As they were when last looked at.
    pub rules: Rules,
    edition: u64,
    /// The features in force.
    pub features: u64,
    /// Compressions since one was verified that had not asked for it.
    pub verifiable: u32,
}

impl Known {
    fn new(device: u32, unit: Arc<Unit>) -> Self {
        let (rules, edition) = unit.rules();
        let features = unit.features();
        Self { device, unit, share: Share::default(), rules, edition, features, verifiable: 0 }
    }

    /// Looks whether anything has changed.
    #[inline]
    pub fn refresh(&mut self) {
        self.features = self.unit.features();
        if self.unit.edition() != self.edition {
            (self.rules, self.edition) = self.unit.rules();
        }
    }

    /// The counters of a queue.
    #[inline]
    pub fn stats(&self, queue: u16) -> &QueueCounters {
        &self.unit.queue_stats()[usize::from(queue)]
    }

    /// Opens a stream on a queue.
    pub fn open_stream(&self, queue: u16, direction: Direction, params: &Params) -> Response {
        let Some(permit) = self.unit.stream_limit().permit() else {
            return Response::bare(Status::NoSpace, 0);
        };
        match Stream::open(direction, params) {
            Ok(stream) => {
                let id = self.unit.streams(queue).open(Box::new(stream), permit);
                Response { checksum: id, ..Response::bare(Status::Ok, 0) }
            }
            // No memory is no space.
            Err(Outcome::Failed) => Response::bare(Status::NoSpace, 0),
            Err(outcome) => Response::bare(status_of(outcome), 0),
        }
    }
}

/// Private memory for the request that is being computed, still in the cache from the one before.
#[derive(Default)]
struct Scratch {
    source: Vec<u8>,
    output: Vec<u8>,
}

/// What a worker works with.
pub struct Desk {
    /// The devices. Places stay while a device is known.
    pub(crate) known: Vec<Option<Known>>,
    /// Requests that were taken.
    pub(crate) requests: Slab<Request>,
    /// Those not yet submitted.
    pub(crate) collector: Collector<Collected>,
    /// Those submitted and not yet begun.
    pub(crate) lanes: Lanes,
    pub(crate) engines: Engines,
    /// The other workers.
    pub(crate) member: Member<Box<Task>>,
    /// Tasks on the shelf, with others, or on their way back.
    pub(crate) shared: usize,
    /// Tasks for the next time.
    #[expect(clippy::vec_box, reason = "a task travels in its box, which is used again")]
    pub(crate) spare: Vec<Box<Task>>,
    pub(crate) buffers: Buffers,
    pub(crate) stats: Arc<ServiceStats>,
    /// Tasks that have come back.
    #[expect(clippy::vec_box, reason = "as above")]
    pub(crate) returned: Vec<Box<Task>>,
    /// Requests that have their stream back.
    pub(crate) released: Vec<u32>,
    scratch: Scratch,
}

impl Desk {
    /// Nothing taken.
    pub fn new(engines: Engines, member: Member<Box<Task>>, stats: Arc<ServiceStats>) -> Self {
        Self {
            known: Vec::new(),
            requests: Slab::default(),
            collector: Collector::new(Kind::ALL.len(), Policy::default()),
            lanes: Lanes::default(),
            engines,
            member,
            shared: 0,
            spare: Vec::new(),
            buffers: Buffers::default(),
            stats,
            returned: Vec::new(),
            released: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Has the collected requests wait for their turn to be computed.
    pub(crate) fn submit(&mut self, reason: Reason) {
        let Self { collector, lanes, stats, .. } = self;
        collector.submit(reason, &stats.batches, |group| {
            group.drain(..).for_each(|Collected { slot, device, waiting }| lanes.push(slot, device, waiting));
        });
    }

    /// Computes a request of this worker, from where its source is to where its result goes, as far as that can be.
    pub(crate) fn compute_here(
        &mut self,
        index: u32,
        stream: Option<&mut Stream>,
        mem: &MemoryView,
    ) -> Response {
        let request = self.requests.at(index);
        let trusted = self.known[request.device].as_ref().is_some_and(|known| known.unit.zero_copy());
        let Scratch { source, output } = &mut self.scratch;
        let src = match request.whole_source(mem).filter(|_| trusted) {
            // SAFETY: the range is inside guest memory, which `mem` keeps mapped meanwhile. Its guest is trusted not to write
            // to it before the request is completed: that is what `zero_copy` promises.
            Some(range) => unsafe { as_slice(range) },
            None => {
                let source = room(source, request.job.src_len);
                if request.copy_source(mem, source).is_err() {
                    return Response::bare(Status::Error, 0);
                }
                source
            }
        };
        compute_to(&mut self.engines, request, stream, src, mem, output)
    }

    /// Computes a request of this worker that was packed and that nobody has come for.
    pub(crate) fn compute_packed(&mut self, task: &mut Task, mem: &MemoryView) -> Response {
        let request = self.requests.at(task.request);
        let src = task.source.front(task.job.src_len);
        let stream = task.stream.as_deref_mut();
        compute_to(&mut self.engines, request, stream, src, mem, &mut self.scratch.output)
    }

    /// Ends a request whose ring is at hand, `now`: response, chain, counters.
    #[inline]
    pub(crate) fn end(
        &mut self,
        index: u32,
        response: Response,
        mem: &MemoryView,
        ring: &mut impl DeviceRing,
        (now, worker): (u64, &WorkerStats),
    ) {
        let request = self.requests.at(index);
        request.answer(mem, response, ring);
        if let Some(known) = &self.known[request.device] {
            let stats = known.stats(request.queue);
            let status = Status::from_wire(response.status).unwrap_or(Status::Error);
            let ending = Ending {
                consumed: response.consumed.into(),
                produced: response.produced.into(),
                second_engine: response.flags & response_flag::SECOND_ENGINE != 0,
                verified: response.flags & response_flag::VERIFIED != 0,
            };
            stats.completed(request.kind, status, ending);
            if request.chain.token().resubmitted() {
                stats.resubmitted.add(1);
            }
            if request.direct {
                stats.direct.add(1);
            }
            if request.job.stream().is_some() {
                stats.streamed.add(1);
            }
            let took = now.saturating_sub(request.started);
            stats.latency_ns[request.kind.latency()].record(took);
            worker.requests.add(1);
            worker.bytes.add(ending.consumed.max(ending.produced));
            worker.latency_ns.record(took);
        }
        self.close(index);
    }

    /// Completes a chain that has no room for a response.
    #[cold]
    pub(crate) fn drop_malformed(&mut self, index: u32, mem: &MemoryView, ring: &mut impl DeviceRing) {
        ring.complete(mem, &self.requests.at(index).chain, 0);
        self.count(index, |stats| stats.malformed.add(1));
        self.close(index);
    }

    /// Counts something of a request on its queue.
    #[inline]
    pub(crate) fn count(&mut self, index: u32, count: impl FnOnce(&QueueCounters)) {
        let request = self.requests.at(index);
        if let Some(known) = &self.known[request.device] {
            count(known.stats(request.queue));
        }
    }

    /// Lets go of a request.
    pub(crate) fn close(&mut self, index: u32) {
        let request = self.requests.at(index);
        request.chain.trim();
        if request.held > 0
            && let Some(known) = &self.known[request.device]
        {
            known.unit.leave(std::mem::take(&mut request.held));
        }
        self.requests.give(index);
    }

    fn place_of(&self, device: u32) -> Option<usize> {
        self.known.iter().position(|known| known.as_ref().is_some_and(|known| known.device == device))
    }

    /// Shows the figures that are kept elsewhere.
    fn show(&self) {
        self.stats.batches.collected.set(self.collector.jobs() as u64);
        self.stats.batches.in_flight.set((self.lanes.waiting() + self.shared) as u64);
        self.stats.waiting.set(self.lanes.waiting() as u64);
        self.stats.shared.set(self.shared as u64);
        self.stats.kept_bytes.set(self.buffers.kept() as u64);
    }
}

/// Computes a request of this worker: straight into the guest's memory when the destination is one piece, else by way of
/// private memory.
fn compute_to(
    engines: &mut Engines,
    request: &mut Request,
    stream: Option<&mut Stream>,
    src: &[u8],
    mem: &MemoryView,
    output: &mut Vec<u8>,
) -> Response {
    let job = request.job;
    // Streams keep to private memory.
    if stream.is_none()
        && let Some(range) = request.whole_destination(mem)
    {
        request.direct = true;
        // SAFETY: the range is inside guest memory, which `mem` keeps mapped meanwhile and to which this process has no
        // reference: a source that is read in place belongs to a guest that is trusted not to name one byte as both.
        let dst = unsafe { Output::guest(range) };
        return job.compute(engines, stream, src, dst);
    }
    let output = room(output, job.dst_len);
    let response = job.compute(engines, stream, src, (&mut *output).into());
    let result = &output[..(response.produced as usize).min(job.dst_len)];
    match request.chain.write_at(mem, 0, result) {
        Ok(()) => response,
        Err(_) => Response::bare(Status::Error, 0),
    }
}

/// The first `len` bytes of a vector that grows as needed.
fn room(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if memory.len() < len {
        memory.resize(len.next_power_of_two(), 0);
    }
    &mut memory[..len]
}

/// # Safety
///
/// The range is mapped and not written to for as long as the result is used.
unsafe fn as_slice<'a>(range: HostRange) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(range.base.cast(), range.len) }
}

impl Drop for Desk {
    /// After a failure: what was taken does not count for its device any more, which may have other workers.
    fn drop(&mut self) {
        for index in 0.. {
            let Some(request) = self.requests.get_mut(index) else { break };
            if let Some(Some(known)) = self.known.get(request.device) {
                known.unit.leave(std::mem::take(&mut request.held));
            }
        }
    }
}

impl Offload for Desk {
    type Unit = Unit;
    type Queue = QueueState;

    fn add(&mut self, device: u32, unit: Arc<Unit>) {
        let known = Some(Known::new(device, unit));
        match self.known.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = known,
            None => self.known.push(known),
        }
    }

    fn remove(&mut self, device: u32) {
        if let Some(place) = self.place_of(device) {
            self.known[place] = None;
        }
    }

    fn queue(&self, device: u32, index: u16) -> Option<QueueState> {
        let place = self.place_of(device)?;
        QueueState::new(place, index, &self.known[place].as_ref()?.unit)
    }

    fn set_policy(&mut self, policy: Policy) {
        self.collector.policy = policy;
    }

    #[inline]
    fn burst<R: DeviceRing>(&mut self, queue: &mut QueueState, ring: &mut R, env: &mut Env<'_>) -> usize {
        self.take_burst(queue, ring, env)
    }

    fn rung(&mut self, rings: &mut CompressRings, worker: &WorkerStats) -> usize {
        self.take_back(rings, worker)
    }

    fn turn(&mut self, rings: &mut CompressRings, look: Look, worker: &WorkerStats) -> Done {
        if let Some(reason) = self.collector.due(look) {
            self.submit(reason);
        }
        let ended = self.compute_some(rings, worker);
        let helped = ended == 0 && self.lanes.waiting() == 0 && self.help();
        let own = self.lanes.waiting() > 0 || self.member.shelved() > 0;
        self.member.set_idle(!own && self.collector.jobs() == 0);
        self.show();
        Done { ended, more: own || helped }
    }

    #[inline]
    fn has_work(&self) -> bool {
        self.collector.jobs() > 0
            || self.lanes.waiting() > 0
            || self.shared > 0 && self.member.shelved() > 0
            || self.member.sees_work()
    }

    fn awaits(&self) -> bool {
        self.collector.jobs() > 0 || self.lanes.waiting() > 0 || self.shared > 0
    }

    fn arm(&mut self) -> bool {
        self.member.lie_down()
    }

    fn awake(&mut self) {
        self.member.get_up();
    }

    fn counters(&self) -> &BatchCounters {
        &self.stats.batches
    }
}
