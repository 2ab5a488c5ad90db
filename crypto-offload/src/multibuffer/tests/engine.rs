//! The engine against the library's, through the interface of both.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::MultiBuffer;
use super::*;
use crate::algorithm::{ChainOrder, Cipher, Direction, Hash};
use crate::engine::library::Library;
use crate::engine::{Choice, Engine, Finished, Iv, Job, KeySpec, Outcome, Prepared, Span, Work};
use std::sync::Arc;

/// The shape of one job; its bytes follow from `seed`.
#[derive(Clone, Debug)]
struct Shape {
    key_len: usize,
    seed: u8,
    blocks: usize,
    in_place: bool,
    chain: Option<Chain>,
    /// Length of the pieces that the source is cut into.
    piece: usize,
}

#[derive(Clone, Copy, Debug)]
struct Chain {
    order: ChainOrder,
    hash: Hash,
    keyed: bool,
    /// Bytes that are hashed and not ciphered, before and after.
    around: [usize; 2],
}

impl Shape {
    fn key(&self) -> Arc<Prepared> {
        let key = vec![self.seed; self.key_len];
        let (cipher, direction) = (Cipher::AesCbc, Direction::Encrypt);
        let spec = match self.chain {
            None => KeySpec::Cipher { cipher, direction, key: &key },
            Some(Chain { order, hash, keyed, .. }) => KeySpec::Chain {
                cipher,
                direction,
                order,
                hash,
                cipher_key: &key,
                mac_key: keyed.then_some(b"authenticate"),
                result_len: hash.digest_len(),
            },
        };
        Prepared::new(&spec).expect("a key")
    }

    fn around(&self) -> [usize; 2] {
        self.chain.map_or([0; 2], |chain| chain.around)
    }
}

/// Memory of the jobs of one engine.
struct Buffers {
    src: Vec<u8>,
    dst: Vec<u8>,
    digest: Vec<u8>,
    src_list: Vec<HostRange>,
    dst_list: Vec<HostRange>,
    digest_list: Vec<HostRange>,
}

impl Buffers {
    fn new(shape: &Shape) -> Self {
        let [before, after] = shape.around();
        let len = before + shape.blocks * BLOCK + after;
        let mut buffers = Self {
            src: (0..len).map(|i| (i as u8).wrapping_mul(7) ^ shape.seed).collect(),
            dst: vec![0; shape.blocks * BLOCK],
            digest: vec![0; shape.chain.map_or(0, |chain| chain.hash.digest_len())],
            src_list: Vec::new(),
            dst_list: Vec::new(),
            digest_list: Vec::new(),
        };
        let list = |bytes: &mut [u8], piece| {
            bytes
                .chunks_mut(piece)
                .map(|part| HostRange { base: part.as_mut_ptr().cast(), len: part.len() })
                .collect()
        };
        buffers.src_list = list(&mut buffers.src, shape.piece);
        buffers.dst_list = list(&mut buffers.dst, usize::MAX);
        buffers.digest_list = list(&mut buffers.digest, usize::MAX);
        buffers
    }

    fn work(&self, shape: &Shape) -> Work {
        let [before, after] = shape.around();
        let iv = Iv::new(&[shape.seed ^ 0xff; BLOCK]).unwrap();
        let src = Ranges::whole(&self.src_list);
        let cipher = Span { start: before, len: shape.blocks * BLOCK };
        let dst = match shape.in_place {
            true => src.sub(cipher.start, cipher.len).unwrap(),
            false => Ranges::whole(&self.dst_list),
        };
        match shape.chain {
            None => Work::Cipher { iv, src, dst },
            Some(_) => {
                let hash = Span { start: 0, len: before + cipher.len + after };
                Work::Chain { iv, src, cipher, hash, dst, digest: Ranges::whole(&self.digest_list) }
            }
        }
    }
}

/// What the jobs leave in memory, and what is said of them.
fn run(engine: &mut dyn Engine, shapes: &[Shape], keys: &[Arc<Prepared>]) -> Vec<(Outcome, [Vec<u8>; 3])> {
    let buffers: Vec<_> = shapes.iter().map(Buffers::new).collect();
    let jobs: Vec<_> = shapes
        .iter()
        .zip(&buffers)
        .zip(keys)
        .enumerate()
        .map(|(tag, ((shape, buffers), key))| {
            let work = buffers.work(shape);
            key.check(&work).expect("a sensible job");
            assert!(engine.takes(key, work.len()));
            Job { tag: tag as u64, key: (&**key).into(), work }
        })
        .collect();
    // SAFETY: keys and buffers live until all jobs were delivered below.
    assert_eq!(unsafe { engine.submit(&jobs) }, jobs.len());
    engine.flush();
    assert_eq!(engine.in_flight(), jobs.len());
    let mut outcomes = vec![None; jobs.len()];
    engine.poll(&mut |finished| match finished {
        Finished::Done(tag, outcome) => {
            assert_eq!(outcomes[tag as usize].replace(outcome), None, "delivered twice")
        }
        Finished::Failed(job) => panic!("job {} failed", job.tag),
    });
    assert_eq!(engine.in_flight(), 0);
    let outcomes = outcomes.into_iter().map(|outcome| outcome.expect("every job is delivered"));
    outcomes
        .zip(buffers)
        .map(|(outcome, memory)| (outcome, [memory.src, memory.dst, memory.digest]))
        .collect()
}

fn check_against_library(shapes: &[Shape]) {
    let keys: Vec<_> = shapes.iter().map(Shape::key).collect();
    let expected = run(&mut Library::new(), shapes, &keys);
    for kind in kinds() {
        let mut engine = MultiBuffer::with(kind).expect("memory");
        let found = run(&mut engine, shapes, &keys);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected, "{kind}: job {index} of {}: {:?}", shapes.len(), shapes[index]);
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let hash = proptest::sample::select(vec![Hash::Sha1, Hash::Sha256, Hash::Sha512]);
    let order = prop_oneof![Just(ChainOrder::HashThenCipher), Just(ChainOrder::CipherThenHash)];
    let chain = (order, hash, any::<bool>(), [0usize..50, 0usize..50])
        .prop_map(|(order, hash, keyed, around)| Chain { order, hash, keyed, around });
    let key_len = proptest::sample::select(vec![16usize, 24, 32]);
    let piece = prop_oneof![Just(1usize << 20), 1usize..200];
    (key_len, 0u8..6, 0usize..80, any::<bool>(), proptest::option::of(chain), piece).prop_map(
        |(key_len, seed, blocks, in_place, chain, piece)| Shape {
            key_len,
            seed,
            blocks,
            in_place,
            chain,
            piece,
        },
    )
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn it_leaves_the_same_memory_as_the_library(shapes in vec(shape(), 1..41)) {
        check_against_library(&shapes);
    }
}

#[test]
fn more_jobs_than_it_collects_are_all_done() {
    let shape = |i: usize| Shape {
        key_len: 16,
        seed: i as u8,
        blocks: i % 13,
        in_place: true,
        chain: None,
        piece: 1 << 20,
    };
    check_against_library(&(0..700).map(shape).collect::<Vec<_>>());
}

#[test]
fn it_takes_encryption_with_cbc_and_nothing_else() {
    let engine = MultiBuffer::new(Choice::MultiBuffer).expect("memory");
    let takes = |spec: KeySpec<'_>| engine.takes(&Prepared::new(&spec).expect("a key"), 4096);
    let (key, encrypt) = (&[1; 16][..], Direction::Encrypt);
    assert!(takes(KeySpec::Cipher { cipher: Cipher::AesCbc, direction: encrypt, key }));
    assert!(!takes(KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Decrypt, key }));
    assert!(!takes(KeySpec::Cipher { cipher: Cipher::AesCtr, direction: encrypt, key }));
    assert!(!takes(KeySpec::Cipher { cipher: Cipher::AesEcb, direction: encrypt, key }));
    assert!(!takes(KeySpec::Mac { hash: Hash::Sha256, key, result_len: 32 }));
}

#[test]
fn short_requests_are_left_to_the_library_unless_it_is_told_otherwise() {
    let shape = Shape { key_len: 16, seed: 1, blocks: 4, in_place: true, chain: None, piece: 64 };
    let takes = |choice, len| MultiBuffer::new(choice).expect("memory").takes(&shape.key(), len);
    assert!(!takes(Choice::Auto, 16) && takes(Choice::Auto, 256));
    assert!(takes(Choice::MultiBuffer, 16) && takes(Choice::MultiBuffer, 256));
}

#[test]
fn nothing_is_done_before_it_is_flushed() {
    let shape = Shape { key_len: 16, seed: 1, blocks: 4, in_place: true, chain: None, piece: 64 };
    let (key, buffers) = (shape.key(), Buffers::new(&shape));
    let before = buffers.src.clone();
    let job = Job { tag: 9, key: (&*key).into(), work: buffers.work(&shape) };
    let mut engine = MultiBuffer::new(Choice::MultiBuffer).expect("memory");
    // SAFETY: key and buffers outlive the engine's use of them.
    assert_eq!(unsafe { engine.submit(&[job]) }, 1);
    assert_eq!(engine.poll(&mut |_| panic!("not yet")), 0);
    assert_eq!(engine.in_flight(), 1);
    assert_eq!(buffers.src, before);
    engine.flush();
    assert_eq!(engine.poll(&mut |finished| assert!(matches!(finished, Finished::Done(9, _)))), 1);
    assert_ne!(buffers.src, before);
}
