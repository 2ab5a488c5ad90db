//! From a chain to what an engine is asked for: headers and everything that is parsed are copied out of guest memory once,
//! then looked at.
//!
//! # Conventions where the specification leaves a choice
//!
//! - The result of a cipher is as long as its source; `dst_data_len` may be larger, what is beyond is not written.
//! - AEAD: encryption writes the ciphertext and the tag right behind it. The source of a decryption is the ciphertext with
//!   the tag right behind it, `src_data_len` counts both. `iv_len` bytes of IV are sent, no padding.
//! - Chained algorithms: the destination is an image of the source, of which the part to be ciphered is; the digest comes
//!   `dst_data_len` bytes into the writable part. Additional data beside the source is not supported.
//! - A digest is as long as the session says; the request must have room for it.
//! - AKCIPHER: the used length tells how long the result is, with the status byte.

use crate::algorithm::{
    Aead, Akcipher, Cipher, Curve, Direction, Hash, KeyKind, MAX_AUTH_KEY, MAX_CIPHER_KEY, MAX_TAG,
    RsaPadding,
};
use crate::engine::{
    AkcipherOp, Bytes, Group, Iv, KeyError, KeyRef, KeySpec, Prepared, Ranges, Recipe, Span, Tag, Work,
};
use crate::journal::{Journal, Place, overlaps};
use crate::keys::{Account, Secret};
use crate::queue::request::{Request, status_of};
use crate::service::Unit;
use crate::session::{Cache, SessionId};
use crate::stats::Algo;
use crate::wire::request::{self as wire, Data, Header, KeySource, Layout, Op, Stateless, StatelessChain};
use crate::wire::status::Status;
use memory::{HostRange, MemoryView};
use std::sync::Arc;
use virtqueue::{Chain, Short};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroizing;

/// Most bytes of additional authenticated data: a private copy is made of it.
pub const MAX_AAD: u32 = 64 << 10;

/// Longest key of a stateless asymmetric request: an RSA private key of 8192 bits takes less than 5 KiB.
pub const MAX_AKCIPHER_KEY: u32 = 8 << 10;

/// Longest input of an asymmetric request: RSA of 8192 bits takes 1 KiB, and digests are short.
pub const MAX_AKCIPHER_INPUT: u32 = 4 << 10;

/// Why a request is answered without having been tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// With this status.
    Status(Status),
    /// There is no room for a status.
    NoStatus,
    /// Not at all: it goes back to the ring, until the journal has room.
    Later,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Short> for Refusal {
    fn from(_: Short) -> Self {
        Self::Status(Status::Err)
    }
}

const ERR: Refusal = Refusal::Status(Status::Err);

/// A request that can be computed.
pub enum Accepted {
    /// By an engine, which is to do the [`Request::work`].
    Job {
        /// With this key; whoever made it is in the [`Request`].
        key: KeyRef,
        /// In this company.
        group: Group,
    },
    /// By the asymmetric pool.
    Task {
        /// With this key.
        key: Arc<Prepared>,
        /// This.
        op: AkcipherOp,
        /// Plaintext, ciphertext, digest or signature.
        input: Zeroizing<Vec<u8>>,
        /// What a signature is checked against.
        digest: Vec<u8>,
    },
}

/// Where requests come from: one ring, in one burst.
pub struct Intake<'a> {
    /// The device.
    pub unit: &'a Unit,
    /// The shape of its requests.
    pub layout: Layout,
    /// Its sessions.
    pub cache: &'a mut Cache,
    /// Where sources are set aside.
    pub journal: Option<&'a mut Journal>,
    /// The device's number for the journal, and the index of the ring.
    pub place: (u64, u16),
    /// Its memory.
    pub mem: &'a MemoryView,
}

impl Intake<'_> {
    /// Reads the chain of `request`. What it acquires on the way (a session, keys of its own) is in the request even when
    /// it is refused.
    #[inline(always)]
    pub fn accept(&mut self, request: &mut Request) -> Result<Accepted, Refusal> {
        let mem = self.mem;
        let chain = &mut request.chain;
        chain.detach_status().map_err(|Short| Refusal::NoStatus)?;
        let mut front = Front::new_zeroed();
        let opened = front.read(chain, mem, self.layout)?;
        let parsed = opened.parse(self.layout.revision_1(), &front.fixed)?;
        request.service = parsed.service;
        match parsed.key {
            KeySource::Session(id) => {
                let id = SessionId::from_wire(id).ok_or(Status::InvSess)?;
                self.cache.acquire(id).ok_or(Status::InvSess)?;
                request.session = Some(id);
                self.secure(request, &parsed.data)?;
                let key = self.cache.get(id).ok_or(Status::InvSess)?;
                shape(request, mem, self.unit, key, &parsed)
            }
            KeySource::Request(stateless) => {
                let account = self.cache.sessions().account();
                let key = own_key(&mut request.chain, mem, account, &stateless)?;
                request.own = Some(key.clone());
                self.secure(request, &parsed.data)?;
                shape(request, mem, self.unit, &key, &parsed)
            }
        }
    }
}

/// Header and fixed part.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Front {
    header: Header,
    fixed: wire::Fixed,
}

impl Front {
    /// Reads header and fixed part. Without REVISION_1 all have the same length, and are read at once.
    #[inline(always)]
    fn read(&mut self, chain: &mut Chain, mem: &MemoryView, layout: Layout) -> Result<wire::Opened, Refusal> {
        if !layout.revision_1() {
            chain.read_prefix(mem, &mut self.as_mut_bytes()[..wire::HEADER_LEN + wire::LEGACY_FIXED_LEN])?;
            return Ok(wire::open(layout, &self.header)?);
        }
        chain.read_prefix(mem, self.header.as_mut_bytes())?;
        let opened = wire::open(layout, &self.header)?;
        chain.read_prefix(mem, &mut self.fixed.as_mut_bytes()[..opened.fixed_len])?;
        Ok(opened)
    }
}

impl Intake<'_> {
    /// A request must not be computed from a source that it has overwritten itself, in a process that died. So while there
    /// is a journal, what is about to be overwritten is set aside, and brought back for a request that comes again. Without
    /// one, or when it is too small for the source, such a request fails.
    #[inline]
    fn secure(&mut self, request: &mut Request, data: &Data) -> Result<(), Refusal> {
        let again = request.chain.token().resubmitted();
        if self.journal.is_none() && !again {
            return Ok(());
        }
        self.secure_overlap(request, data, again)
    }

    #[cold]
    fn secure_overlap(&mut self, request: &mut Request, data: &Data, again: bool) -> Result<(), Refusal> {
        let len = data.readable_len();
        if len > self.unit.max_size() + u64::from(MAX_AAD) + u64::from(MAX_AKCIPHER_INPUT) {
            return Err(ERR);
        }
        let (source, target) = (front(request.chain.readable(), len as usize), request.chain.writable());
        if !overlaps(&source, target) {
            return Ok(());
        }
        let bytes = source.iter().map(|range| range.len).sum();
        let Some(journal) = self.journal.as_mut().filter(|journal| journal.holds(bytes)) else {
            return if again { Err(ERR) } else { Ok(()) };
        };
        if !again && matches!(data, Data::Akcipher { .. }) && journal.is_crowded() {
            // They take long: others, of other guests too, must find room meanwhile.
            return Err(Refusal::Later);
        }
        let (mem, (device, queue)) = (self.mem, self.place);
        let at = Place { device, queue, id: request.chain.token().id() };
        if again {
            journal.restore(at, mem, &source);
        }
        request.saved = journal.protect(at, mem, &source, target).map_err(|_| Refusal::Later)?;
        Ok(())
    }
}

/// The first `len` bytes of a list, or all of it.
fn front(list: &[HostRange], len: usize) -> Vec<HostRange> {
    let mut left = len;
    let mut front = Vec::new();
    for range in list {
        let Some(range) = range.sub(0, range.len.min(left)).filter(|range| !range.is_empty()) else { break };
        left -= range.len;
        front.push(range);
    }
    front
}

/// Turns the rest of the chain into work for this key.
#[inline(always)]
fn shape(
    request: &mut Request,
    mem: &MemoryView,
    unit: &Unit,
    key: &Arc<Prepared>,
    parsed: &wire::Request,
) -> Result<Accepted, Refusal> {
    request.algo = Algo::of(key.recipe());
    if key.service() != parsed.service {
        // The id names a session, but none of this service.
        return Err(Status::InvSess.into());
    }
    let way = match parsed.op {
        Op::Encrypt => Some(Direction::Encrypt),
        Op::Decrypt => Some(Direction::Decrypt),
        Op::Digest | Op::Sign | Op::Verify => None,
    };
    if key.direction().is_some_and(|direction| Some(direction) != way) {
        return Err(ERR);
    }
    let mut buffers = Buffers { request, mem, max_size: unit.max_size() };
    match (parsed.data, key.recipe()) {
        (Data::Cipher { iv, src, .. }, Recipe::Cipher { .. }) => buffers.cipher(iv, src, key)?,
        (Data::Chain { .. }, Recipe::Chain { .. }) => buffers.chain(&parsed.data, key)?,
        (Data::Digest { src, result }, Recipe::Hash { .. } | Recipe::Mac { .. }) => {
            buffers.digest(src, result, key)?
        }
        (Data::Aead { iv, aad, src, dst, tag }, Recipe::Aead { direction, .. }) => {
            if tag.is_some_and(|tag| tag as usize != key.tag_len()) {
                return Err(ERR);
            }
            buffers.aead(AeadSizes { iv, aad, src, dst }, direction, key)?
        }
        (Data::Akcipher { src, dst }, Recipe::Akcipher { .. }) => {
            return buffers.akcipher(parsed.op, src, dst, key.clone());
        }
        // A chain for a plain cipher's session, or the reverse.
        _ => return Err(ERR),
    }
    // Before anything is written: what is refused later counts as written to, for the dirty log.
    key.check(&request.work).map_err(status_of)?;
    if let Work::Chain { cipher, src, .. } = &request.work {
        copy_around(&request.chain, mem, *cipher, src.len());
    }
    Ok(Accepted::Job { key: KeyRef::from(&**key), group: key.group() })
}

/// Lengths of an AEAD request.
struct AeadSizes {
    iv: u32,
    aad: u32,
    src: u32,
    dst: u32,
}

/// The variable part of a request, of which its [`Request::work`] is made.
struct Buffers<'a> {
    request: &'a mut Request,
    mem: &'a MemoryView,
    max_size: u64,
}

impl Buffers<'_> {
    /// A private copy of the IV, which comes first.
    #[inline]
    fn iv(&mut self, len: u32, key: &Prepared) -> Result<Iv, Refusal> {
        if !key.takes_iv(len as usize) {
            return Err(ERR);
        }
        let mut iv = Iv::zeroed(len as usize).ok_or(ERR)?;
        self.request.chain.read_prefix(self.mem, iv.as_mut_slice())?;
        Ok(iv)
    }

    /// `len` readable bytes from `offset` on.
    #[inline]
    fn source(&mut self, offset: u32, len: u32) -> Result<Ranges, Refusal> {
        if u64::from(len) > self.max_size {
            return Err(ERR);
        }
        Ranges::new(self.request.chain.readable(), offset as usize, len as usize).ok_or(ERR)
    }

    /// `len` writable bytes from `offset` on. Whatever is written ends there at the latest.
    #[inline]
    fn target(&mut self, offset: usize, len: usize) -> Result<Ranges, Refusal> {
        let end = offset.checked_add(len).and_then(|end| u32::try_from(end).ok()).ok_or(ERR)?;
        let target = Ranges::new(self.request.chain.writable(), offset, len).ok_or(ERR)?;
        self.request.reply = self.request.reply.max(end);
        Ok(target)
    }

    #[inline(always)]
    fn cipher(&mut self, iv: u32, src: u32, key: &Prepared) -> Result<(), Refusal> {
        let iv = self.iv(iv, key)?;
        self.request.bytes = src.into();
        let (src, dst) = (self.source(0, src)?, self.target(0, src as usize)?);
        self.request.work = Work::Cipher { iv, src, dst };
        Ok(())
    }

    fn chain(&mut self, data: &Data, key: &Prepared) -> Result<(), Refusal> {
        let Data::Chain { iv, src, dst, cipher, hash, aad, result } = *data else { return Err(ERR) };
        if aad > 0 {
            return Err(Status::NotSupp.into());
        }
        if (result as usize) < key.result_len() {
            return Err(ERR);
        }
        let iv = self.iv(iv, key)?;
        self.request.bytes = src.into();
        let source = self.source(0, src)?;
        let image = self.target(0, src as usize)?;
        let digest = self.target(dst as usize, key.result_len())?;
        let span = |span: wire::Span| Span { start: span.start as usize, len: span.len as usize };
        let dst = image.sub(cipher.start as usize, cipher.len as usize).ok_or(ERR)?;
        let (cipher, hash) = (span(cipher), span(hash));
        self.request.work = Work::Chain { iv, src: source, cipher, hash, dst, digest };
        Ok(())
    }

    fn digest(&mut self, src: u32, result: u32, key: &Prepared) -> Result<(), Refusal> {
        if (result as usize) < key.result_len() {
            return Err(ERR);
        }
        self.request.bytes = src.into();
        let (src, digest) = (self.source(0, src)?, self.target(0, key.result_len())?);
        self.request.work = Work::Digest { src, digest };
        Ok(())
    }

    fn aead(&mut self, sizes: AeadSizes, direction: Direction, key: &Prepared) -> Result<(), Refusal> {
        let AeadSizes { iv, aad, src, dst } = sizes;
        let tag_len = key.tag_len();
        let (text, room) = match direction {
            Direction::Encrypt => (src as usize, (src as usize).checked_add(tag_len).ok_or(ERR)?),
            Direction::Decrypt => {
                let text = (src as usize).checked_sub(tag_len).ok_or(ERR)?;
                (text, text)
            }
        };
        if aad > MAX_AAD || (dst as usize) < room {
            return Err(ERR);
        }
        let iv = self.iv(iv, key)?;
        self.request.bytes = src.into();
        let source = self.source(0, src)?.sub(0, text).ok_or(ERR)?;
        self.request.aad.resize(aad as usize, 0);
        self.request.chain.read_at(self.mem, src as usize, &mut self.request.aad)?;
        let target = self.target(0, text)?;
        let tag = match direction {
            Direction::Encrypt => Tag::Write(self.target(text, tag_len)?),
            Direction::Decrypt => {
                let mut tag = [0; MAX_TAG];
                let place = tag.get_mut(..tag_len).ok_or(ERR)?;
                self.request.chain.read_at(self.mem, text, place)?;
                Tag::Check(tag)
            }
        };
        let aad = Bytes::from(&*self.request.aad);
        self.request.work = Work::Aead { iv, aad, src: source, dst: target, tag };
        Ok(())
    }

    /// Operation, input, and what a signature is checked against. For a verification `src` is the length of the signature
    /// and `dst` that of the digest, both of which are readable (virtio 1.3 §5.9.7.9).
    fn akcipher(&mut self, op: Op, src: u32, dst: u32, key: Arc<Prepared>) -> Result<Accepted, Refusal> {
        let verify = op == Op::Verify;
        if src > MAX_AKCIPHER_INPUT || (verify && dst > MAX_AKCIPHER_INPUT) {
            return Err(ERR);
        }
        self.request.bytes = src.into();
        let mut input = Zeroizing::new(vec![0; src as usize]);
        self.request.chain.read_at(self.mem, 0, &mut input)?;
        let mut digest = Vec::new();
        if verify {
            digest.resize(dst as usize, 0);
            self.request.chain.read_at(self.mem, src as usize, &mut digest)?;
        } else if u64::from(dst) > self.request.chain.writable_len() {
            return Err(ERR);
        } else {
            self.request.reply = dst;
        }
        let op = match op {
            Op::Encrypt => AkcipherOp::Encrypt,
            Op::Decrypt => AkcipherOp::Decrypt,
            Op::Sign => AkcipherOp::Sign,
            Op::Verify => AkcipherOp::Verify,
            Op::Digest => return Err(ERR),
        };
        Ok(Accepted::Task { key, op, input, digest })
    }
}

/// The keys that a stateless request brings, which come before everything else.
#[cold]
fn own_key(
    chain: &mut Chain,
    mem: &MemoryView,
    account: &Account,
    stateless: &Stateless,
) -> Result<Arc<Prepared>, Refusal> {
    let (cipher_len, auth_len) = stateless.key_lens();
    let most = match stateless {
        Stateless::Akcipher { .. } => MAX_AKCIPHER_KEY,
        _ => MAX_CIPHER_KEY as u32,
    };
    if cipher_len > most || auth_len > MAX_AUTH_KEY as u32 {
        return Err(ERR);
    }
    let mut bytes = Secret::zeroed((cipher_len + auth_len) as usize).map_err(|_| ERR)?;
    chain.read_prefix(mem, &mut bytes)?;
    let (key, auth_key) = bytes.split_at(cipher_len as usize);
    let spec = key_spec(stateless, key, auth_key)?;
    Prepared::on(account, &spec).map_err(|error| match error {
        KeyError::NotSupported(_) => Status::NotSupp.into(),
        // The one service that has this status (virtio 1.3 §5.9.7.1).
        KeyError::Rejected(_) if matches!(stateless, Stateless::Akcipher { .. }) => {
            Status::KeyRejected.into()
        }
        KeyError::Rejected(_) | KeyError::Invalid(_) | KeyError::NoMemory(_) => ERR,
    })
}

fn key_spec<'a>(stateless: &Stateless, key: &'a [u8], auth_key: &'a [u8]) -> Result<KeySpec<'a>, Refusal> {
    const UNKNOWN: Refusal = Refusal::Status(Status::NotSupp);
    Ok(match *stateless {
        Stateless::Cipher { algo, direction, .. } => {
            KeySpec::Cipher { cipher: Cipher::from_wire(algo).ok_or(UNKNOWN)?, direction, key }
        }
        Stateless::Chain(chain) => chain_spec(&chain, key, auth_key)?,
        Stateless::Hash { algo, result_len } => {
            KeySpec::Hash { hash: Hash::from_wire(algo).ok_or(UNKNOWN)?, result_len: result_len as usize }
        }
        Stateless::Mac { algo, result_len, .. } => KeySpec::Mac {
            hash: Hash::from_mac_wire(algo).ok_or(UNKNOWN)?,
            key: auth_key,
            result_len: result_len as usize,
        },
        Stateless::Aead { algo, tag_len, direction, .. } => KeySpec::Aead {
            aead: Aead::from_wire(algo).ok_or(UNKNOWN)?,
            direction,
            key,
            tag_len: tag_len as usize,
        },
        Stateless::Akcipher { algo, key_type, parameters, .. } => KeySpec::Akcipher {
            algorithm: akcipher(algo, parameters).ok_or(UNKNOWN)?,
            kind: KeyKind::from_wire(key_type).ok_or(ERR)?,
            der: key,
        },
    })
}

fn chain_spec<'a>(
    chain: &StatelessChain,
    cipher_key: &'a [u8],
    auth_key: &'a [u8],
) -> Result<KeySpec<'a>, Refusal> {
    const UNKNOWN: Refusal = Refusal::Status(Status::NotSupp);
    let (hash, mac_key) = match chain.hash_mode {
        wire::VIRTIO_CRYPTO_SYM_HASH_MODE_PLAIN => (Hash::from_wire(chain.hash_algo), None),
        wire::VIRTIO_CRYPTO_SYM_HASH_MODE_AUTH => (Hash::from_mac_wire(chain.hash_algo), Some(auth_key)),
        _ => return Err(UNKNOWN),
    };
    Ok(KeySpec::Chain {
        cipher: Cipher::from_wire(chain.algo).ok_or(UNKNOWN)?,
        direction: chain.direction,
        order: chain.order,
        hash: hash.ok_or(UNKNOWN)?,
        cipher_key,
        mac_key,
        result_len: chain.hash_result_len as usize,
    })
}

/// A public-key algorithm of these wire numbers, if the device has it.
fn akcipher(algo: u32, parameters: [u32; 2]) -> Option<Akcipher> {
    match algo {
        Akcipher::WIRE_RSA => {
            Some(Akcipher::Rsa { padding: RsaPadding::from_wire(parameters[0], parameters[1])? })
        }
        Akcipher::WIRE_ECDSA | Akcipher::WIRE_ECDSA_LINUX => {
            Some(Akcipher::Ecdsa { curve: Curve::from_wire(parameters[0])? })
        }
        _ => None,
    }
}

/// Copies what lies around a part of the source to the same places of the destination.
fn copy_around(chain: &Chain, mem: &MemoryView, part: Span, len: usize) {
    let end = part.start + part.len;
    for (start, end) in [(0, part.start), (end, len)] {
        copy(mem, chain.readable(), chain.writable(), start, end.saturating_sub(start));
    }
}

/// Copies `len` bytes from `start` on, from one list to the same place of another. In place there is nothing to do.
fn copy(mem: &MemoryView, from: &[HostRange], to: &[HostRange], start: usize, len: usize) {
    let (mut from, mut to) = (Pieces::new(from, start), Pieces::new(to, start));
    let mut left = len;
    while left > 0 {
        let run = left.min(from.here()).min(to.here());
        let (Some(source), Some(target)) = (from.take(run), to.take(run)) else { return };
        if source.base != target.base
            && let (Some(source), Some(target)) = (mem.reenter(source), mem.reenter(target))
        {
            source.copy_to(target);
        }
        left -= run;
    }
}

/// A walk over a list of ranges.
struct Pieces<'a> {
    list: &'a [HostRange],
    offset: usize,
}

impl<'a> Pieces<'a> {
    fn new(list: &'a [HostRange], start: usize) -> Self {
        let mut pieces = Self { list, offset: start };
        pieces.settle();
        pieces
    }

    /// Goes on to the range that has the next byte.
    fn settle(&mut self) {
        while let [first, rest @ ..] = self.list
            && self.offset >= first.len
        {
            self.offset -= first.len;
            self.list = rest;
        }
    }

    /// Bytes that lie together here; 0 at the end.
    fn here(&self) -> usize {
        self.list.first().map_or(0, |first| first.len - self.offset)
    }

    fn take(&mut self, len: usize) -> Option<HostRange> {
        let piece = self.list.first()?.sub(self.offset, len).filter(|piece| !piece.is_empty())?;
        self.offset += len;
        self.settle();
        Some(piece)
    }
}
