//! Ethernet frames and virtio-net headers of any kind: parsed, hashed, tagged, completed and segmented.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhostd_fuzz::frame::run(bytes));
