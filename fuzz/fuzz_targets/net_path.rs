//! A hostile guest on a switch with two others, which must not notice.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vhostd_fuzz::net::run(bytes));
