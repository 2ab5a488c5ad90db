//! The crypto device: virtio-crypto requests of many guests, collected from their rings, handed in batches to engines.
