//! The sessions of a device.
