//! The program that writes a data set and reads it back: one thread, both devices, several records under way.
//!
//! A record takes a lane: a buffer for what is on the disk, one for what comes out of it, and a slot in the ring of either
//! device. What can be done meanwhile is: the disk writes one record while the next one is compressed, whoever does that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtqueue::driver::Segment;

use super::way::{Codec, Packed};
use crate::blk::client::{Operation, Queue};
use crate::blk::wire::status;
use crate::compress::material::{Material, Outputs};
use crate::guest::Ring;

/// Records are stored in whole blocks of a file system.
pub(super) const BLOCK: u32 = 4096;
/// A record that saves less than this part of it is stored as it is.
const WORTHWHILE: usize = 8;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of the destination in which a record of `len` bytes is compressed.
pub(super) fn room(len: usize) -> usize {
    len - len / WORTHWHILE
}

/// Where a record is stored.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    offset: u64,
    len: u32,
    packed: bool,
}

/// The lanes of a submitter in guest memory.
pub(super) struct Lanes {
    /// What is on the disk.
    pub stored: Outputs,
    /// What comes out of it.
    pub plain: Outputs,
}

/// One thread with a disk and, on one of the ways, a compression device.
pub(super) struct Submitter<'a> {
    disk: Queue,
    codec: Codec,
    material: &'a Material,
    /// Where the blocks of the material lie in guest memory; records are taken from them in turn.
    inputs: &'a [Segment],
    lanes: Lanes,
    /// By lane: the record that it has.
    records: Vec<usize>,
    free: Vec<u16>,
    index: Vec<Extent>,
    /// First byte of the disk that is not used.
    end: u64,
    next: usize,
    unpublished: bool,
    /// A record that software has compressed, or one that came back.
    scratch: Vec<u8>,
    /// A record that software is to decompress.
    packed: Vec<u8>,
}

impl<'a> Submitter<'a> {
    /// With `records` records to write.
    pub fn new(
        disk: Queue,
        codec: Codec,
        material: &'a Material,
        inputs: &'a [Segment],
        lanes: Lanes,
        records: usize,
    ) -> Self {
        let depth = disk.depth();
        Self {
            codec,
            lanes,
            records: vec![0; depth.into()],
            free: (0..depth).rev().collect(),
            index: vec![Extent::default(); records],
            end: 0,
            next: 0,
            unpublished: false,
            scratch: vec![0; material.size()],
            packed: Vec::new(),
            disk,
            material,
            inputs,
        }
    }

    /// Bytes that the records take on the disk.
    pub fn stored(&self) -> u64 {
        self.end
    }

    /// The queues, for an orderly detach.
    pub fn into_queues(self) -> (Queue, Codec) {
        (self.disk, self.codec)
    }

    /// Writes all records, and makes them durable.
    pub fn write(&mut self) -> Result<()> {
        self.go_through(|it| Ok([it.written()?, it.compressed()?, it.start_writes()?]))?;
        self.disk.execute(Operation::Flush, 0, 0).context("Flushing the disk")
    }

    /// Reads all records back, and compares every byte of them.
    pub fn read(&mut self) -> Result<()> {
        self.go_through(|it| Ok([it.restored()?, it.fetched()?, it.start_reads()?]))
    }

    /// Turn after turn until every record has gone through. A turn says how many records have ended, and what else it did.
    fn go_through(&mut self, mut turn: impl FnMut(&mut Self) -> Result<[usize; 3]>) -> Result<()> {
        self.next = 0;
        let (mut ended, mut moved) = (0, Instant::now());
        while ended < self.index.len() {
            let did: usize = turn(self)?.iter().sum();
            self.publish();
            if did > 0 {
                moved = Instant::now();
            } else {
                ensure!(moved.elapsed() < PATIENCE, "No record has ended within {PATIENCE:?}");
                self.sleep();
            }
            ended = self.next - (usize::from(self.disk.depth()) - self.free.len());
        }
        Ok(())
    }

    /// Takes the next record into a free lane.
    fn take(&mut self) -> Option<(u16, usize)> {
        let record = self.next;
        if record == self.index.len() {
            return None;
        }
        let lane = self.free.pop()?;
        self.next += 1;
        self.records[usize::from(lane)] = record;
        Some((lane, record))
    }

    fn input(&self, record: usize) -> Segment {
        self.inputs[record % self.inputs.len()]
    }

    fn plain(&self, record: usize) -> &'a [u8] {
        self.material.plain(record % self.material.len())
    }

    /// Begins with as many records as there are lanes; one at a time where that takes the submitter's own time.
    fn start_writes(&mut self) -> Result<usize> {
        let mut started = 0;
        while let Some((lane, record)) = self.take() {
            started += 1;
            let (src, dst) = (self.input(record), self.room_of(lane));
            match &mut self.codec {
                Codec::None => self.store(lane, Packed::Raw),
                Codec::Offload(offload) => offload.compress(lane, src, dst),
                Codec::Software(zlib) => {
                    let plain = self.material.plain(record % self.material.len());
                    let packed = match zlib.compress(plain, &mut self.scratch[..dst.len as usize])? {
                        Some(len) => {
                            self.lanes.stored.write(lane, &self.scratch[..len]);
                            Packed::Into(len as u32)
                        }
                        None => Packed::Raw,
                    };
                    self.store(lane, packed);
                    break;
                }
            }
        }
        Ok(started)
    }

    /// The part of a lane's buffer that a record may be compressed into.
    fn room_of(&self, lane: u16) -> Segment {
        let room = room(self.material.size()) as u32;
        Segment { len: room, ..self.lanes.stored.segment(lane) }
    }

    /// Writes a record behind the others.
    fn store(&mut self, lane: u16, packed: Packed) {
        let record = self.records[usize::from(lane)];
        let (from, len, packed) = match packed {
            Packed::Raw => (self.input(record), self.material.size() as u32, false),
            Packed::Into(len) => (self.lanes.stored.segment(lane), len, true),
        };
        self.index[record] = Extent { offset: self.end, len, packed };
        let whole = len.next_multiple_of(BLOCK);
        self.disk.submit_elsewhere(lane, Operation::Write, self.end, &[Segment { len: whole, ..from }]);
        self.unpublished = true;
        self.end += u64::from(whole);
    }

    /// What the device has compressed is written.
    fn compressed(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Codec::Offload(offload) = &mut self.codec
            && let Some((lane, packed)) = offload.harvest()?
        {
            self.store(lane, packed);
            count += 1;
        }
        Ok(count)
    }

    /// What is written frees its lane.
    fn written(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(lane) = self.harvest_disk()? {
            self.free.push(lane);
            count += 1;
        }
        Ok(count)
    }

    fn harvest_disk(&mut self) -> Result<Option<u16>> {
        match self.disk.harvest()? {
            None => Ok(None),
            Some(completion) if completion.status == status::OK => Ok(Some(completion.slot)),
            Some(completion) => bail!("The disk ended a request with status {}", completion.status),
        }
    }

    fn start_reads(&mut self) -> Result<usize> {
        let mut started = 0;
        while let Some((lane, record)) = self.take() {
            let extent = self.index[record];
            let len = extent.len.next_multiple_of(BLOCK);
            let into = Segment { len, ..self.lanes.stored.segment(lane) };
            self.disk.submit_elsewhere(lane, Operation::Read, extent.offset, &[into]);
            self.unpublished = true;
            started += 1;
        }
        Ok(started)
    }

    /// What has come from the disk is decompressed, or compared at once. One at a time where decompressing takes the
    /// submitter's own time, so that the disk does not wait for the next request.
    fn fetched(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(lane) = self.harvest_disk()? {
            count += 1;
            let record = self.records[usize::from(lane)];
            let (extent, plain) = (self.index[record], self.lanes.plain.segment(lane));
            let stored = Segment { len: extent.len, ..self.lanes.stored.segment(lane) };
            match &mut self.codec {
                Codec::Offload(offload) if extent.packed => offload.decompress(lane, stored, plain),
                Codec::Software(zlib) if extent.packed => {
                    self.packed.resize(extent.len as usize, 0);
                    self.lanes.stored.read(lane, &mut self.packed);
                    let len = zlib.decompress(&self.packed, &mut self.scratch)?;
                    ensure!(len == self.scratch.len(), "Record {record} has {len} bytes");
                    self.compare(record)?;
                    self.free.push(lane);
                    break;
                }
                _ => {
                    self.lanes.stored.read(lane, &mut self.scratch);
                    self.compare(record)?;
                    self.free.push(lane);
                }
            }
        }
        Ok(count)
    }

    /// What the device has decompressed is compared.
    fn restored(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Codec::Offload(offload) = &mut self.codec
            && let Some((lane, packed)) = offload.harvest()?
        {
            let record = self.records[usize::from(lane)];
            match packed {
                Packed::Into(len) if len as usize == self.scratch.len() => {}
                _ => bail!("Record {record} has not come back in its length"),
            }
            self.lanes.plain.read(lane, &mut self.scratch);
            self.compare(record)?;
            self.free.push(lane);
            count += 1;
        }
        Ok(count)
    }

    fn compare(&self, record: usize) -> Result<()> {
        ensure!(self.scratch == self.plain(record), "Record {record} has come back changed");
        Ok(())
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.disk.requests.ring.publish();
        }
        if let Codec::Offload(offload) = &mut self.codec
            && std::mem::take(&mut offload.unpublished)
        {
            offload.queue.requests.ring.publish();
        }
    }

    fn sleep(&mut self) {
        const NAP: Duration = Duration::from_secs(1);
        let disk = &mut self.disk.requests.ring;
        match &mut self.codec {
            Codec::Offload(offload) => Ring::sleep_on_any(&mut [disk, &mut offload.queue.requests.ring], NAP),
            _ => disk.sleep_at_most(NAP),
        }
    }
}
