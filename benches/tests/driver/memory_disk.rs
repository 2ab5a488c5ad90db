//! A disk in memory, able to lie on demand.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use benches::blk::wire::{Config, Header, Range, feature, request, status};
use memory::MemoryView;
use vhost_user::message::{features, protocol};
use virtqueue::Chain;
use zerocopy::{FromBytes, IntoBytes};

use crate::backend::Model;

/// Ways of the backend to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lie {
    None,
    /// One byte of every 50th read is flipped.
    CorruptRead,
    /// Every 50th write is acknowledged and dropped.
    DropWrite,
    /// Every 50th write goes to the next block.
    MisplaceWrite,
    /// Every 50th read is completed without touching the buffer.
    SkipRead,
    /// Every 50th request is completed with IOERR.
    Fail,
    /// Every 50th request is completed without a status.
    NoStatus,
    /// Requests are taken and never completed.
    Swallow,
}

/// State that survives the backend, like a file survives a daemon.
#[derive(Debug)]
pub struct Shared {
    pub bytes: Mutex<Vec<u8>>,
    pub flushes: AtomicU64,
    pub discarded: AtomicU64,
    lie: AtomicU32,
    read_only: AtomicBool,
    served: AtomicU64,
}

impl Shared {
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; len]),
            flushes: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            lie: AtomicU32::new(Lie::None as u32),
            read_only: AtomicBool::new(false),
            served: AtomicU64::new(0),
        })
    }

    pub fn lie(&self, lie: Lie) {
        self.lie.store(lie as u32, Ordering::Relaxed);
    }

    pub fn set_read_only(&self) {
        self.read_only.store(true, Ordering::Relaxed);
    }

    fn lies(&self, lie: Lie, count: u64) -> bool {
        self.lie.load(Ordering::Relaxed) == lie as u32 && (lie == Lie::Swallow || count % 50 == 49)
    }
}

impl Model for Shared {
    fn queues(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        let blk = features::VERSION_1
            | feature::SEG_MAX
            | feature::FLUSH
            | feature::MQ
            | feature::DISCARD
            | feature::WRITE_ZEROES;
        let ro = if self.read_only.load(Ordering::Relaxed) { feature::RO } else { 0 };
        blk | ro
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG
    }

    fn config(&self) -> Vec<u8> {
        let sectors = self.bytes.lock().unwrap().len() as u64 / 512;
        let config = Config {
            capacity: sectors.into(),
            seg_max: 126.into(),
            blk_size: 512.into(),
            num_queues: 4.into(),
            max_discard_sectors: 2048.into(),
            max_discard_seg: 1.into(),
            max_write_zeroes_sectors: 2048.into(),
            ..Config::default()
        };
        config.as_bytes().to_vec()
    }

    fn execute(&self, _index: u16, chain: &mut Chain, view: &MemoryView) -> Option<u32> {
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        if self.lies(Lie::Swallow, number) {
            return None;
        }
        let mut header = [0; size_of::<Header>()];
        chain.read_prefix(view, &mut header).unwrap();
        let header = Header::read_from_bytes(&header).unwrap();
        chain.detach_status().unwrap();
        let data_len = chain.writable_len() as u32;
        let outcome = if self.lies(Lie::Fail, number) {
            status::IOERR
        } else {
            self.transfer(chain, view, header, number)
        };
        if !self.lies(Lie::NoStatus, number) {
            chain.write_status(view, outcome).unwrap();
        }
        Some(data_len + 1)
    }
}

impl Shared {
    fn transfer(&self, chain: &mut Chain, view: &MemoryView, header: Header, number: u64) -> u8 {
        let mut bytes = self.bytes.lock().unwrap();
        let start = header.sector.get() as usize * 512;
        match header.kind.get() {
            request::IN => {
                let len = chain.writable_len() as usize;
                let Some(source) = bytes.get(start..start + len) else { return status::IOERR };
                let mut data = source.to_vec();
                if self.lies(Lie::CorruptRead, number) {
                    data[len / 2] ^= 1;
                }
                if !self.lies(Lie::SkipRead, number) {
                    chain.write_at(view, 0, &data).unwrap();
                }
                status::OK
            }
            request::OUT => {
                let len = chain.readable_len() as usize;
                let shift = if self.lies(Lie::MisplaceWrite, number) { len } else { 0 };
                let mut data = vec![0; len];
                chain.read_prefix(view, &mut data).unwrap();
                let end = bytes.len();
                let start = if start + shift + len > end { 0 } else { start + shift };
                if start + len > end {
                    return status::IOERR;
                }
                if !self.lies(Lie::DropWrite, number) {
                    bytes[start..start + len].copy_from_slice(&data);
                }
                status::OK
            }
            request::FLUSH => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
                status::OK
            }
            kind @ (request::DISCARD | request::WRITE_ZEROES) => {
                let mut range = [0; size_of::<Range>()];
                chain.read_prefix(view, &mut range).unwrap();
                let range = Range::read_from_bytes(&range).unwrap();
                let (start, len) = (range.sector.get() as usize * 512, range.sectors.get() as usize * 512);
                if kind == request::DISCARD {
                    self.discarded.fetch_add(len as u64, Ordering::Relaxed);
                } else {
                    bytes[start..start + len].fill(0);
                }
                status::OK
            }
            _ => status::UNSUPP,
        }
    }
}
