//! A TAP interface as the uplink.
