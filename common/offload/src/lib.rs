//! What the offload daemons (crypto, compression) share: how the requests of many submitters become batches, when those are
//! submitted, and the round in which a worker does it.
//!
//! | module | what it is |
//! |---|---|
//! | [`flush`] | when to submit what was collected, and when to look for results: pure |
//! | [`fair`] | the share of a worker that devices and queues get: pure |
//! | [`batch`] | what was collected and not yet submitted, by group |
//! | [`collector`] | a batch with the rule that submits it, and its counters |
//! | [`slab`] | requests in flight, by index |
//! | [`bell`] | wakes a worker for what is not in its rings |
//! | [`service`] | the worker's round over the rings of any number of devices; a device crate fills in [`service::Offload`] |
//! | [`host`] | the devices of a process, and its workers |
//! | [`parameters`], [`spec`] | the rule's numbers as the operator gives and changes them |
//! | [`stats`] | what batches are counted by, and how that is shown |

pub mod batch;
pub mod bell;
pub mod collector;
pub mod fair;
pub mod flush;
pub mod host;
pub mod parameters;
pub mod service;
pub mod slab;
pub mod spec;
pub mod stats;
