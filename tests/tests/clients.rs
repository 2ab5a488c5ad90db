//! Drivers and frontends nobody here wrote, without a VM: the crates `virtio-driver` and `vhost`.
#![expect(unsafe_code, reason = "virtio-driver takes buffers as raw pointers into the shared memory")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::daemon::Daemon;
use e2e::image;
use memory::{GuestAddr, OwnMemory};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

const QUEUES: usize = 2;
const DEPTH: usize = 16;
const BLOCK: usize = 8192;
const DISK_BLOCKS: usize = 512;

/// A virtio-driver client with a buffer for each request in flight.
struct Client {
    // Before the transport and the memory they point into.
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: OwnMemory,
}

impl Client {
    fn connect(socket: &Path, packed: bool) -> Result<Self> {
        let mut ring = VirtioFeatureFlags::VERSION_1
            | VirtioFeatureFlags::RING_EVENT_IDX
            | VirtioFeatureFlags::RING_INDIRECT_DESC;
        ring.set(VirtioFeatureFlags::RING_PACKED, packed);
        let device = VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::MQ
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES;
        let path = socket.to_str().context("The socket's path is not UTF-8")?;
        let transport =
            VhostUser::new(path, ring.bits() | device.bits()).map_err(|error| anyhow!("{error:?}"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let negotiated = transport.get_features();
        ensure!(
            negotiated & VirtioFeatureFlags::RING_PACKED.bits() == ring.bits() & (1 << 34),
            "packed rings"
        );

        let memory = OwnMemory::new(QUEUES * DEPTH * BLOCK, GuestAddr(0))?;
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, QUEUES, 128)?;
        let mut client = Self { queues, transport, memory };
        let base = client.buffer(0)? as usize;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&client.memory.fd());
        client
            .transport
            .map_mem_region(base, QUEUES * DEPTH * BLOCK, fd, 0)
            .map_err(|error| anyhow!("{error:?}"))?;
        Ok(client)
    }

    /// Host address of a slot's buffer.
    fn buffer(&self, slot: usize) -> Result<*mut u8> {
        Ok(self.memory.slice(GuestAddr((slot * BLOCK) as u64), BLOCK)?.range().base.cast())
    }

    fn fill(&self, slot: usize, byte: u8) -> Result<()> {
        self.memory.slice(GuestAddr((slot * BLOCK) as u64), BLOCK)?.fill(byte);
        Ok(())
    }

    fn holds(&self, slot: usize, byte: u8) -> Result<bool> {
        let mut bytes = vec![0; BLOCK];
        self.memory.slice(GuestAddr((slot * BLOCK) as u64), BLOCK)?.read(0, &mut bytes);
        Ok(bytes.iter().all(|found| *found == byte))
    }

    fn write(&mut self, queue: usize, slot: usize, block: usize) -> Result<()> {
        let buffer = self.buffer(slot)?;
        // SAFETY: the buffer is BLOCK bytes of the mapped memory and stays until the request has completed.
        Ok(unsafe { self.queues[queue].write_raw((block * BLOCK) as u64, buffer, BLOCK, slot) }?)
    }

    fn read(&mut self, queue: usize, slot: usize, block: usize) -> Result<()> {
        let buffer = self.buffer(slot)?;
        // SAFETY: as for `write`.
        Ok(unsafe { self.queues[queue].read_raw((block * BLOCK) as u64, buffer, BLOCK, slot) }?)
    }

    /// Notifies the device and waits until `count` requests of a queue have completed; returns errors by slot.
    fn complete(&mut self, queue: usize, count: usize) -> Result<()> {
        if self.queues[queue].avail_notif_needed() {
            self.transport.get_submission_notifier(queue).notify()?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut done = 0;
        while done < count {
            for completion in self.queues[queue].completions() {
                ensure!(completion.ret == 0, "request {} failed with {}", completion.context, completion.ret);
                done += 1;
            }
            ensure!(Instant::now() < deadline, "{done} of {count} requests completed in time");
            std::thread::yield_now();
        }
        ensure!(done == count, "{done} completions for {count} requests");
        Ok(())
    }
}

/// Writes, overwrites, zeroes, discards, flushes and reads at full depth; every byte is checked.
fn exercise(packed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", ((DISK_BLOCKS * BLOCK) >> 20) as u64)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    let mut client = Client::connect(&socket, packed)?;
    ensure!(
        u64::from(client.transport.get_config()?.capacity) == (DISK_BLOCKS * BLOCK / 512) as u64,
        "capacity"
    );

    // Each block holds one repeated byte that depends on the block and the round.
    let value = |block: usize, round: usize| (block * 7 + round * 31) as u8 | 1;
    for round in 0..3 {
        for first in (0..DISK_BLOCKS).step_by(DEPTH) {
            let queue = first / DEPTH % QUEUES;
            for slot in 0..DEPTH {
                client.fill(slot, value(first + slot, round))?;
                client.write(queue, slot, first + slot)?;
            }
            client.complete(queue, DEPTH)?;
        }
    }
    client.queues[0].write_zeroes(0, (4 * BLOCK) as u64, false, 0)?;
    client.queues[0].write_zeroes((4 * BLOCK) as u64, (4 * BLOCK) as u64, true, 1)?;
    client.queues[0].discard((8 * BLOCK) as u64, (8 * BLOCK) as u64, 2)?;
    client.complete(0, 3)?;
    client.queues[0].flush(0)?;
    client.complete(0, 1)?;

    for first in (0..DISK_BLOCKS).step_by(DEPTH) {
        // Through the other queue than they were written.
        let queue = (first / DEPTH + 1) % QUEUES;
        for slot in 0..DEPTH {
            client.fill(slot, 0xaa)?;
            client.read(queue, slot, first + slot)?;
        }
        client.complete(queue, DEPTH)?;
        for slot in 0..DEPTH {
            let expected = if first + slot < 16 { 0 } else { value(first + slot, 2) };
            ensure!(client.holds(slot, expected)?, "block {} is not all {expected:#x}", first + slot);
        }
    }
    Ok(())
}

#[test]
fn virtio_driver_reads_back_what_it_wrote_on_split_rings() -> Result<()> {
    exercise(false)
}

#[test]
fn virtio_driver_reads_back_what_it_wrote_on_packed_rings() -> Result<()> {
    exercise(true)
}

#[test]
fn virtio_driver_is_interrupted_when_it_sleeps() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 4)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &["--num-queues", "2", "--poll", "off"])?;
    let mut client = Client::connect(&socket, false)?;
    let interrupt = client.transport.get_completion_fd(0);
    for round in 0..200 {
        client.queues[0].set_used_notif_enabled(true);
        client.write(0, 0, round % 16)?;
        if client.queues[0].avail_notif_needed() {
            client.transport.get_submission_notifier(0).notify()?;
        }
        // Completions are looked at after an interrupt only; the first one may be the spurious one of the start.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut done = 0;
        while done == 0 {
            ensure!(Instant::now() < deadline, "no interrupt for request {round}");
            match interrupt.read() {
                Ok(_) => done = client.queues[0].completions().count(),
                Err(_) => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }
    Ok(())
}

/// The `vhost` crate's frontend negotiates, shares memory and starts a ring, message by message as a VMM built on it does.
#[test]
fn the_frontend_of_the_vhost_crate_sets_a_disk_up() -> Result<()> {
    use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
    use vhost::vhost_user::{Frontend, VhostUserFrontend};
    use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
    use virtqueue::driver::{DriverRing, Segment};
    use virtqueue::{Format, RingAddresses, RingFeatures};

    const SIZE: u16 = 64;
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 4)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &[])?;

    let mut frontend = Frontend::connect(&socket, 1)?;
    frontend.set_owner()?;
    let (version_1, protocol_features) = (1 << 32, 1 << 30);
    let offered = frontend.get_features()?;
    ensure!(offered & (version_1 | protocol_features) == version_1 | protocol_features, "{offered:#x}");
    frontend.set_features(version_1 | protocol_features)?;
    let wanted = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK;
    ensure!(frontend.get_protocol_features()?.contains(wanted), "protocol features");
    frontend.set_protocol_features(wanted)?;
    let (_, config) = frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])?;
    ensure!(config == (8192_u64).to_le_bytes(), "capacity: {config:?}");

    let memory = OwnMemory::new(1 << 20, GuestAddr(0))?;
    let region = memory.config();
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest.0,
        memory_size: region.len,
        userspace_addr: region.user.0,
        mmap_offset: region.mmap_offset,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&memory.fd()),
    }])?;
    let area = |len| memory.alloc(len, 4096).context("The memory is too small");
    let addresses = RingAddresses { desc: area(4096)?, driver: area(4096)?, device: area(4096)? };
    let mut ring = DriverRing::in_table(
        memory.table(),
        &addresses,
        Format::Split,
        SIZE,
        RingFeatures::from_bits(version_1),
    )?;
    let user = |addr| memory.user_of(addr).0;
    let (kick, call) = (vmm_sys_util::eventfd::EventFd::new(0)?, vmm_sys_util::eventfd::EventFd::new(0)?);
    frontend.set_vring_num(0, SIZE)?;
    frontend.set_vring_addr(
        0,
        &VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: user(addresses.desc),
            used_ring_addr: user(addresses.device),
            avail_ring_addr: user(addresses.driver),
            log_addr: None,
        },
    )?;
    frontend.set_vring_base(0, 0)?;
    frontend.set_vring_call(0, &call)?;
    frontend.set_vring_kick(0, &kick)?;
    frontend.set_vring_enable(0, true)?;

    let (header, data, status) = (area(16)?, area(512)?, area(1)?);
    memory.slice(header, 16)?.fill(0);
    memory.slice(data, 512)?.fill(0xa5);
    let segment = |addr, len| Segment { addr, len };
    ring.add(&[segment(header, 16)], &[segment(data, 512), segment(status, 1)], 7)?;
    ensure!(ring.publish(), "an idle device wants a kick");
    kick.write(1)?;
    let mut used = None;
    e2e::process::wait_until(Duration::from_secs(10), || {
        used = ring.pop();
        Ok(used.is_some())
    })?;
    ensure!(used.is_some_and(|used| (used.cookie, used.len) == (7, 513)), "{used:?}");
    let mut bytes = [0xff; 512];
    memory.slice(data, 512)?.read(0, &mut bytes);
    ensure!(bytes == [0; 512], "an empty disk reads as zeroes");
    ensure!(frontend.get_vring_base(0)? == 1, "one request was taken");
    Ok(())
}
