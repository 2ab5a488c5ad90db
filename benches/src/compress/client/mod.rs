//! A user-space driver of the compression device without a VM: [`Compressor`] is the attached device (control plane), [`Queue`]
//! one of its queues, owned by the thread that drives it. Data lie wherever the caller has put them in guest memory.

mod device;
mod queue;

pub use device::{Compressor, CompressorError, Setup};
pub use queue::{Completion, Queue, UNTOUCHED};
