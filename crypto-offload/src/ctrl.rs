//! The control queue.
