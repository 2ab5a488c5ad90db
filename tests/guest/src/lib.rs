//! What the programs of the guests share with the tests outside.

pub mod random;
