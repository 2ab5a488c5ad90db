//! Formats, checksums and operations, with their numbers and limits.
