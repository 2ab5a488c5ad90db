//! Sharing tasks between workers.
