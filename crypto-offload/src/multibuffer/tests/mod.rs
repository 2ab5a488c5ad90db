//! The lanes against oracles: the `aes` and `cbc` crates, examples of standards, and a model of what block-by-block
//! encryption does to buffers that overlap.
#![expect(unsafe_code, reason = "hands buffers of its own to the machine as raw ranges")]

mod differential;
mod engine;
mod overlap;
mod scheduling;
// Intrinsics are calls without optimisation: they are measured where it is on (`cargo test --release`).
#[cfg(not(debug_assertions))]
mod speed;
mod vectors;

use cbc::cipher::{Array, BlockModeEncrypt, KeyIvInit};
use memory::HostRange;
use proptest::test_runner::Config as ProptestConfig;

use super::{BLOCK, CbcKey, Kind, Machine, Request};
use crate::engine::Ranges;

/// What the `aes` and `cbc` crates make of it.
fn oracle(key: &[u8], iv: [u8; BLOCK], plain: &[u8]) -> Vec<u8> {
    fn encrypt(mut cipher: impl BlockModeEncrypt<BlockSize = cbc::cipher::consts::U16>, bytes: &mut [u8]) {
        for block in bytes.as_chunks_mut::<BLOCK>().0 {
            cipher.encrypt_block(<&mut Array<u8, _>>::from(block));
        }
    }
    let mut bytes = plain.to_vec();
    match key.len() {
        16 => encrypt(cbc::Encryptor::<aes::Aes128>::new_from_slices(key, &iv).unwrap(), &mut bytes),
        24 => encrypt(cbc::Encryptor::<aes::Aes192>::new_from_slices(key, &iv).unwrap(), &mut bytes),
        _ => encrypt(cbc::Encryptor::<aes::Aes256>::new_from_slices(key, &iv).unwrap(), &mut bytes),
    }
    bytes
}

/// A request with its buffers: memory for the source and the destination, each cut into ranges that lie apart.
#[derive(Debug)]
struct Case {
    key: Vec<u8>,
    iv: [u8; BLOCK],
    plain: Vec<u8>,
    src: Scattered,
    /// `None`: in place.
    dst: Option<Scattered>,
}

/// Ranges of given lengths, with a gap of guard bytes before, between and after them.
#[derive(Debug)]
struct Scattered {
    memory: Vec<u8>,
    offsets: Vec<usize>,
    lens: Vec<usize>,
}

const GUARD: u8 = 0xee;

impl Scattered {
    /// Gaps decide the alignment of what follows them.
    fn new(lens: &[usize], gaps: &[usize]) -> Self {
        let mut offsets = Vec::new();
        let mut end = 0;
        for (i, len) in lens.iter().enumerate() {
            end += 1 + gaps[i % gaps.len()];
            offsets.push(end);
            end += len;
        }
        Self { memory: vec![GUARD; end + 64], offsets, lens: lens.to_vec() }
    }

    fn fill(&mut self, mut bytes: &[u8]) {
        for (&offset, &len) in self.offsets.iter().zip(&self.lens) {
            self.memory[offset..offset + len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    /// The ranges' bytes; what lies between them is checked to be as it was.
    fn collect(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut end = 0;
        for (&offset, &len) in self.offsets.iter().zip(&self.lens) {
            assert!(self.memory[end..offset].iter().all(|&byte| byte == GUARD), "a gap was written to");
            end = offset + len;
            bytes.extend_from_slice(&self.memory[offset..end]);
        }
        assert!(self.memory[end..].iter().all(|&byte| byte == GUARD), "written past the end");
        bytes
    }

    fn ranges(&mut self) -> Vec<HostRange> {
        let base = self.memory.as_mut_ptr();
        let range =
            |(&offset, &len): (&usize, &usize)| HostRange { base: base.wrapping_add(offset).cast(), len };
        self.offsets.iter().zip(&self.lens).map(range).collect()
    }
}

impl Case {
    fn new(key: &[u8], iv: [u8; BLOCK], plain: Vec<u8>, src: Scattered, dst: Option<Scattered>) -> Self {
        Self { key: key.to_vec(), iv, plain, src, dst }
    }

    /// In one piece and in place, with bytes that depend on `seed`.
    fn simple(seed: usize, key_len: usize, len: usize) -> Self {
        let bytes =
            |salt: usize, len: usize| (0..len).map(|i| (i * 31 + seed * 7 + salt) as u8).collect::<Vec<_>>();
        let iv = bytes(11, BLOCK).try_into().unwrap();
        Self::new(&bytes(5, key_len), iv, bytes(0, len), Scattered::new(&[len], &[seed % 64]), None)
    }
}

/// A request for lists that its caller keeps.
fn request(key: &CbcKey, iv: [u8; BLOCK], src: &[HostRange], dst: &[HostRange]) -> Request {
    // SAFETY: all tests keep key and lists until the request was encrypted.
    unsafe { Request::new(key, iv, &Ranges::whole(src), &Ranges::whole(dst)) }
        .expect("equal lengths of whole blocks")
}

/// Encrypts all cases in one call and compares them with the oracle.
fn check(kind: Kind, cases: &mut [Case]) {
    let mut machine = Machine::with(kind).expect("memory");
    check_with(&mut machine, cases, |key| CbcKey::new(key).unwrap());
}

fn check_with(machine: &mut Machine, cases: &mut [Case], expand: impl Fn(&[u8]) -> CbcKey) {
    let mut keys: Vec<(Vec<u8>, CbcKey)> = Vec::new();
    for case in &*cases {
        if keys.iter().all(|(key, _)| *key != case.key) {
            keys.push((case.key.clone(), expand(&case.key)));
        }
    }
    let ranges: Vec<_> = cases
        .iter_mut()
        .map(|case| {
            case.src.fill(&case.plain);
            let src = case.src.ranges();
            let dst = case.dst.as_mut().map_or_else(|| src.clone(), Scattered::ranges);
            (src, dst)
        })
        .collect();
    let mut requests: Vec<_> = cases
        .iter()
        .zip(&ranges)
        .map(|(case, (src, dst))| {
            let (_, key) = keys.iter().find(|(key, _)| *key == case.key).unwrap();
            request(key, case.iv, src, dst)
        })
        .collect();
    let mut done = vec![0; requests.len()];
    // SAFETY: the ranges are those of the cases' buffers, which nobody touches meanwhile.
    unsafe { machine.encrypt(&mut requests, &mut |index| done[index] += 1) };
    assert!(done.iter().all(|times| *times == 1), "each one is told of once: {done:?}");
    let chains: Vec<_> = requests.iter().map(|request| (request.remaining(), request.chain())).collect();

    for (index, (case, chain)) in cases.iter().zip(chains).enumerate() {
        let expected = oracle(&case.key, case.iv, &case.plain);
        let encrypted = case.dst.as_ref().unwrap_or(&case.src).collect();
        assert!(encrypted == expected, "{}: case {index} of {} is wrong", machine.kind(), cases.len());
        if case.dst.is_some() {
            assert!(case.src.collect() == case.plain, "case {index}: the source was changed");
        }
        let last = expected.last_chunk().copied().unwrap_or(case.iv);
        assert_eq!(chain, (0, last), "case {index}: not at the end");
    }
}

/// So many cases, unless `PROPTEST_CASES` says otherwise: for a long run.
fn cases(usual: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(usual),
    }
}

/// The kernels that this CPU has.
fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.is_available())
}
