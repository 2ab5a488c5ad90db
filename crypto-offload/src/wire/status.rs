//! The status of a request: the last byte the device writes.

/// `enum VIRTIO_CRYPTO_STATUS` (virtio 1.3 §5.9.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// Any failure that has no status of its own.
    Err = 1,
    /// AEAD decryption: the data or its tag are not authentic.
    BadMsg = 2,
    /// The operation or algorithm is not supported.
    NotSupp = 3,
    /// There is no such session.
    InvSess = 4,
    /// No room for another session.
    NoSpc = 5,
    /// AKCIPHER verification: the signature is not valid.
    KeyRejected = 6,
}

/// Number of [`Status`]es.
pub const STATUSES: usize = 7;

impl Status {
    /// All, by their number.
    pub const ALL: [Self; STATUSES] =
        [Self::Ok, Self::Err, Self::BadMsg, Self::NotSupp, Self::InvSess, Self::NoSpc, Self::KeyRejected];

    /// Label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Err => "error",
            Self::BadMsg => "bad_message",
            Self::NotSupp => "not_supported",
            Self::InvSess => "invalid_session",
            Self::NoSpc => "no_space",
            Self::KeyRejected => "key_rejected",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_listed_by_their_number() {
        assert!(Status::ALL.iter().enumerate().all(|(number, status)| *status as usize == number));
    }
}
