//! A user-space virtio-net driver without a VM: [`Port`] is the attached device (control plane), [`Transmit`] and
//! [`Receive`] are the rings of one queue pair, owned by the thread that drives them.
//!
//! It is made to be lighter than any backend: buffers never move, their headers are written once, a burst is one look at
//! the ring, and a receive buffer goes back into the ring in the round that emptied it.

mod buffers;
mod port;
mod receive;
mod transmit;

pub use port::{Pair, Port, Setup};
pub use receive::{Arrival, Receive};
pub use transmit::{Stamp, Transmit};

/// The backend used a buffer that it did not have, or wrote a length that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// A used element names nothing in flight.
    #[error("The backend used a buffer of the {0} ring that it did not have")]
    NotInFlight(&'static str),
    /// A frame spans more buffers than the ring has, or none.
    #[error("The backend says that a frame takes {0} receive buffers")]
    Buffers(u16),
    /// More bytes than the buffer has.
    #[error("The backend says that it wrote {written} bytes into a receive buffer of {buffer}")]
    Length {
        /// What it says.
        written: u32,
        /// What there is.
        buffer: u32,
    },
}
