//! A small user-space network driver: it checks every byte that arrives, and a test can make it misbehave.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memory::{GuestAddr, MemoryMap, MemoryTable, RegionConfig, UserAddr};
use vhost_user::frontend::driver::{DriverQueue, Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::protocol;
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{RingAddresses, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::frame;

/// Bytes of the virtio-net header with VERSION_1 (virtio 1.3 §5.1.6.1).
pub const HEADER: usize = 12;
/// Features of the device and of the rings that are taken when they are offered.
pub mod features {
    /// The device completes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames without a checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver takes TCP over IPv4 to be segmented.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The device takes TCP over IPv4 to be segmented.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Frames may span buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// A device of virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Descriptors of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Events at an index.
    pub const EVENT_IDX: u64 = 1 << 29;
}

const BASE: GuestAddr = GuestAddr(1 << 20);
const MEMORY: u64 = 24 << 20;
const RECEIVE_BUFFER: u32 = 2048;
/// A frame of 64 KiB with its header.
const SEND_BUFFER: u32 = 0x1_1000;
const SEND_BUFFERS: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// How to attach.
#[derive(Clone, Copy)]
pub struct Options {
    /// Packed rings.
    pub packed: bool,
    /// Entries of a ring.
    pub size: u16,
    /// Pairs of queues.
    pub pairs: u16,
    /// Features to take, all of which must be offered.
    pub features: u64,
    /// Whether to give the device receive buffers.
    pub receive: bool,
}

impl Default for Options {
    fn default() -> Self {
        let features = features::MRG_RXBUF | features::INDIRECT_DESC | features::EVENT_IDX;
        Self { packed: false, size: 256, pairs: 1, features, receive: true }
    }
}

impl Options {
    /// Packed or split rings.
    pub fn packed(packed: bool) -> Self {
        Self { packed, ..Self::default() }
    }
}

/// A frame as it arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    /// The virtio-net header.
    pub header: [u8; HEADER],
    /// Everything after it.
    pub bytes: Vec<u8>,
}

/// Memory shared with the device: a file rather than a memfd, so that a test can cut it.
struct Shared {
    file: File,
    table: Arc<MemoryTable>,
    used: u64,
    // Keeps the mapping.
    _map: MemoryMap,
}

impl Shared {
    fn new() -> Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(MEMORY)?;
        let mut map = MemoryMap::new();
        let table = map.add(Self::region(), file.try_clone()?.into())?;
        Ok(Self { file, table, used: 0, _map: map })
    }

    fn region() -> RegionConfig {
        RegionConfig { guest: BASE, len: MEMORY, user: UserAddr(0x7f00_0000_0000), mmap_offset: 0 }
    }

    /// Takes whole pages.
    fn alloc(&mut self, len: usize) -> Result<GuestAddr> {
        let at = self.used;
        self.used += (len as u64).next_multiple_of(4096);
        ensure!(self.used <= MEMORY, "No room for {len} bytes of buffers");
        Ok(GuestAddr(BASE.0 + at))
    }

    fn write(&self, addr: GuestAddr, bytes: &[u8]) -> Result<()> {
        self.table.slice(addr, bytes.len())?.write(0, bytes);
        Ok(())
    }
}

/// An attached port.
pub struct NetDriver {
    /// The connection with the rings: receive rings have even indices, transmit rings odd ones.
    pub session: Session,
    memory: Shared,
    receive: GuestAddr,
    send: GuestAddr,
    free_send: Vec<u32>,
    mergeable: bool,
}

impl NetDriver {
    /// Attaches one pair of split rings to the port that listens at `socket`.
    ///
    /// # Errors
    /// When the backend refuses anything.
    pub fn attach(socket: &Path) -> Result<Self> {
        Self::attach_with(socket, Options::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As for [`NetDriver::attach`].
    pub fn attach_with(socket: &Path, options: Options) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("Cannot connect to {}", socket.display()))?;
        Self::on_stream(stream, options)
    }

    /// The same on a connection that is there already, whoever made it.
    ///
    /// # Errors
    /// As for [`NetDriver::attach`].
    pub fn on_stream(stream: UnixStream, options: Options) -> Result<Self> {
        let wanted = options.features
            | features::VERSION_1
            | if options.pairs > 1 { features::MQ } else { 0 }
            | if options.packed { features::RING_PACKED } else { 0 };
        let mut session = Session::negotiate(stream, wanted, USEFUL_PROTOCOL_FEATURES)?;
        let missing = wanted & !session.features();
        ensure!(missing == 0, "Features {missing:#x} are not offered");
        let mut memory = Shared::new()?;
        session.share_memory(&Shared::region(), memory.file.as_fd())?;
        for _ in 0..2 * options.pairs {
            session.rings.push(ring(&session, &mut memory, options.size)?);
        }
        let buffers = usize::from(options.pairs) * usize::from(options.size);
        let receive = memory.alloc(buffers * RECEIVE_BUFFER as usize)?;
        let send = memory.alloc((SEND_BUFFERS * SEND_BUFFER) as usize)?;
        let mergeable = session.features() & features::MRG_RXBUF != 0;
        let free_send = (0..SEND_BUFFERS).collect();
        let mut driver = Self { session, memory, receive, send, free_send, mergeable };
        if options.receive {
            driver.post_all()?;
        }
        driver.start()?;
        Ok(driver)
    }

    fn post_all(&mut self) -> Result<()> {
        for pair in 0..self.pairs() {
            for slot in 0..u32::from(self.ring(2 * pair).size) {
                self.post(pair, slot)?;
            }
            self.ring(2 * pair).publish()?;
        }
        Ok(())
    }

    /// Starts the rings where they are.
    fn start(&mut self) -> Result<()> {
        let rings = std::mem::take(&mut self.session.rings);
        for (index, ring) in rings.iter().enumerate() {
            let base = ring.ring.base_for_restart();
            let index = index as u16;
            self.session.start_queue(index, ring.size, base, &ring.addresses, &ring.kick, &ring.call)?;
            ring.kick.write(1)?;
        }
        self.session.rings = rings;
        self.driver_ok()
    }

    /// Some backends wait for the last step of virtio 1.3 §3.1.1: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
    fn driver_ok(&mut self) -> Result<()> {
        if self.session.protocol_features() & protocol::STATUS != 0 {
            self.session.frontend.set_status(1 | 2 | 8 | 4)?;
        }
        Ok(())
    }

    /// Goes on after the daemon has been restarted: same memory, same rings.
    ///
    /// # Errors
    /// When it refuses.
    pub fn reconnect(&mut self, socket: &Path) -> Result<()> {
        self.session.reconnect(UnixStream::connect(socket)?)?;
        self.driver_ok()
    }

    /// Sends one frame on the first pair, in one descriptor.
    ///
    /// # Errors
    /// When the device takes none for a long time.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_all(&[frame.to_vec()])
    }

    /// Sends frames on the first pair with one kick at the end.
    ///
    /// # Errors
    /// As for [`NetDriver::send`].
    pub fn send_all(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        for (index, frame) in frames.iter().enumerate() {
            // Descriptors in all ways: header and frame together, apart, and the frame in pieces.
            let cuts: &[usize] = match index % 3 {
                0 => &[],
                1 => &[HEADER],
                _ => &[5, HEADER + 17, HEADER + 40],
            };
            self.queue(0, &[0; HEADER], frame, cuts)?;
        }
        self.ring(1).publish()?;
        Ok(())
    }

    /// Sends one frame with a header of the caller's on a pair.
    ///
    /// # Errors
    /// As for [`NetDriver::send`].
    pub fn send_with(&mut self, pair: u16, header: &[u8; HEADER], frame: &[u8]) -> Result<()> {
        self.queue(pair, header, frame, &[HEADER])?;
        self.ring(2 * pair + 1).publish()?;
        Ok(())
    }

    /// Puts a frame into the transmit ring, its bytes cut into descriptors at `cuts`.
    fn queue(&mut self, pair: u16, header: &[u8], frame: &[u8], cuts: &[usize]) -> Result<()> {
        let bytes = [header, frame].concat();
        ensure!(bytes.len() <= SEND_BUFFER as usize, "a frame of {} bytes is too long", frame.len());
        self.wait_room(pair)?;
        let slot = self.free_send.pop().context("No send buffer is free")?;
        let at = GuestAddr(self.send.0 + u64::from(slot * SEND_BUFFER));
        self.memory.write(at, &bytes)?;
        let mut segments = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().filter(|cut| *cut < bytes.len()).chain([bytes.len()]) {
            segments.push(Segment { addr: GuestAddr(at.0 + from as u64), len: (to - from) as u32 });
            from = to;
        }
        self.ring(2 * pair + 1).ring.add(&segments, &[], slot)?;
        Ok(())
    }

    fn wait_room(&mut self, pair: u16) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(used) = self.ring(2 * pair + 1).ring.pop() {
                self.free_send.push(used.cookie);
            }
            if !self.free_send.is_empty() && self.ring(2 * pair + 1).ring.free() >= 4 {
                return Ok(());
            }
            self.ring(2 * pair + 1).publish()?;
            ensure!(Instant::now() < deadline, "The transmit ring stays full");
            std::thread::yield_now();
        }
    }

    /// Waits until the device has taken every frame that was sent.
    ///
    /// # Errors
    /// When it does not.
    pub fn drained(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.free_send.len() < SEND_BUFFERS as usize {
            for index in (1..self.session.rings.len()).step_by(2) {
                while let Some(used) = self.session.rings[index].ring.pop() {
                    self.free_send.push(used.cookie);
                }
            }
            ensure!(Instant::now() < deadline, "The device does not take what was sent");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The next frame on any pair, or none within `timeout`.
    ///
    /// # Errors
    /// When what arrived is no frame.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<Received>> {
        let deadline = Instant::now() + timeout;
        loop {
            for pair in 0..self.pairs() {
                if let Some(received) = self.take(pair)? {
                    return Ok(Some(received));
                }
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// When none comes.
    pub fn receive(&mut self) -> Result<Received> {
        self.poll(PATIENCE)?.context("No frame arrives")
    }

    /// Takes `frames` from the ring in this order, and nothing else.
    ///
    /// # Errors
    /// At the first that differs.
    pub fn expect_all(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        for (index, frame) in frames.iter().enumerate() {
            let received = self.receive().with_context(|| format!("Frame {index} of {}", frames.len()))?;
            same(&received.bytes, frame).with_context(|| format!("Frame {index} of {}", frames.len()))?;
        }
        Ok(())
    }

    /// Nothing arrives for a while.
    ///
    /// # Errors
    /// When something does.
    pub fn hears_nothing(&mut self) -> Result<()> {
        if let Some(received) = self.poll(Duration::from_millis(100))? {
            bail!(
                "A frame arrives that should not: {:02x?}",
                &received.bytes[..received.bytes.len().min(60)]
            );
        }
        Ok(())
    }

    /// Throws away what has arrived.
    ///
    /// # Errors
    /// As for [`NetDriver::poll`].
    pub fn clear(&mut self) -> Result<()> {
        while self.poll(Duration::from_millis(20))?.is_some() {}
        Ok(())
    }

    /// Number of pairs.
    pub fn pairs(&self) -> u16 {
        self.session.rings.len() as u16 / 2
    }

    /// One ring.
    pub fn ring(&mut self, index: u16) -> &mut DriverQueue {
        &mut self.session.rings[usize::from(index)]
    }

    /// Writes anything anywhere in the shared memory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn put(&self, addr: GuestAddr, bytes: &[u8]) -> Result<()> {
        self.memory.write(addr, bytes)
    }

    /// Where a test may put what it likes: the send buffers.
    pub fn scratch(&self) -> GuestAddr {
        self.send
    }

    /// The first address behind the shared memory.
    pub fn end(&self) -> GuestAddr {
        GuestAddr(BASE.0 + MEMORY)
    }

    /// Cuts the file behind the shared memory. This side must not touch the memory any more.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn truncate_memory(&self) -> Result<()> {
        Ok(self.memory.file.set_len(0)?)
    }

    /// Has the device report if it gives up `ring` (vhost-user: SET_VRING_ERR); read by [`ErrorEvent::came`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn watch_errors(&mut self, ring: u16) -> Result<ErrorEvent> {
        // A write is a write, and unlike an eventfd a socket can be read with a time limit.
        let (ours, theirs) = UnixStream::pair()?;
        self.session.frontend.set_vring_err(ring, Some(theirs.as_fd()))?;
        Ok(ErrorEvent(ours))
    }

    /// Gives a receive buffer to the device.
    fn post(&mut self, pair: u16, slot: u32) -> Result<()> {
        let segment = Segment { addr: self.receive_buffer(pair, slot), len: RECEIVE_BUFFER };
        self.ring(2 * pair).ring.add(&[], &[segment], slot)?;
        Ok(())
    }

    fn receive_buffer(&self, pair: u16, slot: u32) -> GuestAddr {
        let size = self.session.rings[usize::from(2 * pair)].size;
        let index = u64::from(pair) * u64::from(size) + u64::from(slot);
        GuestAddr(self.receive.0 + index * u64::from(RECEIVE_BUFFER))
    }

    fn take(&mut self, pair: u16) -> Result<Option<Received>> {
        let Some(first) = self.take_buffer(pair)? else { return Ok(None) };
        ensure!(first.len() >= HEADER, "{} bytes are no header", first.len());
        let mut header = [0; HEADER];
        header.copy_from_slice(&first[..HEADER]);
        let mut bytes = first[HEADER..].to_vec();
        // virtio 1.3 §5.1.6.4: num_buffers, always set by a device with VERSION_1.
        let count = u16::from_le_bytes([header[10], header[11]]);
        ensure!(count == 1 || self.mergeable, "{count} buffers without MRG_RXBUF");
        for _ in 1..count {
            let deadline = Instant::now() + PATIENCE;
            let more = loop {
                match self.take_buffer(pair)? {
                    Some(more) => break more,
                    None => ensure!(Instant::now() < deadline, "Of {count} buffers some are missing"),
                }
            };
            bytes.extend(more);
        }
        self.ring(2 * pair).publish()?;
        Ok(Some(Received { header, bytes }))
    }

    fn take_buffer(&mut self, pair: u16) -> Result<Option<Vec<u8>>> {
        let Some(used) = self.ring(2 * pair).ring.pop() else {
            ensure!(!self.ring(2 * pair).ring.broken(), "The device used a buffer that it did not have");
            return Ok(None);
        };
        ensure!(used.len <= RECEIVE_BUFFER, "{} bytes in a buffer of {RECEIVE_BUFFER}", used.len);
        let mut bytes = vec![0; used.len as usize];
        self.memory.table.slice(self.receive_buffer(pair, used.cookie), bytes.len())?.read(0, &mut bytes);
        self.post(pair, used.cookie)?;
        Ok(Some(bytes))
    }
}

/// A driver ring at its start in memory of its own.
fn ring(session: &Session, memory: &mut Shared, size: u16) -> Result<DriverQueue> {
    let features = session.ring_features();
    let (desc, driver, device) = ring_sizes(features.format(), size);
    let addresses = RingAddresses {
        desc: memory.alloc(desc)?,
        driver: memory.alloc(driver)?,
        device: memory.alloc(device)?,
    };
    let ring = DriverRing::in_table(&memory.table, &addresses, features.format(), size, features)?;
    let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
    Ok(DriverQueue { ring, kick: event()?, call: event()?, addresses, size })
}

/// What the device writes to when it gives up a ring.
pub struct ErrorEvent(UnixStream);

impl ErrorEvent {
    /// Whether it did, within a few seconds.
    ///
    /// # Errors
    /// None in practice.
    pub fn came(&self) -> Result<bool> {
        self.0.set_read_timeout(Some(PATIENCE))?;
        Ok((&self.0).read(&mut [0; 8]).is_ok_and(|count| count == 8))
    }
}

/// Frames from `from` reach `to` as they are, in their order.
///
/// # Errors
/// When any is missing or differs.
pub fn flows(from: &mut NetDriver, to: &mut NetDriver, frames: &[Vec<u8>]) -> Result<()> {
    // A window, so that no ring overflows.
    for window in frames.chunks(32) {
        from.send_all(window)?;
        to.expect_all(window)?;
    }
    from.drained()
}

/// Frames of many lengths with different contents.
pub fn assortment(dst: frame::Mac, src: frame::Mac, seed: u32) -> Vec<Vec<u8>> {
    let lengths =
        [0, 1, 46, 47, 64, 113, 114, 115, 116, 117, 128, 241, 242, 243, 256, 512, 1000, 1024, 1499, 1500];
    let frame = |(index, len): (usize, &usize)| frame::plain(dst, src, *len, seed + index as u32);
    lengths.iter().enumerate().map(frame).collect()
}

/// An error that says where two frames differ.
fn same(found: &[u8], wanted: &[u8]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let at = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(found.len().min(wanted.len()));
    let piece = |bytes: &[u8]| format!("{:02x?}", &bytes[at.min(bytes.len())..bytes.len().min(at + 16)]);
    bail!(
        "{} bytes instead of {}, different from byte {at} on: {} instead of {}",
        found.len(),
        wanted.len(),
        piece(found),
        piece(wanted)
    )
}
