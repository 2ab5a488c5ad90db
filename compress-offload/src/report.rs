//! Status, statistics and metrics.
