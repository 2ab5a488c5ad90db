//! The daemon: devices, workers and what connects them.
