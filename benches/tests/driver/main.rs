//! The driver, the load generator and the program against a backend in this process.

mod backend;
mod compress;
mod compress_card;
mod crypto;
mod crypto_card;
mod frame_bus;
mod load;
mod memory_disk;
mod program;
mod traffic;
