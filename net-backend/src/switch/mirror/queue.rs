//! The queue between the workers and the writer of a mirror file: a ring of chunks that frames are cut into.
//!
//! A worker takes as many chunks in a row as a frame needs by moving `head`, fills them, and marks each as ready; the
//! writer follows in order. A chunk's mutex is never contended: it is the worker's until the chunk is ready and the writer's until
//! `tail` has passed it. It stands for what the ring promises, so that no unsafe code has to.

use super::super::filter::Direction;
use super::super::ports::PortId;
use super::CaptureCounters;
use crossbeam_utils::CachePadded;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

const CHUNK: usize = 2048;
/// Chunks of a ring, 8 MiB of them.
pub(super) const CHUNKS: usize = 4096;

/// What is known of a frame besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Since 1970.
    pub(super) time_ns: u64,
    /// Bytes the frame has.
    pub(super) len: u32,
    /// Bytes recorded.
    pub(super) captured: u32,
    pub(super) port: u16,
    pub(super) direction: Direction,
}

#[derive(Debug)]
struct Content {
    /// Of the frame that begins here.
    header: Option<Header>,
    bytes: [u8; CHUNK],
}

#[derive(Debug)]
struct Chunk {
    /// One more than the position in the endless row of chunks that this one holds.
    ready: AtomicU64,
    content: Mutex<Content>,
}

#[derive(Debug)]
pub(super) struct Queue {
    chunks: Box<[Chunk]>,
    /// Where the next frame begins.
    head: CachePadded<AtomicU64>,
    /// Where the writer is.
    tail: CachePadded<AtomicU64>,
    /// The writer sleeps, or is about to.
    asleep: CachePadded<AtomicBool>,
    closed: AtomicBool,
    finished: AtomicBool,
    written: AtomicU64,
    dropped: AtomicU64,
    names: Mutex<BTreeMap<PortId, String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Queue {
    fn default() -> Self {
        let content = || Mutex::new(Content { header: None, bytes: [0; CHUNK] });
        Self {
            chunks: (0..CHUNKS).map(|_| Chunk { ready: AtomicU64::new(0), content: content() }).collect(),
            head: CachePadded::default(),
            tail: CachePadded::default(),
            asleep: CachePadded::default(),
            closed: AtomicBool::default(),
            finished: AtomicBool::default(),
            written: AtomicU64::default(),
            dropped: AtomicU64::default(),
            names: Mutex::default(),
        }
    }
}

fn chunks_of(captured: u32) -> u64 {
    (captured as usize).div_ceil(CHUNK).max(1) as u64
}

impl Queue {
    fn chunk(&self, position: u64) -> &Chunk {
        &self.chunks[position as usize % CHUNKS]
    }

    /// Takes `count` chunks in a row.
    fn reserve(&self, count: u64) -> Option<u64> {
        let room = |head: u64| {
            // A tail that is old makes the ring look fuller than it is, never emptier.
            let used = head.saturating_sub(self.tail.load(Acquire));
            (used + count <= CHUNKS as u64).then_some(head + count)
        };
        self.head.fetch_update(Relaxed, Relaxed, room).ok()
    }

    /// Puts a frame in: its first bytes are `front`, the rest comes from `rest` by offset. False: no room, and it is counted.
    pub(super) fn push(&self, header: Header, front: &[u8], rest: impl Fn(usize, &mut [u8])) -> bool {
        let count = chunks_of(header.captured);
        let place = if self.closed.load(Relaxed) { None } else { self.reserve(count) };
        let Some(first) = place else {
            self.dropped.fetch_add(1, Relaxed);
            return false;
        };
        for position in first..first + count {
            let chunk = self.chunk(position);
            let from = (position - first) as usize * CHUNK;
            let len = (header.captured as usize - from).min(CHUNK);
            let mut content = locked(&chunk.content);
            content.header = (position == first).then_some(header);
            let (near, far) = content.bytes[..len].split_at_mut(front.len().saturating_sub(from).min(len));
            near.copy_from_slice(&front[from.min(front.len())..][..near.len()]);
            if !far.is_empty() {
                rest((from + near.len()).saturating_sub(front.len()), far);
            }
            drop(content);
            chunk.ready.store(position + 1, Release);
        }
        true
    }

    /// Whether the writer has to be woken for what was pushed; says so to one worker only.
    pub(super) fn wake_wanted(&self) -> bool {
        // Pairs with the fence in `sleep_unless`: either this sees that the writer sleeps, or it sees the frame.
        fence(SeqCst);
        self.asleep.load(Relaxed) && self.asleep.swap(false, Relaxed)
    }

    /// Writer: announces sleep; false: there is a frame after all, or the end.
    pub(super) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Relaxed);
        fence(SeqCst);
        let awake = self.is_ready(self.tail.load(Relaxed)) || self.closed.load(Relaxed);
        if awake {
            self.asleep.store(false, Relaxed);
        }
        !awake
    }

    fn is_ready(&self, position: u64) -> bool {
        self.chunk(position).ready.load(Acquire) == position + 1
    }

    /// Writer: takes the next frame out into `bytes`; `None`: there is none, or not all of it yet.
    pub(super) fn pop(&self, bytes: &mut Vec<u8>) -> Option<Header> {
        let first = self.tail.load(Relaxed);
        if !self.is_ready(first) {
            return None;
        }
        let header = locked(&self.chunk(first).content).header?;
        let end = first + chunks_of(header.captured);
        if !(first..end).all(|position| self.is_ready(position)) {
            return None;
        }
        bytes.clear();
        for position in first..end {
            let len = (header.captured as usize - bytes.len()).min(CHUNK);
            bytes.extend_from_slice(&locked(&self.chunk(position).content).bytes[..len]);
        }
        self.tail.store(end, Release);
        Some(header)
    }

    /// Whether frames were promised that are not out yet.
    pub(super) fn is_empty(&self) -> bool {
        self.head.load(Relaxed) == self.tail.load(Relaxed)
    }

    /// No more frames.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Writer: everything is in the file, or never will be.
    pub(super) fn finish(&self) {
        self.close();
        self.finished.store(true, Release);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Acquire)
    }

    pub(super) fn count_written(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    pub(super) fn counters(&self) -> CaptureCounters {
        CaptureCounters {
            written: self.written.load(Relaxed),
            dropped: self.dropped(),
            stopped: self.is_finished(),
        }
    }

    pub(super) fn set_names(&self, names: BTreeMap<PortId, String>) {
        *locked(&self.names) = names;
    }

    /// What a port is called.
    pub(super) fn name(&self, port: PortId) -> String {
        let name = locked(&self.names).get(&port).cloned().unwrap_or_default();
        if name.is_empty() { format!("port{port}") } else { name }
    }
}
