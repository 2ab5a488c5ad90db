//! The way of a frame: from a transmit ring, an uplink or another worker, through the switch, into receive rings.

mod burst;

pub use burst::Burst;
