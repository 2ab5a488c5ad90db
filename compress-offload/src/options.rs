//! What a daemon is told, from the command line and from a file.
