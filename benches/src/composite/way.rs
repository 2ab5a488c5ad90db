//! The three ways a record takes to the disk, and who compresses on each.

use anyhow::{Result, bail};
use clap::ValueEnum;
use compress_protocol::{Format, Header, Status};
use serde::Serialize;
use virtqueue::driver::Segment;

use crate::compress::client::Queue;
use crate::compress::foreign::Zlib;

/// Who compresses.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Way {
    /// Nobody: records are stored as they are
    None,
    /// zlib, level 1, on the submitter's core
    Software,
    /// vhostd-compress, on another core
    Offload,
}

impl Way {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::None, Self::Software, Self::Offload];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Software => "software",
            Self::Offload => "offload",
        }
    }

    /// Name in pictures.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "not compressed",
            Self::Software => "zlib on the submitter's core",
            Self::Offload => "offload to vhostd-compress",
        }
    }
}

/// A request of the compression device, by the lane it belongs to.
pub(super) struct Offload {
    pub queue: Queue,
    format: Format,
    level: i32,
    /// Something was submitted and not yet published.
    pub unpublished: bool,
}

/// What has become of a record.
pub(super) enum Packed {
    /// It has so many bytes now.
    Into(u32),
    /// It is kept as it is.
    Raw,
}

impl Offload {
    pub fn new(queue: Queue, format: Format, level: i32) -> Self {
        Self { queue, format, level, unpublished: false }
    }

    /// Compresses `src` into `dst`.
    pub fn compress(&mut self, lane: u16, src: Segment, dst: Segment) {
        let header = Header::compress(self.format, src.len, dst.len).with_level(self.level);
        self.submit(lane, header, src, dst);
    }

    /// Decompresses `src` into `dst`.
    pub fn decompress(&mut self, lane: u16, src: Segment, dst: Segment) {
        self.submit(lane, Header::decompress(self.format, src.len, dst.len), src, dst);
    }

    fn submit(&mut self, lane: u16, header: Header, src: Segment, dst: Segment) {
        self.queue.submit(lane, &header.with_tag(lane.into()), &[src], &[dst]);
        self.unpublished = true;
    }

    /// The next record that the device is done with.
    pub fn harvest(&mut self) -> Result<Option<(u16, Packed)>> {
        let Some(completion) = self.queue.harvest()? else { return Ok(None) };
        let (lane, response) = (completion.slot, completion.response);
        if response.user_tag != u64::from(lane) {
            bail!("The compression device answered another request");
        }
        match response.status() {
            Some(Status::Ok) => Ok(Some((lane, Packed::Into(response.produced)))),
            Some(Status::Incompressible) => Ok(Some((lane, Packed::Raw))),
            Some(status) => bail!("The compression device ended a request with {}", status.name()),
            None => bail!("The compression device wrote no status"),
        }
    }
}

/// Who compresses, with what it takes.
pub(super) enum Codec {
    None,
    Software(Box<Zlib>),
    Offload(Box<Offload>),
}
