//! A compression device on foreign libraries, one request after the other, able to lie on demand. It reads requests by the
//! offsets of the specification (docs/compress-device.md), apart from the driver's encoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use benches::compress::foreign;
use compress_protocol::{Checksum, Format};
use memory::MemoryView;
use vhost_user::message::{features, protocol};
use virtqueue::Chain;

use crate::backend::Model;

const QUEUES: u16 = 2;
const HEADER: usize = 64;
const RESPONSE: usize = 32;

/// Ways of the card to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    None,
    /// One bit in the middle of every 50th result is flipped.
    Corrupt,
    /// Every 50th request is completed as if it was done.
    Skip,
    /// Every 50th checksum is wrong.
    WrongSum,
    /// Every 50th request is answered with the tag of another one.
    WrongTag,
    /// Every 50th request ends with ERROR.
    Fail,
    /// Every 50th request is completed without a response.
    NoResponse,
    /// It is something else.
    Foreign,
    /// It only knows LZ4.
    Lz4Only,
}

/// The card.
pub struct Card {
    lie: Lie,
    served: AtomicU64,
}

/// What a request came to.
#[derive(Default)]
struct Answer {
    status: u32,
    consumed: usize,
    result: Vec<u8>,
    sum: u64,
}

impl Card {
    pub fn new(lie: Lie) -> Arc<Self> {
        Arc::new(Self { lie, served: AtomicU64::new(0) })
    }

    /// Requests so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

fn compute(request: &[u8]) -> Answer {
    let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
    let (header, src) = request.split_at(HEADER);
    let (room, level) = (word(16) as usize, word(8).cast_signed());
    assert_eq!(src.len(), word(12) as usize, "src_len is what is there");
    let checksum = Checksum::from_wire(header[3]).unwrap();
    let format = || Format::from_wire(header[2]).unwrap();
    let done = |result: Vec<u8>, plain: &[u8]| Answer {
        consumed: src.len(),
        sum: foreign::sum(checksum, plain),
        result,
        ..Answer::default()
    };
    match u16::from_le_bytes([header[0], header[1]]) {
        1 => match foreign::encode(format(), level, src).unwrap() {
            packed if packed.len() > room => Answer { status: 1, ..Answer::default() },
            packed => done(packed, src),
        },
        2 => match foreign::decode(format(), src, room) {
            Ok(plain) => done(plain.clone(), &plain),
            Err(_) => Answer { status: 3, ..Answer::default() },
        },
        3 => done(Vec::new(), src),
        _ => Answer { status: 5, ..Answer::default() },
    }
}

impl Model for Card {
    fn queues(&self) -> u16 {
        QUEUES
    }

    fn features(&self) -> u64 {
        // CHECKSUM and VERIFY.
        features::VERSION_1 | 1 << 1 | 1 << 2
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG
    }

    fn config(&self) -> Vec<u8> {
        let formats: u32 = if self.lie == Lie::Lz4Only { 1 << 5 | 1 << 6 } else { 0x7e };
        let mut config = if self.lie == Lie::Foreign { *b"NOPE" } else { *b"VCMP" }.to_vec();
        config.extend(1_u16.to_le_bytes());
        config.extend(QUEUES.to_le_bytes());
        config.extend(6_u64.to_le_bytes());
        config.extend(formats.to_le_bytes());
        config.extend(formats.to_le_bytes());
        config.extend(0x1e_u32.to_le_bytes());
        config.extend((1_u32 << 20).to_le_bytes());
        config.extend((1_u32 << 20).to_le_bytes());
        config.extend(128_u16.to_le_bytes());
        config.extend([0; 2 + 4]);
        config.extend(32_u32.to_le_bytes());
        config.extend([[1, 9]; 6].as_flattened());
        config.extend([0; 4]);
        assert_eq!(config.len(), 64);
        config
    }

    fn execute(&self, _index: u16, chain: &mut Chain, view: &MemoryView) -> Option<u32> {
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        let lies = |lie| self.lie == lie && number % 50 == 49;
        let mut request = vec![0; chain.readable_len() as usize];
        chain.read_prefix(view, &mut request).unwrap();
        let room = chain.writable_len() as usize - RESPONSE;
        assert_eq!(room, u32::from_le_bytes(request[16..20].try_into().unwrap()) as usize);
        let mut answer = compute(&request);
        if lies(Lie::Fail) {
            answer = Answer { status: 9, ..Answer::default() };
        }
        let middle = answer.result.len() / 2;
        if let (true, Some(byte)) = (lies(Lie::Corrupt), answer.result.get_mut(middle)) {
            *byte ^= 1;
        }
        answer.sum ^= u64::from(lies(Lie::WrongSum));
        if !lies(Lie::Skip) {
            chain.write_at(view, 0, &answer.result).unwrap();
        }
        let mut response = answer.status.to_le_bytes().to_vec();
        response.extend([0; 4]);
        response.extend((answer.consumed as u32).to_le_bytes());
        response.extend((answer.result.len() as u32).to_le_bytes());
        response.extend(answer.sum.to_le_bytes());
        response.extend(&request[32..40]);
        response[24] ^= u8::from(lies(Lie::WrongTag));
        if !lies(Lie::NoResponse) {
            chain.write_at(view, room, &response).unwrap();
        }
        Some(answer.result.len() as u32)
    }
}
