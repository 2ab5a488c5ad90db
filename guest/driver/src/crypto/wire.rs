//! virtio-crypto requests of ciphers as they stand in memory (virtio 1.3 §5.9.7), without REVISION_1: every fixed part is padded
//! then, and any device understands it. Neither Linux nor QEMU speaks otherwise.

/// Bytes of a control request in front of the key, and of a data request in front of the IV.
pub(super) const REQUEST: usize = 72;
/// `struct virtio_crypto_create_session_input`.
pub(super) const CREATED: usize = 16;
/// Where the configuration says what the device can do.
pub(super) const CONFIG: usize = 56;

const HEADER: usize = 16;
const DATA_HEADER: usize = 24;
const CREATE: u32 = 0x02;
const DESTROY: u32 = 0x03;
const OP_CIPHER: u32 = 1;

/// AES in the modes that need no more than a key and an IV, by their numbers (virtio 1.3 §5.9.4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Cipher {
    /// Electronic codebook; has no IV.
    AesEcb = 2,
    /// Cipher block chaining.
    AesCbc = 3,
    /// Counter mode, with the counter in the IV.
    AesCtr = 4,
    /// For disks, with a key of twice the length and the tweak in the IV.
    AesXts = 13,
}

impl Cipher {
    /// All.
    pub const ALL: [Self; 4] = [Self::AesEcb, Self::AesCbc, Self::AesCtr, Self::AesXts];

    /// Bytes of its IV.
    pub const fn iv_len(self) -> usize {
        if matches!(self, Self::AesEcb) { 0 } else { 16 }
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesEcb => "AES-ECB",
            Self::AesCbc => "AES-CBC",
            Self::AesCtr => "AES-CTR",
            Self::AesXts => "AES-XTS",
        }
    }
}

/// Which way data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Direction {
    /// To the secret.
    Encrypt = 1,
    /// From it.
    Decrypt = 2,
}

/// How a request ended (virtio 1.3 §5.9.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    Ok,
    /// Any failure without a number of its own.
    Error,
    /// The device has no such thing.
    NotSupported,
    /// There is no such session.
    InvalidSession,
    /// No room for another session.
    NoSpace,
    /// Another number.
    Other(u8),
}

impl Status {
    pub(super) fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Ok,
            1 => Self::Error,
            3 => Self::NotSupported,
            4 => Self::InvalidSession,
            5 => Self::NoSpace,
            other => Self::Other(other),
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => f.write_str("OK"),
            Self::Error => f.write_str("ERR"),
            Self::NotSupported => f.write_str("NOTSUPP"),
            Self::InvalidSession => f.write_str("INVSESS"),
            Self::NoSpace => f.write_str("NOSPC"),
            Self::Other(number) => write!(f, "status {number}"),
        }
    }
}

fn put(bytes: &mut [u8], at: usize, words: &[u32]) {
    for (word, place) in words.iter().zip(bytes[at..].chunks_exact_mut(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// `VIRTIO_CRYPTO_CIPHER_CREATE_SESSION`, in front of the key.
pub(super) fn create(cipher: Cipher, direction: Direction, key_len: usize) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    put(&mut bytes, 0, &[CREATE, cipher as u32]);
    put(&mut bytes, HEADER, &[cipher as u32, key_len as u32, direction as u32]);
    put(&mut bytes, HEADER + 48, &[OP_CIPHER]);
    bytes
}

/// `VIRTIO_CRYPTO_CIPHER_DESTROY_SESSION`.
pub(super) fn destroy(session: u64) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    put(&mut bytes, 0, &[DESTROY]);
    put(&mut bytes, HEADER, &[session as u32, (session >> 32) as u32]);
    bytes
}

/// `VIRTIO_CRYPTO_CIPHER_ENCRYPT` or `_DECRYPT`, in front of IV and source.
pub(super) fn data(cipher: Cipher, direction: Direction, session: u64, len: usize) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let opcode = direction as u32 - 1;
    put(&mut bytes, 0, &[opcode, cipher as u32, session as u32, (session >> 32) as u32]);
    put(&mut bytes, DATA_HEADER, &[cipher.iv_len() as u32, len as u32, len as u32]);
    put(&mut bytes, DATA_HEADER + 40, &[OP_CIPHER]);
    bytes
}

/// The session of a [`create`] that was answered, or why there is none.
pub(super) fn created(bytes: &[u8; CREATED]) -> Result<u64, Status> {
    let [a, b, c, d, e, f, g, h, status, ..] = *bytes;
    match Status::of(status) {
        Status::Ok => Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        status => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    #[test]
    fn fields_sit_where_linux_puts_them() {
        let bytes = create(Cipher::AesCbc, Direction::Decrypt, 32);
        assert_eq!((word(&bytes, 0), word(&bytes, 4)), (0x002, 3));
        assert_eq!((word(&bytes, 16), word(&bytes, 20), word(&bytes, 24), word(&bytes, 64)), (3, 32, 2, 1));
        let bytes = data(Cipher::AesCbc, Direction::Decrypt, 0x1_0000_0002, 4096);
        assert_eq!((word(&bytes, 0), word(&bytes, 8), word(&bytes, 12)), (0x001, 2, 1));
        assert_eq!(
            (word(&bytes, 24), word(&bytes, 28), word(&bytes, 32), word(&bytes, 64)),
            (16, 4096, 4096, 1)
        );
        let bytes = destroy(7);
        assert_eq!((word(&bytes, 0), word(&bytes, 16), word(&bytes, 20)), (0x003, 7, 0));
        let mut answer = [0; CREATED];
        answer[1] = 2;
        assert_eq!(created(&answer), Ok(0x200));
        answer[8] = 5;
        assert_eq!(created(&answer), Err(Status::NoSpace));
    }
}
