//! The description of one device.
