//! What one thread drives: for each guest one queue pair, and what it has seen of the streams that arrive there.

use super::client::{Arrival, Pair, RingError};
use super::frame::{self, Flow, TAG, Tag, Template};
use super::ledger::{Ledger, Seen};
use super::wire::HEADER;
use crate::guest::Signals;

/// Wrong frames that are kept for the report.
const SHOWN: usize = 5;

/// One queue pair of one guest.
pub struct Lane {
    /// The guest.
    pub guest: usize,
    /// Its rings.
    pub pair: Pair,
    /// Takes part as a sender.
    pub sends: bool,
    /// What arrives.
    pub inbox: Inbox,
}

/// The arrivals of one receive ring.
pub struct Inbox {
    ledgers: Vec<Ledger>,
    checker: Option<Checker>,
    /// Frames that are none of ours.
    pub others: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

impl Lane {
    /// Collects what has arrived, at most `max` buffers; returns how many frames.
    #[inline]
    pub fn receive(&mut self, max: u32) -> Result<u32, RingError> {
        let inbox = &mut self.inbox;
        self.pair.receive.harvest(max, |arrival| inbox.note(arrival))
    }

    /// Notifications of both rings.
    pub fn signals(&self) -> Signals {
        let mut sum = self.pair.receive.ring.signals();
        sum += self.pair.transmit.ring.signals();
        sum
    }

    /// Tells a switch where this guest is. Waits a little until the backend has taken the frame: one that was just started
    /// may need a moment.
    pub fn announce(&mut self) -> Result<(), RingError> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);
        let transmit = &mut self.pair.transmit;
        transmit.send_raw(&Template::announcement(self.guest));
        let begin = std::time::Instant::now();
        while transmit.in_flight() > 0 && begin.elapsed() < PATIENCE {
            transmit.reclaim()?;
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        transmit.restore();
        Ok(())
    }
}

impl Inbox {
    /// Room for `streams` streams; with a checker every byte is compared.
    pub fn new(streams: usize, checker: Option<Checker>) -> Self {
        Self { ledgers: vec![Ledger::default(); streams], checker, others: 0, bytes: 0 }
    }

    #[inline]
    fn note(&mut self, arrival: &Arrival<'_>) {
        self.bytes += u64::from(arrival.len);
        let ledger = arrival.tag.and_then(|tag| self.ledgers.get_mut(usize::from(tag.stream)));
        let Some((tag, ledger)) = arrival.tag.zip(ledger) else {
            self.others += 1;
            return;
        };
        ledger.arrive(tag.number);
        if let Some(checker) = &mut self.checker {
            checker.check(tag, arrival);
        }
    }

    /// The number behind the last frame of `stream` that has arrived.
    pub fn next(&self, stream: u8) -> u64 {
        self.ledgers[usize::from(stream)].next()
    }

    /// What was seen of all streams.
    pub fn seen(&self) -> Seen {
        self.ledgers.iter().fold(Seen::default(), |mut sum, ledger| {
            sum += ledger.seen();
            sum
        })
    }

    /// Result of the comparison of all bytes.
    pub fn verified(&self) -> Verified {
        self.checker.as_ref().map(|checker| checker.verified.clone()).unwrap_or_default()
    }
}

/// Result of `--verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Frames compared.
    pub frames: u64,
    /// Frames with a wrong byte or length.
    pub wrong: u64,
    /// The first few of them, in words.
    pub mismatches: Vec<String>,
}

/// Compares every byte of a frame with what was sent.
pub struct Checker {
    /// What the frames of each stream look like.
    templates: Vec<Template>,
    expected: Vec<u8>,
    got: Vec<u8>,
    verified: Verified,
}

impl Checker {
    /// Knows the streams from `flows`, in the order of their numbers.
    pub fn new(flows: &[Flow], frame: usize, tso: bool) -> Self {
        let templates = flows.iter().map(|flow| Template::new(*flow, frame, tso)).collect();
        Self { templates, expected: Vec::new(), got: Vec::new(), verified: Verified::default() }
    }

    fn check(&mut self, tag: Tag, arrival: &Arrival<'_>) {
        let template = &self.templates[usize::from(tag.stream)];
        self.expected.clear();
        self.expected.extend_from_slice(template.head());
        self.expected.extend_from_slice(&tag.word().to_le_bytes());
        let rest = self.expected.len();
        debug_assert_eq!(rest, template.tag_at() + TAG);
        self.expected.resize(template.buffer_len(), 0);
        frame::fill(tag.word(), &mut self.expected[rest..]);
        arrival.copy(&mut self.got);
        self.verified.frames += 1;
        // The virtio-net header is the backend's own.
        let (expected, got) = (&self.expected[HEADER..], &self.got[HEADER.min(self.got.len())..]);
        if expected != got {
            self.verified.wrong += 1;
            if self.verified.mismatches.len() < SHOWN {
                self.verified.mismatches.push(mismatch(tag, expected, got));
            }
        }
    }
}

fn mismatch(tag: Tag, expected: &[u8], got: &[u8]) -> String {
    let Tag { stream, number } = tag;
    let what = if expected.len() == got.len() {
        let at = expected.iter().zip(got).position(|(one, other)| one != other).unwrap_or(0);
        format!("byte {at} is {:#04x} instead of {:#04x}", got[at], expected[at])
    } else {
        format!("it has {} bytes instead of {}", got.len(), expected.len())
    };
    format!("frame {number} of stream {stream}: {what}")
}
