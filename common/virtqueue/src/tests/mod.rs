//! Device side against driver side, hostile drivers, and kills.

mod any_driver;
mod batches;
mod kills;
mod migration;
mod properties;
mod recovery;
pub mod rig;
mod setup;
mod violations;
mod wakeups;
