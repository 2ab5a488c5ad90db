//! Memory in pieces as guests have it, and engines that are waited for.

#![expect(unsafe_code, reason = "keeps the contract of Engine::submit: waits before it lets go of anything")]

use crypto_offload::algorithm::{Direction, MAX_TAG};
use crypto_offload::engine::test::{Behaviour, Delayed};
use crypto_offload::engine::{
    Bytes, Choice, Engine, Engines, Iv, Job, KeyRef, KeySpec, Outcome, Prepared, Ranges, Span, Tag, Work,
};
use memory::HostRange;
use std::sync::Arc;

/// Around every piece, to see what writes beside it.
const GUARD: usize = 32;
const GUARD_BYTE: u8 = 0xee;

/// How a buffer lies in memory.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Where pieces end, as offsets; those beyond the buffer do not count.
    pub cuts: Vec<usize>,
    /// How far pieces begin behind an aligned address.
    pub shift: usize,
}

impl Layout {
    /// Pieces of this size.
    pub fn every(size: usize, shift: usize, len: usize) -> Self {
        Self { cuts: (1..).map(|i| i * size).take_while(|cut| *cut < len).collect(), shift }
    }
}

/// Bytes in pieces, each in an allocation of its own.
pub struct Buffer {
    pieces: Vec<(Box<[u8]>, usize)>,
    ranges: Vec<HostRange>,
}

impl Buffer {
    /// These bytes.
    pub fn new(bytes: &[u8], layout: &Layout) -> Self {
        let mut cuts: Vec<usize> = layout.cuts.iter().copied().filter(|cut| *cut < bytes.len()).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut start = 0;
        let mut pieces = Vec::new();
        for cut in cuts {
            let part = &bytes[start..cut];
            let before = GUARD + layout.shift % GUARD;
            let mut memory = vec![GUARD_BYTE; before + part.len() + GUARD].into_boxed_slice();
            memory[before..before + part.len()].copy_from_slice(part);
            pieces.push((memory, before));
            start = cut;
        }
        let range = |(memory, before): &mut (Box<[u8]>, usize)| HostRange {
            base: memory[*before..].as_mut_ptr().cast(),
            len: memory.len() - *before - GUARD,
        };
        let ranges = pieces.iter_mut().map(range).collect();
        Self { pieces, ranges }
    }

    /// Zeros.
    pub fn zeros(len: usize, layout: &Layout) -> Self {
        Self::new(&vec![0; len], layout)
    }

    /// All of it.
    pub fn all(&self) -> Ranges {
        Ranges::whole(&self.ranges)
    }

    /// What it holds now. Panics when something wrote beside it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (memory, before) in &self.pieces {
            let (front, rest) = memory.split_at(*before);
            let (part, back) = rest.split_at(rest.len() - GUARD);
            assert!(
                front.iter().chain(back).all(|byte| *byte == GUARD_BYTE),
                "something wrote beside a piece"
            );
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// Every set of engines that a request may meet.
pub fn all_engines() -> Vec<Engines> {
    let slow = Behaviour { fail_every: 3, ..Behaviour::default() };
    vec![
        Engines::new(Choice::Library),
        Engines::new(Choice::MultiBuffer),
        Engines::with(vec![Box::new(Delayed::new(slow))]),
    ]
}

/// A key that is expected to be fine.
pub fn key(spec: &KeySpec<'_>) -> Arc<Prepared> {
    Prepared::new(spec).expect("a good key")
}

/// Does all of these, and gives their outcomes in the same order.
pub fn run_all(engines: &mut Engines, jobs: &[(&Prepared, Work)]) -> Vec<Outcome> {
    let jobs: Vec<Job> =
        (0..).zip(jobs).map(|(tag, (key, work))| Job { tag, key: KeyRef::from(*key), work: *work }).collect();
    let mut outcomes = vec![None; jobs.len()];
    // SAFETY: keys and buffers are borrowed by the caller, and the loop below ends when all jobs are delivered.
    unsafe { engines.submit(&jobs) };
    engines.flush();
    for _ in 0..1000 {
        engines.poll(&mut |tag, outcome| {
            let place = &mut outcomes[tag as usize];
            assert!(place.replace(outcome).is_none(), "job {tag} was delivered twice");
        });
        if engines.in_flight() == 0 {
            break;
        }
    }
    assert_eq!(engines.in_flight(), 0, "jobs got stuck");
    outcomes.into_iter().map(|outcome| outcome.expect("every job is delivered")).collect()
}

/// Does one in one engine, and drops what it delivers.
pub fn finish(engine: &mut dyn Engine, job: &Job) {
    // SAFETY: keys and buffers are borrowed by the caller, and the loop below ends when the job is delivered.
    assert_eq!(unsafe { engine.submit(std::slice::from_ref(job)) }, 1);
    engine.flush();
    while engine.in_flight() > 0 {
        engine.poll(&mut |_| ());
    }
}

/// Does one.
pub fn run(engines: &mut Engines, key: &Prepared, work: Work) -> Outcome {
    run_all(engines, &[(key, work)])[0]
}

/// Where source and destination lie.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub src: Layout,
    pub dst: Layout,
    /// The destination is the source.
    pub in_place: bool,
}

fn iv(bytes: &[u8]) -> Iv {
    Iv::new(bytes).expect("a short nonce")
}

/// Source and destination of a request.
struct Places {
    src: Buffer,
    dst: Option<Buffer>,
}

impl Places {
    fn new(text: &[u8], shape: &Shape) -> Self {
        let dst = (!shape.in_place).then(|| Buffer::new(&vec![0x77; text.len()], &shape.dst));
        Self { src: Buffer::new(text, &shape.src), dst }
    }

    fn dst(&self) -> &Buffer {
        self.dst.as_ref().unwrap_or(&self.src)
    }

    /// The result. The source has not changed, unless it is the destination.
    fn result(&self, text: &[u8]) -> Vec<u8> {
        assert!(self.dst.is_none() || self.src.bytes() == text, "the source changed");
        self.dst().bytes()
    }
}

/// A plain cipher.
pub fn cipher(
    engines: &mut Engines,
    key: &Prepared,
    nonce: &[u8],
    text: &[u8],
    shape: &Shape,
) -> Result<Vec<u8>, Outcome> {
    let places = Places::new(text, shape);
    let work = Work::Cipher { iv: iv(nonce), src: places.src.all(), dst: places.dst().all() };
    match run(engines, key, work) {
        Outcome::Done { written } => {
            assert_eq!(written as usize, text.len());
            Ok(places.result(text))
        }
        outcome => Err(outcome),
    }
}

/// A hash or MAC.
pub fn digest(engines: &mut Engines, key: &Prepared, text: &[u8], layout: &Layout) -> Vec<u8> {
    let src = Buffer::new(text, layout);
    let digest = Buffer::zeros(key.result_len(), &Layout::every(7, 1, key.result_len()));
    let work = Work::Digest { src: src.all(), digest: digest.all() };
    assert_eq!(run(engines, key, work), Outcome::Done { written: 0 });
    digest.bytes()
}

/// A chain: what the cipher made, and the digest.
pub fn chain(
    engines: &mut Engines,
    key: &Prepared,
    nonce: &[u8],
    text: &[u8],
    spans: (Span, Span),
    shape: &Shape,
) -> (Vec<u8>, Vec<u8>) {
    let (part, hash) = spans;
    let src = Buffer::new(text, &shape.src);
    let apart = Buffer::zeros(part.len, &shape.dst);
    let digest = Buffer::zeros(key.result_len(), &Layout::default());
    let dst = match shape.in_place {
        true => src.all().sub(part.start, part.len).expect("a part of the source"),
        false => apart.all(),
    };
    let work = Work::Chain { iv: iv(nonce), src: src.all(), cipher: part, hash, dst, digest: digest.all() };
    assert_eq!(run(engines, key, work), Outcome::Done { written: part.len as u32 });
    let result = match shape.in_place {
        true => src.bytes()[part.start..part.start + part.len].to_vec(),
        false => apart.bytes(),
    };
    (result, digest.bytes())
}

/// Encrypts: ciphertext and tag.
pub fn seal(
    engines: &mut Engines,
    key: &Prepared,
    (nonce, aad): (&[u8], &[u8]),
    text: &[u8],
    shape: &Shape,
) -> Result<(Vec<u8>, Vec<u8>), Outcome> {
    assert_eq!(key.direction(), Some(Direction::Encrypt));
    let places = Places::new(text, shape);
    let place = Buffer::zeros(key.tag_len(), &Layout::every(5, 3, key.tag_len()));
    let (src, dst, tag) = (places.src.all(), places.dst().all(), Tag::Write(place.all()));
    let work = Work::Aead { iv: iv(nonce), aad: Bytes::from(aad), src, dst, tag };
    match run(engines, key, work) {
        Outcome::Done { written } => {
            assert_eq!(written as usize, text.len());
            Ok((places.result(text), place.bytes()))
        }
        outcome => Err(outcome),
    }
}

/// Decrypts. A destination that failed holds zeros.
pub fn open(
    engines: &mut Engines,
    key: &Prepared,
    (nonce, aad): (&[u8], &[u8]),
    text: &[u8],
    tag: &[u8],
    shape: &Shape,
) -> Result<Vec<u8>, Outcome> {
    assert_eq!(key.direction(), Some(Direction::Decrypt));
    let places = Places::new(text, shape);
    let mut expected = [0; MAX_TAG];
    expected[..tag.len()].copy_from_slice(tag);
    let (src, dst, tag) = (places.src.all(), places.dst().all(), Tag::Check(expected));
    let work = Work::Aead { iv: iv(nonce), aad: Bytes::from(aad), src, dst, tag };
    match run(engines, key, work) {
        Outcome::Done { written } => {
            assert_eq!(written as usize, text.len());
            Ok(places.result(text))
        }
        Outcome::BadMessage => {
            assert!(
                places.result(text).iter().all(|byte| *byte == 0),
                "plaintext without a tag is left behind"
            );
            Err(Outcome::BadMessage)
        }
        outcome => Err(outcome),
    }
}
