//! A split ring under a hostile driver.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhostd_fuzz::ring::{Plan, run};
use virtqueue::Format;

fuzz_target!(|bytes: &[u8]| run(Plan { format: Some(Format::Split), tables: false }, bytes));
