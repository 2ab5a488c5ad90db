//! A small virtio-crypto driver in the test itself: one data queue and AES-128-CBC, and a way to misbehave.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use anyhow::{Result, ensure};
use vhost_user::frontend::driver::{Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::{features, protocol};

use crate::bare::{Bare, DATA, EVENT_IDX, HEADER, INDIRECT_DESC, STATUS};

/// VIRTIO_CRYPTO_OK
pub const OK: u8 = 0;
/// VIRTIO_CRYPTO_INVSESS
pub const INVALID_SESSION: u8 = 4;

/// Opcodes of data requests: service and operation (virtio 1.3 §5.9.7.4).
pub const ENCRYPT: u32 = 0;
/// The same backwards.
pub const DECRYPT: u32 = 1;

/// Bytes of a request before its variable part, without REVISION_1.
pub const HEADER_LEN: usize = 72;
/// Bytes of the initialisation vector.
pub const IV_LEN: usize = 16;

/// NIST SP 800-38A §F.2.1.
const KEY: [u8; 16] = 0x2b7e1516_28aed2a6_abf71588_09cf4f3c_u128.to_be_bytes();
const IV: [u8; 16] = 0x00010203_04050607_08090a0b_0c0d0e0f_u128.to_be_bytes();
const PLAIN: [u8; 16] = 0x6bc1bee2_2e409f96_e93d7e11_7393172a_u128.to_be_bytes();
const SECRET: [u8; 16] = 0x7649abac_8119b246_cee98e9b_12e9197d_u128.to_be_bytes();

/// An attached device with one running data queue and a session, as QEMU's `cryptodev-vhost-user` has them.
pub struct CryptoDriver {
    bare: Bare,
    id: u64,
}

impl Deref for CryptoDriver {
    type Target = Bare;

    fn deref(&self) -> &Bare {
        &self.bare
    }
}

impl DerefMut for CryptoDriver {
    fn deref_mut(&mut self) -> &mut Bare {
        &mut self.bare
    }
}

impl CryptoDriver {
    /// Connects to `socket`, starts its data queue with 64 entries and makes a session.
    ///
    /// # Errors
    /// When the backend refuses anything.
    pub fn attach(socket: &Path) -> Result<Self> {
        let mut bare = cryptodev(socket)?;
        let id = bare.session.frontend.create_crypto_session(&description(&KEY))?;
        Ok(Self { bare, id })
    }

    /// The session's number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Closes the session.
    ///
    /// # Errors
    /// When the backend is gone.
    pub fn close(&mut self) -> Result<()> {
        Ok(self.bare.session.frontend.close_crypto_session(self.id)?)
    }

    /// Encrypts a block whose result is known, and checks it.
    ///
    /// # Errors
    /// When the request is not completed with the right result.
    pub fn works(&mut self) -> Result<()> {
        let status = self.encrypt()?;
        ensure!(status == OK, "the request ended with status {status}");
        ensure!(self.get(DATA, SECRET.len())? == SECRET, "the block is encrypted differently");
        Ok(())
    }

    /// The same without looking at the result; returns the status.
    ///
    /// # Errors
    /// When it is not completed in time.
    pub fn encrypt(&mut self) -> Result<u8> {
        let block = PLAIN.len() as u32;
        self.put(HEADER, &request(ENCRYPT, self.id, block, block))?;
        self.put(HEADER + HEADER_LEN as u64, &[IV, PLAIN].concat())?;
        self.put(DATA, &[0xa5; PLAIN.len()])?;
        let readable = (HEADER, (HEADER_LEN + IV_LEN) as u32 + block);
        self.run(&[readable], &[(DATA, block), (STATUS, 1)])
    }
}

/// Data queue 0, negotiated as QEMU's `cryptodev-vhost-user` does: no feature of the driver's is told to the device.
///
/// # Errors
/// When the backend refuses anything.
pub fn cryptodev(socket: &Path) -> Result<Bare> {
    let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::CRYPTO_SESSION;
    let session = Session::connect(socket, 0, wanted)?;
    ensure!(session.protocol_features() & wanted == wanted, "sessions are not offered");
    Bare::attach(session, 0, 64)
}

/// Ring `index` of a whole device.
///
/// # Errors
/// When the backend refuses anything.
pub fn whole(socket: &Path, index: u16, packed: bool) -> Result<Bare> {
    let wanted =
        features::VERSION_1 | INDIRECT_DESC | EVENT_IDX | if packed { features::RING_PACKED } else { 0 };
    let session = Session::connect(socket, wanted, USEFUL_PROTOCOL_FEATURES)?;
    ensure!(session.features() & wanted == wanted, "not all features are offered: {:#x}", session.features());
    Bare::attach(session, index, 64)
}

/// CREATE_CRYPTO_SESSION of AES-CBC encryption, as QEMU 7.2 lays it out.
pub fn description(key: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 632];
    // cipher_alg: AES-CBC.
    bytes[8..12].copy_from_slice(&3u32.to_ne_bytes());
    bytes[12..16].copy_from_slice(&(key.len() as u32).to_ne_bytes());
    // op_type: a cipher; direction: encryption.
    bytes[32..34].copy_from_slice(&[1, 1]);
    bytes[56..56 + key.len()].copy_from_slice(key);
    bytes
}

/// The header of a cipher request and its fixed part (virtio 1.3 §5.9.7.4 and §5.9.7.8.2).
pub fn request(opcode: u32, session: u64, source: u32, destination: u32) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    for (at, word) in [(0, opcode), (4, 3), (24, IV_LEN as u32), (28, source), (32, destination), (64, 1)] {
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes[8..16].copy_from_slice(&session.to_le_bytes());
    bytes
}
