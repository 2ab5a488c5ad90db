//! The control queue (virtio 1.3 §5.9.7.2): sessions are made and destroyed here by the drivers of door B.
//!
//! A request is copied once, with its keys, and then parsed. It is read as a stream: how its bytes are spread over descriptors
//! means nothing, and what a driver appends is ignored. The worker that has the queue executes it at once, since expensive
//! work on keys is left to their first use.

use crate::algorithm::{MAX_AUTH_KEY, MAX_CIPHER_KEY, Service};
use crate::engine::{KeyError, KeySpec};
use crate::features::VIRTIO_CRYPTO_F_REVISION_1;
use crate::keys::Secret;
use crate::parameters::{self, Asymmetric, HASH_AUTH, MAX_ASYMMETRIC_KEY, OP_CHAINING, Symmetric};
use crate::service::Unit;
use crate::session::{SessionError, SessionId, Sessions};
use crate::vault::{DeviceVault, Origin};
use crate::wire::status::Status;
use memory::MemoryView;
use virtqueue::Chain;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of `struct virtio_crypto_ctrl_header`.
const HEADER: usize = 16;
/// Bytes that the fixed fields take at least unless REVISION_1 is negotiated (`VIRTIO_CRYPTO_CTRLQ_OP_SPEC_HDR_LEGACY`).
const LEGACY_FIELDS: usize = 56;
/// The longest request with a meaning. What is longer is read so far.
const MAX_REQUEST: usize = HEADER + LEGACY_FIELDS + MAX_ASYMMETRIC_KEY;

const _: () = assert!(MAX_CIPHER_KEY + MAX_AUTH_KEY <= MAX_ASYMMETRIC_KEY);

/// `struct virtio_crypto_create_session_input`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Created {
    id: U64,
    status: U32,
    padding: U32,
}

/// `struct virtio_crypto_hash_create_session_flf`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HashFields {
    algorithm: U32,
    result_len: U32,
}

/// `struct virtio_crypto_mac_create_session_flf`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MacFields {
    algorithm: U32,
    result_len: U32,
    key_len: U32,
    padding: U32,
}

/// `struct virtio_crypto_cipher_session_flf`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CipherFields {
    algorithm: U32,
    key_len: U32,
    direction: U32,
    padding: U32,
}

/// `struct virtio_crypto_alg_chain_session_flf`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ChainFields {
    order: U32,
    hash_mode: U32,
    cipher: CipherFields,
    /// With a plain hash the first two fields only.
    hash: MacFields,
    aad_len: U32,
    padding: U32,
}

/// `struct virtio_crypto_sym_create_session_flf`: [`CipherFields`] or [`ChainFields`] in 48 bytes.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SymmetricFields {
    fields: [u8; 48],
    op_type: U32,
    padding: U32,
}

/// `struct virtio_crypto_aead_create_session_flf`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AeadFields {
    algorithm: U32,
    key_len: U32,
    tag_len: U32,
    aad_len: U32,
    direction: U32,
    padding: U32,
}

/// `struct virtio_crypto_akcipher_create_session_flf`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AkcipherFields {
    algorithm: U32,
    key_kind: U32,
    key_len: U32,
    parameters: [U32; 2],
    padding: [u8; 36],
}

const _: () = assert!(size_of::<SymmetricFields>() == 56 && size_of::<AkcipherFields>() == 56);
const _: () = assert!(size_of::<ChainFields>() == 48 && size_of::<AeadFields>() == 24);

/// What a request asks for. It borrows the keys from the copy.
#[derive(Debug)]
pub enum Command<'a> {
    /// Make a session.
    Create(KeySpec<'a>),
    /// Destroy the one with this identifier.
    Destroy(u64),
}

/// What the operations do, by the low byte of the opcode.
enum Kind {
    Create,
    Destroy,
    Unknown,
}

/// Service and kind of an opcode. AKCIPHER numbers its operations differently.
fn opcode(request: &[u8]) -> (Option<Service>, Kind) {
    let Ok((opcode, _)) = U32::read_from_prefix(request) else { return (None, Kind::Unknown) };
    let service = Service::from_wire(opcode.get() >> 8);
    let kind = match (service, opcode.get() & 0xff) {
        (None, _) => Kind::Unknown,
        (Some(Service::Akcipher), 4) => Kind::Create,
        (Some(Service::Akcipher), 5) => Kind::Destroy,
        (Some(Service::Akcipher), _) => Kind::Unknown,
        (Some(_), 2) => Kind::Create,
        (Some(_), 3) => Kind::Destroy,
        (Some(_), _) => Kind::Unknown,
    };
    (service, kind)
}

impl<'a> Command<'a> {
    /// The command in a private copy of the readable bytes of a chain; the status says why there is none. `revision_1`: whether
    /// REVISION_1 is negotiated, without which the fixed fields take 56 bytes whatever they are.
    pub fn parse(request: &'a [u8], revision_1: bool) -> Result<Self, Status> {
        let body = Body { bytes: request.get(HEADER..).ok_or(Status::Err)?, revision_1 };
        match opcode(request) {
            (Some(service), Kind::Create) => body.session(service).map(Self::Create),
            (_, Kind::Destroy) => body.fields::<U64>().map(|(id, _)| Self::Destroy(id.get())),
            _ => Err(Status::NotSupp),
        }
    }
}

/// What follows the header.
#[derive(Clone, Copy)]
struct Body<'a> {
    bytes: &'a [u8],
    revision_1: bool,
}

impl<'a> Body<'a> {
    /// The fixed fields, and what follows them.
    fn fields<T: FromBytes + Immutable + KnownLayout + Unaligned>(self) -> Result<(&'a T, &'a [u8]), Status> {
        let len = if self.revision_1 { size_of::<T>() } else { LEGACY_FIELDS };
        let (fields, rest) = self.bytes.split_at_checked(len).ok_or(Status::Err)?;
        let (fields, _) = T::ref_from_prefix(fields).map_err(|_| Status::Err)?;
        Ok((fields, rest))
    }

    fn session(self, service: Service) -> Result<KeySpec<'a>, Status> {
        match service {
            Service::Cipher => self.symmetric(),
            Service::Hash => {
                let (hash, _) = self.fields::<HashFields>()?;
                parameters::hash(hash.algorithm.get(), hash.result_len.get())
            }
            Service::Mac => {
                let (mac, rest) = self.fields::<MacFields>()?;
                let (key, _) = split(rest, mac.key_len)?;
                parameters::mac(mac.algorithm.get(), mac.result_len.get(), key)
            }
            Service::Aead => {
                let (aead, rest) = self.fields::<AeadFields>()?;
                let (key, _) = split(rest, aead.key_len)?;
                parameters::aead(aead.algorithm.get(), aead.direction.get(), aead.tag_len.get(), key)
            }
            Service::Akcipher => {
                let (fields, rest) = self.fields::<AkcipherFields>()?;
                let parameters = Asymmetric {
                    algorithm: fields.algorithm.get(),
                    key_kind: fields.key_kind.get(),
                    parameters: fields.parameters.map(U32::get),
                };
                parameters.spec(split(rest, fields.key_len)?.0)
            }
        }
    }

    /// virtio 1.3 §5.9.7.2.1.4.
    fn symmetric(self) -> Result<KeySpec<'a>, Status> {
        let (symmetric, rest) = self.fields::<SymmetricFields>()?;
        let op_type = symmetric.op_type.get();
        if op_type != OP_CHAINING {
            let (cipher, _) = CipherFields::ref_from_prefix(&symmetric.fields).map_err(|_| Status::Err)?;
            let parameters = Symmetric {
                op_type,
                cipher: cipher.algorithm.get(),
                direction: cipher.direction.get(),
                order: 0,
                hash_mode: 0,
                hash: 0,
                result_len: 0,
            };
            return parameters.spec(split(rest, cipher.key_len)?.0, &[]);
        }
        let (chain, _) = ChainFields::ref_from_prefix(&symmetric.fields).map_err(|_| Status::Err)?;
        let (cipher_key, rest) = split(rest, chain.cipher.key_len)?;
        let keyed = chain.hash_mode.get() == HASH_AUTH;
        let auth_key = if keyed { split(rest, chain.hash.key_len)?.0 } else { &[] };
        let parameters = Symmetric {
            op_type,
            cipher: chain.cipher.algorithm.get(),
            direction: chain.cipher.direction.get(),
            order: chain.order.get(),
            hash_mode: chain.hash_mode.get(),
            hash: chain.hash.algorithm.get(),
            result_len: chain.hash.result_len.get(),
        };
        parameters.spec(cipher_key, auth_key)
    }
}

/// A key of this length, and what follows it.
fn split(bytes: &[u8], len: U32) -> Result<(&[u8], &[u8]), Status> {
    bytes.split_at_checked(len.get() as usize).ok_or(Status::Err)
}

/// Executes the request in `chain` and writes its outcome; returns how many bytes were written.
pub fn serve(unit: &Unit, chain: &mut Chain, mem: &MemoryView) -> u32 {
    let revision_1 = unit.features() & VIRTIO_CRYPTO_F_REVISION_1 != 0;
    Executor { sessions: unit.sessions(), vault: unit.vault(), revision_1 }.serve(chain, mem)
}

/// What a request is executed on.
struct Executor<'a> {
    sessions: &'a Sessions,
    vault: Option<&'a DeviceVault>,
    revision_1: bool,
}

impl Executor<'_> {
    fn serve(&self, chain: &Chain, mem: &MemoryView) -> u32 {
        let mut header = [0; HEADER];
        if chain.read_at(mem, 0, &mut header).is_err() {
            // Too short, which the opcode of 0 stands for, or the memory went away under the request.
            header.fill(0);
        }
        let room = chain.writable_len() as usize;
        let creates = match opcode(&header).1 {
            Kind::Create => true,
            Kind::Destroy => false,
            // Nobody knows what its outcome looks like; like QEMU, the greater one.
            Kind::Unknown => room >= size_of::<Created>(),
        };
        let needed = if creates { size_of::<Created>() } else { size_of::<u8>() };
        if room < needed {
            // A session whose identifier the driver could not learn would stay for ever.
            tracing::debug!(room, needed, "A control request has no room for its outcome");
            return 0;
        }
        let outcome = self.outcome(header, chain, mem);
        let written = if creates {
            let (id, status) = match outcome {
                Ok(id) => (id, Status::Ok),
                Err(status) => (0, status),
            };
            let created = Created { id: id.into(), status: (status as u32).into(), padding: 0.into() };
            chain.write_at(mem, 0, created.as_bytes())
        } else {
            let status = outcome.err().unwrap_or(Status::Ok);
            chain.write_at(mem, 0, &[status as u8])
        };
        written.map_or(0, |()| needed as u32)
    }

    /// Executes the request, of which the header was read already and is not read again.
    fn outcome(&self, header: [u8; HEADER], chain: &Chain, mem: &MemoryView) -> Result<u64, Status> {
        let len = (chain.readable_len() as usize).clamp(HEADER, MAX_REQUEST);
        let mut request = Secret::zeroed(len).map_err(|_| self.no_space())?;
        let (front, body) = request.split_at_mut(HEADER);
        front.copy_from_slice(&header);
        chain.read_at(mem, HEADER, body).map_err(|_| Status::Err)?;
        self.execute(Command::parse(&request, self.revision_1)?, chain)
    }

    /// The identifier of a new session; 0 for a destroyed one.
    fn execute(&self, command: Command<'_>, chain: &Chain) -> Result<u64, Status> {
        let token = chain.token();
        let origin = Origin::control(token.id());
        match command {
            Command::Create(spec) => {
                let made = self.vault.filter(|_| token.resubmitted()).and_then(|vault| vault.find(origin));
                if let Some(id) = made {
                    return Ok(id);
                }
                self.sessions.create(&spec, origin).map(SessionId::wire).map_err(|error| self.status(&error))
            }
            // A predecessor may have destroyed it already, and died before it could say so.
            Command::Destroy(id) => {
                let closed = SessionId::from_wire(id).is_some_and(|id| self.sessions.close(id));
                if closed || token.resubmitted() { Ok(0) } else { Err(Status::Err) }
            }
        }
    }

    /// virtio 1.3 §5.9.7.2.1.8: OK, NOTSUPP, NOSPC or ERR.
    fn status(&self, error: &SessionError) -> Status {
        tracing::debug!(%error, "A session is refused");
        match error {
            SessionError::Key(KeyError::NotSupported(_)) => Status::NotSupp,
            SessionError::Limit(_) | SessionError::Unrecorded | SessionError::Key(KeyError::NoMemory(_)) => {
                self.no_space()
            }
            _ => Status::Err,
        }
    }

    /// NOSPC exists only with REVISION_1 (virtio 1.3 §5.9.7.1).
    fn no_space(&self) -> Status {
        if self.revision_1 { Status::NoSpc } else { Status::Err }
    }
}

#[cfg(test)]
#[path = "ctrl_tests.rs"]
mod tests;
