//! Engines.
fn main() {}
