//! Options of the daemon.
