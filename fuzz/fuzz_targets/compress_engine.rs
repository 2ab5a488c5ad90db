//! Sources of any kind for every compression engine, whole and in pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhostd_fuzz::engine::run(bytes));
