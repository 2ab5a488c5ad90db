//! The status byte.
