//! vhostd-crypto.

fn main() {}
