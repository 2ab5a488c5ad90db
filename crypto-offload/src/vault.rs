//! Sessions that survive the worker.
