//! Indirect tables of a hostile driver, in either ring format.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhostd_fuzz::ring::{Plan, run};

fuzz_target!(|bytes: &[u8]| run(Plan { format: None, tables: true }, bytes));
