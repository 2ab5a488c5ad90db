//! Crypto requests of any kind, size and layout, of a guest that writes anything anywhere and of one that checks its results.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhostd_fuzz::crypto::run(bytes));
