//! Counters of queues and workers.
