//! The configuration space.
