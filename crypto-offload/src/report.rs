//! What the daemon reports about its devices.
