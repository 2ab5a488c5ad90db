//! Block requests of any kind, size and layout, on file, direct, read-only and memory disks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhostd_fuzz::blk::run(bytes));
