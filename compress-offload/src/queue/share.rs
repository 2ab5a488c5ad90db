//! What of a worker's work is computed where: here, or by another worker that has nothing to do.

use crate::queue::desk::{CompressRings, Desk};
use crate::queue::lanes::Waiting;
use crate::stats::Kind;
use crate::stream::Stream;
use crate::streams::Taken;
use crate::task::Task;
use compress_protocol::{Response, Status};
use memory::Epochs;
use runtime::cpu::monotonic_ns;
use runtime::rings::Slot;
use runtime::stats::WorkerStats;
use virtqueue::DeviceRing;

use super::QueueState;

/// Bytes that are computed between two looks at the rings, or one request.
const SLICE: u64 = 64 << 10;
/// A backlog of fewer bytes is computed here by the time that another worker has woken up.
const WORTH_SHARING: u64 = 16 << 10;

/// What a worker does next.
enum Next {
    /// A request that only now is begun, with what became of the attempt to get its stream. That is made at once: a later
    /// request of the same stream must not get there first.
    Own(u32, Option<Taken<Stream>>),
    /// One that was packed for others.
    Packed(Box<Task>),
}

impl Desk {
    /// Computes requests of this worker for as long as a slice, and packs others. Returns how many have ended.
    pub(crate) fn compute_some(&mut self, rings: &mut CompressRings, worker: &WorkerStats) -> usize {
        let (mut ended, mut bytes) = (0, 0);
        while bytes < SLICE
            && let Some(next) = self.next(rings, worker, &mut ended)
        {
            // Before, not after: others work on these meanwhile.
            self.pack_some(rings);
            bytes += self.compute(next, rings, worker);
            ended += 1;
        }
        ended
    }

    /// What to compute next: the oldest that was packed, since others had their chance, else whose turn it is.
    fn next(&mut self, rings: &mut CompressRings, worker: &WorkerStats, ended: &mut usize) -> Option<Next> {
        if self.shared > 0
            && let Some(task) = self.member.take()
        {
            return Some(Next::Packed(task));
        }
        while let Some(waiting) = self.lanes.pop() {
            let slot = self.requests.at(waiting.request).slot;
            if rings.slot(slot).is_some_and(|(slot, _)| slot.stopping()) {
                *ended += self.give_up(waiting, rings, worker);
                continue;
            }
            match self.take_stream(waiting.request) {
                Some(Taken::InLine) => {}
                taken => return Some(Next::Own(waiting.request, taken)),
            }
        }
        None
    }

    /// Computes a request and ends it. Returns what it took, in bytes.
    fn compute(&mut self, next: Next, rings: &mut CompressRings, worker: &WorkerStats) -> u64 {
        let index = match &next {
            Next::Own(index, _) => *index,
            Next::Packed(task) => task.request,
        };
        let request = self.requests.at(index);
        let (slot, epoch, bytes) = (request.slot, request.epoch, request.job.weight());
        // A ring with requests in flight stays, and so does its memory.
        let (Some((slot, epochs)), Some(epoch)) = (rings.slot(slot), epoch) else { return bytes };
        let mem = epochs.view_of(epoch);
        let began = monotonic_ns();
        let response = match next {
            Next::Own(_, None) => self.compute_here(index, None, mem),
            Next::Own(_, Some(Taken::Stream(mut stream))) => {
                let response = self.compute_here(index, Some(&mut stream), mem);
                self.give_stream(index, Some(stream), response);
                response
            }
            Next::Own(_, Some(_)) => Response::bare(Status::BadStream, 0),
            Next::Packed(mut task) => {
                let response = self.compute_packed(&mut task, mem);
                self.unpack(task, response);
                response
            }
        };
        self.stats.computed.add(1);
        let now = monotonic_ns();
        self.stats.compute_ns.add(now.saturating_sub(began));
        self.finish(index, response, (slot, epochs), (now, worker));
        bytes
    }

    /// Ends a request that waited: its epoch is left.
    fn finish(
        &mut self,
        index: u32,
        response: Response,
        (slot, epochs): (&mut Slot<Option<QueueState>>, &mut Epochs),
        at: (u64, &WorkerStats),
    ) {
        let Some(epoch) = self.requests.at(index).epoch.take() else { return };
        self.end(index, response, epochs.view_of(epoch), &mut slot.queue.ring, at);
        epochs.leave(epoch);
    }

    /// Puts on the shelf what others can be expected to take soon, and wakes them.
    fn pack_some(&mut self, rings: &mut CompressRings) {
        if self.lanes.bytes() < WORTH_SHARING {
            return;
        }
        let mut wanted = self.member.wants();
        let before = self.shared;
        while wanted > 0
            && let Some(waiting) = self.lanes.pop()
        {
            match self.pack(waiting.request, rings) {
                Packing::Done => wanted -= 1,
                Packing::InLine => {}
                Packing::Not => {
                    let request = self.requests.at(waiting.request);
                    self.lanes.push_front(request.slot, request.device, waiting);
                    break;
                }
            }
        }
        if self.shared > before {
            let called = self.member.call();
            self.stats.called.add(called as u64);
        }
    }

    /// Makes a task of a request and puts it on the shelf.
    fn pack(&mut self, index: u32, rings: &mut CompressRings) -> Packing {
        let request = self.requests.at(index);
        let (job, epoch) = (request.job, request.epoch);
        let (Some((slot, epochs)), Some(epoch)) = (rings.slot(request.slot), epoch) else {
            return Packing::Not;
        };
        let mut source = self.buffers.take(job.src_len);
        let copied = request.copy_source(epochs.view_of(epoch), source.front_mut(job.src_len));
        if slot.stopping() || copied.is_err() {
            self.buffers.give(source);
            return Packing::Not;
        }
        let stream = match self.take_stream(index) {
            None => None,
            Some(Taken::Stream(stream)) => Some(stream),
            Some(not_there) => {
                self.buffers.give(source);
                return if matches!(not_there, Taken::InLine) { Packing::InLine } else { Packing::Not };
            }
        };
        let mut task = self.spare.pop().unwrap_or_default();
        let output = self.buffers.take(job.dst_len);
        *task = Task { request: index, job, source, output, stream, response: None };
        self.member.offer(task);
        self.shared += 1;
        Packing::Done
    }

    /// Takes a task apart, of which this became.
    fn unpack(&mut self, mut task: Box<Task>, response: Response) {
        let Task { request, source, output, stream, .. } = std::mem::take(&mut *task);
        self.buffers.give(source);
        self.buffers.give(output);
        self.spare.push(task);
        self.shared -= 1;
        if self.requests.at(request).job.stream().is_some() {
            self.give_stream(request, stream, response);
        }
    }

    /// Ends the requests that others have computed. Returns how many.
    pub(crate) fn take_back(&mut self, rings: &mut CompressRings, worker: &WorkerStats) -> usize {
        let mut returned = std::mem::take(&mut self.returned);
        self.member.collect(&mut returned);
        let ended = returned.len();
        for task in returned.drain(..) {
            self.end_returned(task, rings, worker);
        }
        self.returned = returned;
        ended
    }

    fn end_returned(&mut self, task: Box<Task>, rings: &mut CompressRings, worker: &WorkerStats) {
        let index = task.request;
        let request = self.requests.at(index);
        let (slot, epoch) = (request.slot, request.epoch);
        // Without one, the engine of whoever had it panicked.
        let mut response = task.response.unwrap_or(Response::bare(Status::Error, 0));
        let (Some((slot, epochs)), Some(epoch)) = (rings.slot(slot), epoch) else { return };
        if request.chain.write_at(epochs.view_of(epoch), 0, task.result()).is_err() {
            response = Response::bare(Status::Error, 0);
        }
        self.unpack(task, response);
        self.stats.lent.add(1);
        self.count(index, |stats| stats.stolen.add(1));
        self.finish(index, response, (slot, epochs), (monotonic_ns(), worker));
    }

    /// Computes a task of another worker. False: there is none.
    pub(crate) fn help(&mut self) -> bool {
        let Some(mut loan) = self.member.steal() else { return false };
        self.member.set_idle(false);
        let began = monotonic_ns();
        loan.task().compute(&mut self.engines);
        // Before its owner has it back and may look at the figures.
        self.stats.stolen.add(1);
        self.stats.computed.add(1);
        self.stats.compute_ns.add(monotonic_ns().saturating_sub(began));
        true
    }

    /// The ring of this request stops: requests of it that were not begun are given back to it, the newest first, for when it
    /// starts again. Where something newer has ended, that cannot be: then they are answered BUSY, since whoever stops the
    /// ring must not wait for a backlog of minutes. Returns how many were answered.
    #[cold]
    fn give_up(&mut self, waiting: Waiting, rings: &mut CompressRings, worker: &WorkerStats) -> usize {
        let request = self.requests.at(waiting.request);
        let id = request.slot;
        self.lanes.push_front(id, request.device, waiting);
        let Some((slot, epochs)) = rings.slot(id) else { return 0 };
        let mut answered = 0;
        while let Some(Waiting { request: index, .. }) = self.lanes.pop_newest(id) {
            let request = self.requests.at(index);
            if slot.queue.ring.unfetch(&request.chain) {
                request.epoch.take().into_iter().for_each(|epoch| epochs.leave(epoch));
                self.count(index, |stats| stats.given_back.add(1));
                self.close(index);
            } else {
                let at = (monotonic_ns(), worker);
                self.finish(index, Response::bare(Status::Busy, 0), (&mut *slot, &mut *epochs), at);
                answered += 1;
            }
        }
        answered
    }

    /// The stream of a request; `None`: it is of none.
    fn take_stream(&mut self, index: u32) -> Option<Taken<Stream>> {
        let request = self.requests.at(index);
        let id = request.job.stream()?;
        let known = self.known[request.device].as_ref()?;
        let taken = known.unit.streams(request.queue).take(id, index);
        if let Taken::Stream(stream) = &taken {
            request.kind = Kind::Data(stream.direction(), stream.format());
        }
        Some(taken)
    }

    /// The stream of a request is free again, unless the request has spoiled it; `None`: it is lost. Whoever is in line for it
    /// goes on.
    fn give_stream(&mut self, index: u32, stream: Option<Box<Stream>>, response: Response) {
        let request = self.requests.at(index);
        let (Some(id), Some(known)) = (request.job.stream(), &self.known[request.device]) else { return };
        let spoiled = matches!(
            Status::from_wire(response.status),
            Some(Status::BadData | Status::Truncated | Status::NotSupported | Status::Error) | None
        );
        let (slot, device, queue) = (request.slot, request.device, request.queue);
        known.unit.streams(queue).give(id, stream.filter(|_| !spoiled), &mut self.released);
        for request in self.released.drain(..).rev() {
            let bytes = self.requests.at(request).job.weight();
            self.lanes.push_front(slot, device, Waiting { request, bytes });
        }
    }
}

/// What became of the attempt to pack a request.
enum Packing {
    Done,
    /// It waits for its stream.
    InLine,
    /// It has to be looked at here.
    Not,
}
