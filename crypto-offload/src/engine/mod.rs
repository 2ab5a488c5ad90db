//! Engines: what computes.
