//! What all kinds of devices have in common: how the user describes one, how several share a process, which features of
//! rings they offer, and how QEMU attaches them. A device crate states only what is its own.

mod arrange;
pub mod features;
mod opened;
pub mod qemu;
mod registry;
mod rings;
mod session;
mod spec;
mod values;

pub use arrange::{Arranged, Place, arrange};
pub use opened::{Described, Opened, options_of, placed};
pub use registry::Devices;
pub use rings::{Rings, let_go, tell, tell_each};
pub use session::described;
pub(crate) use session::running;
pub use spec::Spec;
pub use values::{BadValue, check_name, check_queue_size, check_range};
