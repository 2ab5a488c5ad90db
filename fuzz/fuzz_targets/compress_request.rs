//! Compression requests of any kind, size and layout, of a guest that writes anything anywhere and of one that checks its
//! results, with two workers that share the work.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhostd_fuzz::compress::run(bytes));
