//! virtio-crypto from user space (virtio 1.3 §5.9): ciphers, by sessions of the control queue.
//!
//! It works on QEMU's own devices, on `cryptodev-vhost-user`, whose control queue QEMU serves, and on a whole device of
//! vhostd-crypto; and natively over the socket of the latter. There is no software beside it: every program that has keys has
//! a cipher.

mod client;
mod wire;

pub use client::{Client, Completion, CryptoError, Options, Session, Ticket};
pub use wire::{Cipher, Direction, Status};
