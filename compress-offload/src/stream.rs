//! Streams with history.
