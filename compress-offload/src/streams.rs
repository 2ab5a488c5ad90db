//! The streams of a device.
