//! The requests that a worker collected and has not yet submitted.
