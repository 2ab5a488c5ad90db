//! What a worker thread runs: the rings of any number of devices.
