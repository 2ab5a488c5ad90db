//! Counters of workers, queues and devices.
