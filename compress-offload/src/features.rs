//! Every virtio feature that a device may offer.
