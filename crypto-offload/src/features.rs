//! virtio feature bits, by their names in the specification (virtio 1.3 §5.9.3 and §6), and the table of those that the device
//! offers.
//!
//! IN_ORDER is not among them, although the rings can do it: results would come in the order of the requests, so that an RSA
//! operation of milliseconds would hold up every cipher behind it.

pub use daemon::device::features::{
    Feature, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1, feature,
};

/// Fixed fields have their own length instead of 56 or 48 bytes, requests may be stateless, and NOSPC is a status.
pub const VIRTIO_CRYPTO_F_REVISION_1: u64 = 1 << 0;
/// Stateless requests of the CIPHER service.
pub const VIRTIO_CRYPTO_F_CIPHER_STATELESS_MODE: u64 = 1 << 1;
/// Stateless requests of the HASH service.
pub const VIRTIO_CRYPTO_F_HASH_STATELESS_MODE: u64 = 1 << 2;
/// Stateless requests of the MAC service.
pub const VIRTIO_CRYPTO_F_MAC_STATELESS_MODE: u64 = 1 << 3;
/// Stateless requests of the AEAD service.
pub const VIRTIO_CRYPTO_F_AEAD_STATELESS_MODE: u64 = 1 << 4;
/// Stateless requests of the AKCIPHER service.
pub const VIRTIO_CRYPTO_F_AKCIPHER_STATELESS_MODE: u64 = 1 << 5;

/// All stateless modes. Each needs REVISION_1.
pub const STATELESS_MODES: u64 = VIRTIO_CRYPTO_F_CIPHER_STATELESS_MODE
    | VIRTIO_CRYPTO_F_HASH_STATELESS_MODE
    | VIRTIO_CRYPTO_F_MAC_STATELESS_MODE
    | VIRTIO_CRYPTO_F_AEAD_STATELESS_MODE
    | VIRTIO_CRYPTO_F_AKCIPHER_STATELESS_MODE;

/// Every feature the device offers.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    feature(VIRTIO_CRYPTO_F_REVISION_1, "CRYPTO_REVISION_1", "all", "revision_1_shortens_the_fixed_fields"),
    feature(VIRTIO_CRYPTO_F_CIPHER_STATELESS_MODE, "CRYPTO_CIPHER_STATELESS_MODE", "all", "cipher_stateless_requests_need_no_session"),
    feature(VIRTIO_CRYPTO_F_HASH_STATELESS_MODE, "CRYPTO_HASH_STATELESS_MODE", "all", "hash_stateless_requests_need_no_session"),
    feature(VIRTIO_CRYPTO_F_MAC_STATELESS_MODE, "CRYPTO_MAC_STATELESS_MODE", "all", "mac_stateless_requests_need_no_session"),
    feature(VIRTIO_CRYPTO_F_AEAD_STATELESS_MODE, "CRYPTO_AEAD_STATELESS_MODE", "all", "aead_stateless_requests_need_no_session"),
    feature(VIRTIO_CRYPTO_F_AKCIPHER_STATELESS_MODE, "CRYPTO_AKCIPHER_STATELESS_MODE", "all", "akcipher_stateless_requests_need_no_session"),
    feature(VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC", "all", "indirect_tables_hold_requests"),
    feature(VIRTIO_F_EVENT_IDX, "EVENT_IDX", "all", "event_idx_saves_kicks_and_interrupts"),
    feature(VIRTIO_F_VERSION_1, "VERSION_1", "all", "version_1_tells_that_features_are_passed_on"),
    feature(VIRTIO_F_RING_PACKED, "RING_PACKED", "all", "ring_packed_serves_every_service"),
    feature(VIRTIO_F_RING_RESET, "RING_RESET", "all", "ring_reset_starts_a_queue_anew_while_others_run"),
];

/// What the device offers.
pub fn offered() -> u64 {
    FEATURES.iter().fold(0, |bits, feature| bits | feature.bit)
}

/// What of the chosen features counts: a stateless mode without REVISION_1 does not, since a driver that breaks that rule
/// expects the longer fields (virtio 1.3 §5.9.3.1).
pub fn effective(chosen: u64) -> u64 {
    if chosen & VIRTIO_CRYPTO_F_REVISION_1 != 0 { chosen } else { chosen & !STATELESS_MODES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stateless_modes_without_revision_1_do_not_count() {
        assert_eq!(effective(offered()), offered());
        assert_eq!(effective(offered() & !VIRTIO_CRYPTO_F_REVISION_1) & 0x3f, 0);
    }

    #[test]
    fn bits_are_offered_once_and_none_is_of_vhost_user() {
        let sum: u64 = FEATURES.iter().map(|feature| feature.bit).sum();
        assert_eq!(sum, offered());
        assert_eq!(offered() & (1 << 26 | 1 << 30), 0);
    }
}
