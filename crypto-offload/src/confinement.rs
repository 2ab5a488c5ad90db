//! What the daemon still may do once it runs.
