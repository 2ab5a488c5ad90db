//! The client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost_user::message::features;
use virtqueue::RingFeatures;

use super::wire::{self, CONFIG, CREATED, Cipher, Direction, REQUEST, Status};
use crate::compress::{OpenError, Place};
use crate::dma::{Arena, Buffer, DmaError, PAGE};
use crate::pci::{Found, PciError};
use crate::queue::{Queue, QueueError, Segments};
use crate::transport::{Identity, Pci, Socket, Transport, TransportError};

/// The virtio device id of crypto devices.
const DEVICE_ID: u16 = 20;
/// `VIRTIO_CRYPTO_S_HW_READY`.
const READY: u32 = 1;
/// Bytes of the longest IV.
const MAX_IV: usize = 16;
/// Bytes of the longest key.
const MAX_KEY: usize = 64;

/// Which device, and how it is driven.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which device.
    pub place: Place,
    /// Take it even from the kernel's `virtio_crypto`, whose users lose it.
    pub take_from_kernel: bool,
    /// Bytes of the longest request.
    pub max_size: usize,
    /// Requests in flight.
    pub depth: u16,
    /// How long a device may take for anything.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            place: Place::Any,
            take_from_kernel: false,
            max_size: 64 << 10,
            depth: 32,
            deadline: Duration::from_secs(5),
        }
    }
}

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// There is no device that can be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is not ready, or has no queue for data.
    #[error("The crypto device is not ready")]
    NotReady,
    /// It says no.
    #[error("The crypto device answers {0}")]
    Status(Status),
    /// It says nothing.
    #[error("The crypto device does not answer")]
    Silent,
    /// An IV of another length than the cipher's, a longer request than the options allow.
    #[error("The request has the wrong length")]
    Length,
    /// As many requests are in flight as the options allow.
    #[error("All requests are in flight")]
    Full,
}

macro_rules! open_error {
    ($($from:ty),*) => { $(
        impl From<$from> for CryptoError {
            fn from(error: $from) -> Self {
                Self::Open(error.into())
            }
        }
    )* };
}
open_error!(PciError, TransportError, QueueError, DmaError);

/// A key in the device.
#[derive(Debug, PartialEq, Eq)]
pub struct Session {
    id: u64,
    cipher: Cipher,
    direction: Direction,
}

/// Names one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A request that has ended.
#[derive(Debug)]
pub struct Completion {
    /// Which.
    pub ticket: Ticket,
    /// How.
    pub status: Status,
    /// The result; empty unless the status is OK.
    pub output: Vec<u8>,
}

struct Slot {
    table: Buffer,
    source: Buffer,
    result: Buffer,
    flight: Option<(Ticket, usize)>,
}

/// Encrypts and decrypts on a virtio-crypto device.
///
/// ```no_run
/// use guest_driver::crypto::{Cipher, Client, Direction, Options};
///
/// # fn main() -> Result<(), guest_driver::crypto::CryptoError> {
/// let mut client = Client::open(&Options::default())?;
/// let session = client.session(Cipher::AesCbc, Direction::Encrypt, &[7; 16])?;
/// let secret = client.run(&session, &[0; 16], b"sixteen bytes in")?;
/// assert_eq!(secret.len(), 16);
/// client.close(session)?;
/// # Ok(())
/// # }
/// ```
pub struct Client {
    // In this order: the device is reset before its memory goes.
    transport: Box<dyn Transport>,
    control: Queue,
    data: Queue,
    arena: Arc<Arena>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Of the control queue: table, request with key, answer.
    desk: Slot,
    segments: Segments,
    ready: VecDeque<Completion>,
    max_size: usize,
    deadline: Duration,
    ciphers: u32,
    next: u64,
}

impl Client {
    /// Takes a device.
    ///
    /// # Errors
    /// When there is none, or it belongs to somebody else.
    pub fn open(options: &Options) -> Result<Self, CryptoError> {
        Self::on(find(options)?, options)
    }

    /// Drives this device.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn on(mut transport: Box<dyn Transport>, options: &Options) -> Result<Self, CryptoError> {
        let rings = features::VERSION_1 | RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX;
        let accepted = transport.negotiate(rings | RingFeatures::RING_PACKED)?;
        let mut config = [0; CONFIG];
        transport.read_config(0, &mut config)?;
        let word =
            |at: usize| u32::from_le_bytes([config[at], config[at + 1], config[at + 2], config[at + 3]]);
        let (status, queues, ciphers) = (word(0), word(4), word(12));
        let control = u16::try_from(queues).ok().filter(|&queues| queues > 0 && status & READY != 0);
        let control = control.ok_or(CryptoError::NotReady)?;
        let (source, result) = (REQUEST + MAX_IV + options.max_size, options.max_size + 1);
        let pages = |len: usize| len.next_multiple_of(PAGE);
        let depth = usize::from(options.depth.max(1));
        let size = 2 * Queue::footprint() + depth * (PAGE + pages(source) + pages(result)) + 3 * PAGE;
        let arena = Arc::new(transport.memory(size)?);
        let features = RingFeatures::from_bits(accepted);
        let data = Queue::start(&mut *transport, &arena, 0, features)?;
        let control = Queue::start(&mut *transport, &arena, control, features)?;
        transport.start()?;
        let slot = |_| Slot::new(&arena, source, result);
        let slots: Vec<_> = (0..depth).map(slot).collect::<Result<_, _>>()?;
        let desk = Slot::new(&arena, REQUEST + MAX_KEY, CREATED)?;
        Ok(Self {
            transport,
            control,
            data,
            arena,
            free: (0..slots.len()).collect(),
            slots,
            desk,
            segments: Segments::default(),
            ready: VecDeque::new(),
            max_size: options.max_size,
            deadline: options.deadline,
            ciphers,
            next: 0,
        })
    }

    /// Where the device is.
    pub fn describe(&self) -> String {
        self.transport.describe()
    }

    /// Whether the device says that it has a cipher. QEMU's cryptodev names one only and has more.
    pub fn names(&self, cipher: Cipher) -> bool {
        self.ciphers & 1 << cipher as u32 != 0
    }

    /// Gives the device a key for one cipher and direction.
    ///
    /// # Errors
    /// When the device does not take it.
    pub fn session(
        &mut self,
        cipher: Cipher,
        direction: Direction,
        key: &[u8],
    ) -> Result<Session, CryptoError> {
        if key.len() > MAX_KEY {
            return Err(CryptoError::Length);
        }
        let mut answer = [0; CREATED];
        let asked = self.ask(&wire::create(cipher, direction, key.len()), key, &mut answer);
        // No key stays behind.
        self.arena.write(self.desk.source, &[0; REQUEST + MAX_KEY]);
        asked?;
        let id = wire::created(&answer).map_err(CryptoError::Status)?;
        Ok(Session { id, cipher, direction })
    }

    /// Has the device forget a key.
    ///
    /// # Errors
    /// When it does not know it.
    pub fn close(&mut self, session: Session) -> Result<(), CryptoError> {
        let mut answer = [0xff];
        self.ask(&wire::destroy(session.id), &[], &mut answer)?;
        match Status::of(answer[0]) {
            Status::Ok => Ok(()),
            status => Err(CryptoError::Status(status)),
        }
    }

    /// A control request, and its answer.
    fn ask(&mut self, request: &[u8; REQUEST], key: &[u8], answer: &mut [u8]) -> Result<(), CryptoError> {
        let Slot { table, source, result, .. } = self.desk;
        self.arena.write(source, request);
        self.arena.write(source.part(REQUEST, key.len()), key);
        self.arena.write(result.part(0, answer.len()), answer);
        // The key in a descriptor of its own, as Linux has it.
        self.segments.clear();
        self.arena.segments(source.part(0, REQUEST), &mut self.segments.readable);
        self.arena.segments(source.part(REQUEST, key.len()), &mut self.segments.readable);
        self.arena.segments(result.part(0, answer.len()), &mut self.segments.writable);
        self.control.add(&self.segments, table, 0).map_err(|_| CryptoError::Silent)?;
        self.control.publish();
        let begin = Instant::now();
        while self.control.pop().is_none() {
            if begin.elapsed() > self.deadline || self.control.broken() {
                return Err(CryptoError::Silent);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        self.arena.read(result.part(0, answer.len()), answer);
        Ok(())
    }

    /// Starts a request.
    ///
    /// # Errors
    /// When a length is wrong, or everything is in flight.
    pub fn submit(&mut self, session: &Session, iv: &[u8], source: &[u8]) -> Result<Ticket, CryptoError> {
        let ticket = self.enqueue(session, iv, source)?;
        self.data.publish();
        Ok(ticket)
    }

    /// Starts requests on a session, each an IV and a source, with one notification, as many as can be in flight. Returns how
    /// many that were; their tickets are appended to `tickets`.
    ///
    /// # Errors
    /// When a length is wrong; those before are started.
    pub fn submit_batch(
        &mut self,
        session: &Session,
        requests: &[(&[u8], &[u8])],
        tickets: &mut Vec<Ticket>,
    ) -> Result<usize, CryptoError> {
        let mut taken = 0;
        let mut result = Ok(());
        for (iv, source) in requests {
            match self.enqueue(session, iv, source) {
                Ok(ticket) => tickets.push(ticket),
                Err(CryptoError::Full) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            taken += 1;
        }
        self.data.publish();
        result.map(|()| taken)
    }

    fn enqueue(&mut self, session: &Session, iv: &[u8], source: &[u8]) -> Result<Ticket, CryptoError> {
        if iv.len() != session.cipher.iv_len() || source.len() > self.max_size {
            return Err(CryptoError::Length);
        }
        let &slot = self.free.last().ok_or(CryptoError::Full)?;
        let place = &mut self.slots[slot];
        let request = wire::data(session.cipher, session.direction, session.id, source.len());
        self.arena.write(place.source, &request);
        self.arena.write(place.source.part(REQUEST, iv.len()), iv);
        self.arena.write(place.source.part(REQUEST + iv.len(), source.len()), source);
        self.arena.write(place.result.part(source.len(), 1), &[0xff]);
        self.segments.clear();
        let readable = place.source.part(0, REQUEST + iv.len() + source.len());
        self.arena.segments(readable, &mut self.segments.readable);
        self.arena.segments(place.result.part(0, source.len() + 1), &mut self.segments.writable);
        self.data.add(&self.segments, place.table, slot as u32).map_err(|_| CryptoError::Full)?;
        let ticket = Ticket(self.next);
        place.flight = Some((ticket, source.len()));
        self.free.pop();
        self.next += 1;
        Ok(ticket)
    }

    /// The next request that has ended, in the order in which they ended.
    pub fn poll(&mut self) -> Option<Completion> {
        self.ready.pop_front().or_else(|| self.look())
    }

    fn look(&mut self) -> Option<Completion> {
        let slot = self.data.pop()?.cookie as usize;
        self.free.push(slot);
        let place = &mut self.slots[slot];
        let (ticket, len) = place.flight.take()?;
        let mut status = [0xff];
        self.arena.read(place.result.part(len, 1), &mut status);
        let status = Status::of(status[0]);
        let mut output = Vec::new();
        if status == Status::Ok {
            output.resize(len, 0);
            self.arena.read(place.result.part(0, len), &mut output);
        }
        Some(Completion { ticket, status, output })
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Waits for the next request to end; `None` when there is none, or the device does not answer in time.
    pub fn wait(&mut self) -> Option<Completion> {
        let begin = Instant::now();
        loop {
            if let Some(completion) = self.poll() {
                return Some(completion);
            }
            if self.in_flight() == 0 || begin.elapsed() > self.deadline || self.data.broken() {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Runs a request and waits for it. Others that end meanwhile stay for [`Client::poll`].
    ///
    /// # Errors
    /// When the device refuses it or does not answer.
    pub fn run(&mut self, session: &Session, iv: &[u8], source: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let ticket = self.submit(session, iv, source)?;
        let begin = Instant::now();
        loop {
            match self.look() {
                Some(Completion { ticket: one, status, output }) if one == ticket => {
                    return if status == Status::Ok { Ok(output) } else { Err(CryptoError::Status(status)) };
                }
                Some(other) => self.ready.push_back(other),
                None if begin.elapsed() > self.deadline || self.data.broken() => {
                    return Err(CryptoError::Silent);
                }
                None => std::thread::yield_now(),
            }
        }
    }
}

impl Slot {
    fn new(arena: &Arena, source: usize, result: usize) -> Result<Self, DmaError> {
        Ok(Self {
            table: arena.alloc(PAGE)?,
            source: arena.alloc(source)?,
            result: arena.alloc(result)?,
            flight: None,
        })
    }
}

fn find(options: &Options) -> Result<Box<dyn Transport>, CryptoError> {
    let harmless = options.take_from_kernel.then_some("virtio_crypto");
    let open = |found: &Found| Pci::take(found, Identity::Device(DEVICE_ID), harmless);
    match &options.place {
        Place::Nowhere => Err(OpenError::Absent.into()),
        Place::Socket(path) => Ok(Box::new(Socket::connect(path)?)),
        Place::Pci(address) => {
            let found = Found::at(address)?.filter(|found| found.id == DEVICE_ID);
            Ok(Box::new(open(&found.ok_or(OpenError::Absent)?)?))
        }
        Place::Any => {
            let mut refused = CryptoError::from(OpenError::Absent);
            for found in Found::all()?.iter().filter(|found| found.id == DEVICE_ID) {
                match open(found) {
                    Ok(transport) => return Ok(Box::new(transport)),
                    Err(error) => refused = error.into(),
                }
            }
            Err(refused)
        }
    }
}
