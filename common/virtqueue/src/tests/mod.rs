//! Device side against driver side, hostile drivers, and kills.

mod kills;
mod properties;
mod recovery;
mod rig;
mod violations;
mod wakeups;
