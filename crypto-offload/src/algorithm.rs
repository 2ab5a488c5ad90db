//! The vocabulary of virtio-crypto: services, algorithms, key kinds, and their sizes and wire numbers.
