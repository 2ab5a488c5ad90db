//! Copies of frames, to a port or to a pcapng file.
//!
//! A worker copies a frame into a bounded queue of buffers that were there before; a thread of its own writes them to
//! the file. What finds no room is counted and noted in the file. A disk that is full, or a file that has reached its
//! limit, stops the mirror with one line in the log, and nothing else.

mod pcapng;
mod queue;
#[cfg(test)]
mod tests;
mod writer;

use super::filter::Direction;
use super::ports::PortId;
use crate::frame::Packet;
use queue::Queue;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{io, thread};

/// Shortest snap length: an Ethernet header.
const MIN_SNAPLEN: u32 = 14;
/// Smallest limit of a file.
const MIN_BYTES: u64 = 4096;

/// A mirror file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaptureOptions {
    /// The file. One that exists is overwritten.
    pub path: PathBuf,
    /// Most bytes recorded of a frame.
    #[serde(default = "default_snaplen")]
    pub snaplen: u32,
    /// Most bytes of a file; `None`: as the disk takes.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Files to keep when `max_bytes` is reached: the older ones are renamed `PATH.1`, `PATH.2`... With one, the mirror stops.
    #[serde(default = "default_files")]
    pub files: u32,
}

fn default_snaplen() -> u32 {
    262_144
}

fn default_files() -> u32 {
    1
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { path: PathBuf::new(), snaplen: default_snaplen(), max_bytes: None, files: default_files() }
    }
}

impl CaptureOptions {
    /// Whole frames into `path`, without a limit.
    pub fn to(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// What is wrong.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self { path, .. } if path.as_os_str().is_empty() => Err("the file has no name (path)"),
            Self { snaplen, .. } if *snaplen < MIN_SNAPLEN => Err("snaplen is less than 14"),
            Self { max_bytes: Some(bytes), .. } if *bytes < MIN_BYTES => Err("max-bytes is less than 4096"),
            Self { files: 0, .. } => Err("files is 0"),
            Self { files, max_bytes: None, .. } if *files > 1 => Err("files needs max-bytes"),
            _ => Ok(()),
        }
    }
}

/// Where a worker hands copies of a frame. See [`Switch::mirror`](super::Switch::mirror).
#[derive(Clone, Debug)]
pub enum Mirror {
    /// Deliver the frame to this port as it is, without asking [`Switch::egress`](super::Switch::egress).
    Port(PortId),
    /// Record it.
    File(Capture),
}

/// What a mirror file has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaptureCounters {
    /// Frames written.
    pub written: u64,
    /// Frames that found no room in the queue, or came after the end.
    pub dropped: u64,
    /// The mirror has ended: a full disk, a limit, or nobody uses it any more.
    pub stopped: bool,
}

/// A pcapng file that is being written by its own thread. Any worker may record. The file ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Capture(Arc<Handle>);

/// Ends the writer, without waiting for it, when nobody can record any more.
#[derive(Debug)]
struct Handle {
    options: CaptureOptions,
    queue: Arc<Queue>,
    writer: thread::Thread,
}

impl std::ops::Drop for Handle {
    fn drop(&mut self) {
        self.queue.close();
        self.writer.unpark();
    }
}

impl Capture {
    /// Opens the file and starts its thread.
    pub fn open(options: &CaptureOptions) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let writer = writer::Writer::create(options.clone(), queue.clone())?;
        let thread = thread::Builder::new().name("mirror".to_owned()).spawn(move || writer.run())?;
        let writer = thread.thread().clone();
        Ok(Self(Arc::new(Handle { options: options.clone(), queue, writer })))
    }

    /// Where it writes and how.
    pub fn options(&self) -> &CaptureOptions {
        &self.0.options
    }

    /// Names for the interfaces in the file; those that are in it already keep theirs.
    pub(super) fn name_ports(&self, names: &BTreeMap<PortId, String>) {
        self.0.queue.set_names(names.clone());
    }

    /// Copies the frame into the queue of the writer, as far as the snap length goes; never waits. A frame that finds no
    /// room is counted.
    pub fn record(&self, port: PortId, direction: Direction, packet: &Packet<'_>) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = queue::Header {
            time_ns: since.as_nanos() as u64,
            len: packet.len() as u32,
            captured: packet.len().min(self.0.options.snaplen as usize) as u32,
            port: port.0,
            direction,
        };
        let body = packet.body;
        let recorded = self.0.queue.push(header, packet.head, |offset, out| {
            body.sub(offset, out.len()).read(out);
        });
        if recorded && self.0.queue.wake_wanted() {
            self.0.writer.unpark();
        }
    }

    /// What it has seen.
    pub fn counters(&self) -> CaptureCounters {
        self.0.queue.counters()
    }

    /// Ends the file and waits until all that was recorded is in it, at most this long; false: it was not.
    pub fn finish(&self, patience: Duration) -> bool {
        self.0.queue.close();
        self.0.writer.unpark();
        let end = Instant::now() + patience;
        while !self.0.queue.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        self.0.queue.is_finished()
    }
}
