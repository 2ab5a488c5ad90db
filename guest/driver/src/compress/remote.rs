//! The device, as long as there is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compress_protocol::{
    CONFIG_LEN, Checksum, Config, Format, HEADER_LEN, Header, RESPONSE_LEN, Response, feature,
};
use vhost_user::message::features;
use virtqueue::RingFeatures;

use super::options::{OpenError, Options};
use super::request::{Answer, Operation, Request, Ticket, check};
use super::slots::{Flight, Slot};
use crate::dma::Arena;
use crate::fallback::Reason;
use crate::queue::{Queue, QueueError, Segments};
use crate::transport::{Identity, Transport};

/// How long a device may take to say what it is.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Looks between two questions whether the device is still there: they cost more than a look at a ring.
const LOOKS: u32 = 4096;

/// What came back.
pub(super) struct Returned {
    pub flight: Flight,
    /// `None`: nothing that makes sense.
    pub answer: Option<Answer>,
    /// Where it was, if its source is of interest.
    pub slot: usize,
}

/// A device that is driven.
///
/// Fields are dropped in this order: the device is reset before its memory goes.
pub(super) struct Remote {
    transport: Box<dyn Transport>,
    queues: Vec<Queue>,
    slots: Vec<Slot>,
    /// Free slots, by queue.
    free: Vec<Vec<usize>>,
    next_queue: usize,
    segments: Segments,
    pub arena: Arc<Arena>,
    pub config: Config,
    features: u64,
    max_src: usize,
    max_dst: usize,
    looks: u32,
    dirty: bool,
}

impl Remote {
    /// Brings the device to life and asks what it can do.
    pub fn start(mut transport: Box<dyn Transport>, options: &Options) -> Result<Self, OpenError> {
        let carried = transport.identity() == Identity::Carrier;
        let packed = if options.packed { RingFeatures::RING_PACKED } else { 0 };
        let rings = features::VERSION_1 | RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX | packed;
        // A carrier's feature bits mean something else.
        let own = if carried { 0 } else { feature::ALL };
        let accepted = transport.negotiate(rings | own)?;
        let count = transport.queues().clamp(1, options.queues.max(1));
        let (max_src, max_dst) = options.buffers();
        let depth = usize::from(options.depth.max(1));
        let size = usize::from(count) * Queue::footprint() + depth * Slot::footprint(max_src, max_dst);
        let arena = Arc::new(transport.memory(size)?);
        let ring_features = RingFeatures::from_bits(accepted);
        let start = |index| Queue::start(&mut *transport, &arena, index, ring_features);
        let queues: Vec<_> = (0..count).map(start).collect::<Result<_, QueueError>>()?;
        transport.start()?;
        let slot = |_| Slot::new(&arena, max_src, max_dst);
        let slots: Vec<_> = (0..depth).map(slot).collect::<Result<_, _>>()?;
        let mut remote = Self {
            transport,
            free: vec![Vec::new(); queues.len()],
            queues,
            slots,
            next_queue: 0,
            segments: Segments::default(),
            arena,
            config: Config::default(),
            features: accepted & own,
            max_src,
            max_dst,
            looks: 0,
            dirty: false,
        };
        remote.config = remote.get_config()?;
        if carried {
            remote.features = remote.config.features;
        }
        remote.limit()?;
        Ok(remote)
    }

    /// Asks for the configuration through the first queue, which works however the device is carried.
    fn get_config(&mut self) -> Result<Config, OpenError> {
        self.lay_out(0, 0, CONFIG_LEN);
        let table = self.slots[0].table;
        self.arena.write(self.slots[0].source, &Header::get_config().encode());
        self.queues[0].add(&self.segments, table, 0).map_err(|_| OpenError::Cramped)?;
        self.queues[0].publish();
        let begin = Instant::now();
        while self.queues[0].pop().is_none() {
            if begin.elapsed() > FIRST_ANSWER || self.queues[0].broken() {
                return Err(OpenError::Silent);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let mut bytes = [0; CONFIG_LEN];
        self.arena.read(self.slots[0].result, &mut bytes);
        let response = self.response(0, CONFIG_LEN);
        let config = Config::decode(&bytes);
        match config.check() {
            Ok(()) if response.is_ok() => Ok(config),
            Ok(()) => Err(OpenError::Silent),
            Err(foreign) => Err(OpenError::Foreign(foreign)),
        }
    }

    /// Shares the slots out, and keeps requests to what device, rings and memory take.
    fn limit(&mut self) -> Result<(), OpenError> {
        self.max_src = self.max_src.min(self.config.max_src as usize);
        self.max_dst = self.max_dst.min(self.config.max_dst as usize);
        let rings = self.queues.iter().map(Queue::max_segments).min().unwrap_or(0);
        let most = match self.config.max_segments {
            0 => rings,
            most => rings.min(most.into()),
        };
        while (0..self.slots.len()).any(|slot| self.pieces(slot) > most) {
            (self.max_src, self.max_dst) = (self.max_src / 2, self.max_dst / 2);
            if self.max_src == 0 {
                return Err(OpenError::Cramped);
            }
        }
        let count = self.free.len();
        for slot in (0..self.slots.len()).rev() {
            self.free[slot % count].push(slot);
        }
        Ok(())
    }

    /// Descriptors that a slot's largest request takes.
    fn pieces(&mut self, slot: usize) -> usize {
        self.lay_out(slot, self.max_src, self.max_dst);
        self.segments.len()
    }

    /// What a slot's request looks like to the device.
    fn lay_out(&mut self, slot: usize, src_len: usize, room: usize) {
        let Slot { source, result, .. } = &self.slots[slot];
        self.segments.clear();
        self.arena.segments(source.part(0, HEADER_LEN + src_len), &mut self.segments.readable);
        self.arena.segments(result.part(0, room + RESPONSE_LEN), &mut self.segments.writable);
    }

    fn response(&self, slot: usize, room: usize) -> Response {
        let mut bytes = [0; RESPONSE_LEN];
        self.arena.read(self.slots[slot].result.part(room, RESPONSE_LEN), &mut bytes);
        Response::decode(&bytes)
    }

    /// Why the device cannot have a request, if it cannot.
    pub fn refuses(&self, request: &Request<'_>) -> Option<Reason> {
        let known = match request.operation {
            Operation::Compress { format, level } => {
                self.config.compresses(format) && self.config.levels(format).contain(level)
            }
            Operation::Decompress { format } => self.config.decompresses(format),
            Operation::Checksum => request.checksum != Checksum::None,
        };
        let summed = request.checksum == Checksum::None
            || self.features & feature::CHECKSUM != 0 && self.config.sums(request.checksum);
        let verified = !request.verify || self.features & feature::VERIFY != 0;
        if !known || !summed || !verified {
            return Some(Reason::Unsupported);
        }
        let fits = request.source.len() <= self.max_src && request.room <= self.max_dst;
        (!fits).then_some(Reason::TooLarge)
    }

    /// The longest source and the longest result of a request.
    pub fn limits(&self) -> (usize, usize) {
        (self.max_src, self.max_dst)
    }

    /// Whether streams with history can be used.
    pub fn streams(&self, format: Format) -> bool {
        self.features & feature::STREAM != 0 && format.streams()
    }

    /// Queues that are driven.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Where it is.
    pub fn describe(&self) -> String {
        self.transport.describe()
    }

    /// How often it was notified.
    pub fn kicks(&self) -> u64 {
        self.queues.iter().map(Queue::kicks).sum()
    }

    /// Puts a request into a ring, not yet visible to the device; gives the buffer back when everything is in flight.
    pub fn add(
        &mut self,
        ticket: Ticket,
        request: &Request<'_>,
        due: Instant,
        output: Vec<u8>,
    ) -> Result<(), Vec<u8>> {
        let count = self.free.len();
        let queue = (0..count).map(|ahead| (self.next_queue + ahead) % count);
        let Some(queue) = queue.into_iter().find(|&queue| !self.free[queue].is_empty()) else {
            return Err(output);
        };
        self.next_queue = (queue + 1) % count;
        let header = request.header().with_tag(ticket.0);
        match self.put(queue, &header, request.source, request.room) {
            Some(slot) => {
                self.slots[slot].flight = Some(Flight::new(ticket, request, due, output));
                Ok(())
            }
            None => Err(output),
        }
    }

    /// A header and a source into a free slot of a queue, and that into the ring. Which slot, if there was room.
    fn put(&mut self, queue: usize, header: &Header, source: &[u8], room: usize) -> Option<usize> {
        let slot = *self.free[queue].last()?;
        self.lay_out(slot, source.len(), room);
        let Slot { source: buffer, result, table, .. } = &self.slots[slot];
        self.arena.write(*buffer, &header.encode());
        self.arena.write(buffer.part(HEADER_LEN, source.len()), source);
        // What is there is of an earlier request: no status by this number exists.
        self.arena.write(result.part(room, RESPONSE_LEN), &[0xff; RESPONSE_LEN]);
        self.queues[queue].add(&self.segments, *table, slot as u32).ok()?;
        self.free[queue].pop();
        self.dirty = true;
        Some(slot)
    }

    /// Shows what was added to the device.
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.queues.iter_mut().for_each(Queue::publish);
        }
    }

    /// Looks for a request that has ended. Its result is in the flight's buffer. One that was answered otherwise
    /// meanwhile only gives its slot back.
    pub fn pop(&mut self) -> Option<Returned> {
        for queue in 0..self.queues.len() {
            while let Some(used) = self.queues[queue].pop() {
                let slot = used.cookie as usize;
                self.free[queue].push(slot);
                // One without a flight was a stream's, and is late.
                let Some(mut flight) = self.slots[slot].flight.take() else { continue };
                let Some(output) = &mut flight.output else { continue };
                output.clear();
                let response = self.response(slot, flight.room);
                let checked = check(&response, flight.src_len, flight.room);
                if let Some((Answer { status: compress_protocol::Status::Ok, .. }, produced)) = checked {
                    output.resize(produced, 0);
                    self.arena.read(self.slots[slot].result.part(0, produced), output);
                }
                return Some(Returned { flight, answer: checked.map(|(answer, _)| answer), slot });
            }
        }
        None
    }

    /// The source of the request that was last in a slot.
    pub fn source(&self, slot: usize, len: usize) -> Vec<u8> {
        self.slots[slot].source(&self.arena, len)
    }

    /// Takes one request that is late away from the device, which keeps the slot until it has done it.
    pub fn late(&mut self, now: Instant) -> Option<Returned> {
        let late = |slot: &Slot| {
            slot.flight.as_ref().is_some_and(|flight| flight.output.is_some() && flight.due <= now)
        };
        let slot = self.slots.iter().position(late)?;
        self.abandon(slot)
    }

    /// Takes any request away from a device that is lost.
    pub fn orphan(&mut self) -> Option<Returned> {
        let waits = |slot: &Slot| slot.flight.as_ref().is_some_and(|flight| flight.output.is_some());
        let slot = self.slots.iter().position(waits)?;
        self.abandon(slot)
    }

    fn abandon(&mut self, slot: usize) -> Option<Returned> {
        let flight = self.slots[slot].flight.as_mut()?;
        let output = flight.output.take();
        let flight = Flight { output, ..*flight };
        Some(Returned { flight, answer: None, slot })
    }

    /// Whether the device is gone or has broken its rings. Asks only once in a while.
    pub fn lost(&mut self) -> bool {
        self.looks += 1;
        if self.looks < LOOKS {
            return false;
        }
        self.check_now()
    }

    /// The same, at once.
    pub fn check_now(&mut self) -> bool {
        self.looks = 0;
        self.queues.iter().any(Queue::broken) || self.transport.lost()
    }

    /// A request of a stream, and its response: always on the first queue, which streams belong to. `None` when the
    /// device has not answered by then; the slot is the device's until it does.
    pub fn exchange(
        &mut self,
        header: &Header,
        source: &[u8],
        output: &mut Vec<u8>,
        due: Instant,
    ) -> Option<Response> {
        let room = header.dst_len as usize;
        let slot = self.put(0, header, source, room)?;
        self.publish();
        loop {
            match self.queues[0].pop() {
                Some(used) if used.cookie as usize == slot => break,
                // One that was given up before.
                Some(used) => self.give_back(used.cookie as usize),
                None if self.lost() || Instant::now() > due => return None,
                None => std::thread::yield_now(),
            }
        }
        self.free[0].push(slot);
        let response = self.response(slot, room);
        let (_, produced) = check(&response, source.len(), room)?;
        let start = output.len();
        output.resize(start + produced, 0);
        self.arena.read(self.slots[slot].result.part(0, produced), &mut output[start..]);
        Some(response)
    }

    fn give_back(&mut self, slot: usize) {
        if let Some(place) = self.slots.get_mut(slot) {
            place.flight = None;
            self.free[0].push(slot);
        }
    }
}
