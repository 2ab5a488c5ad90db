//! A user-space vhost-user-blk driver without a VM: [`Disk`] is the attached device (control plane), [`Queue`]
//! one request queue, owned by the thread that drives it.
//!
//! ```no_run
//! use benches::blk::client::{Disk, Operation, Setup};
//! # fn main() -> anyhow::Result<()> {
//! let (disk, mut queues) = Disk::attach("/run/disk.sock".as_ref(), &Setup::default())?;
//! let queue = &mut queues[0];
//! queue.execute(Operation::Read, 0, 4096)?;
//! println!("{:x?}", queue.read_data(0, 4096));
//! disk.detach(queues)?;
//! # Ok(())
//! # }
//! ```

mod disk;
mod layout;
mod queue;

pub use disk::{Disk, Setup};
pub(crate) use queue::status_name;
pub use queue::{Completion, Operation, Queue, QueueError};
